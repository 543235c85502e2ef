# make demo   set everything up and train a GAN on real digits to a picture
# make test   set everything up and pass the tests
# The rest: test-pure, sanitize, portable, bench, lint, format, docs, proofs, gpu-check, clean.

# The first of these that is new enough.
PYTHON ?= $(firstword $(foreach p,python3 python3.11 python3.12 python3.13,$(shell $(p) -c \
	'import sys; sys.version_info >= (3, 11) and print(sys.executable)' 2>/dev/null)))
BUILD ?= auto
VENV := .venv
BIN := $(VENV)/bin
# CMake, ninja and clang-format come from the environment.
export PATH := $(CURDIR)/$(BIN):$(PATH)
SOURCES := $(shell find csrc kernels -type f -name '*.*' -not -name '*.pyc') CMakeLists.txt setup.py

.PHONY: demo test test-pure sanitize portable bench lint format docs proofs gpu-check clean

demo: $(VENV)/demo.stamp
	$(BIN)/python examples/demo.py

# Two processes, and threads that wait asleep: ones that spin would make the other's steps last a hundred times longer.
test: $(VENV)/dev.stamp
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist worksteal tests

# The contract suite once more on a build without compiled modules, in an environment that sees the tools of the other
# one but not its editable install, which would offer the compiled modules.
test-pure: $(VENV)/dev.stamp
	rm -rf build/pure
	$(BIN)/python -m venv --without-pip build/pure
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > build/pure/tools.txt
	build/pure/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > build/pure/site.txt
	cp build/pure/tools.txt "$$(cat build/pure/site.txt)/tools.pth"
	PYFASTGAN_BUILD=none $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps \
		--target "$$(cat build/pure/site.txt)" .
	cd build/pure && PYFASTGAN_TEST_PURE=1 OMP_WAIT_POLICY=passive \
		bin/python -m pytest -n 2 --dist worksteal -c $(CURDIR)/pyproject.toml $(CURDIR)/tests/ops

# The CPU kernels under AddressSanitizer and UBSan, which see past the end of a tensor's memory.
sanitize: $(VENV)/dev.stamp
	rm -rf build/sanitized
	PYFASTGAN_BUILD=cpu PYFASTGAN_SANITIZE=address,undefined \
		$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --target build/sanitized .
	cd build/sanitized && ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		PYTHONPATH=$(CURDIR)/build/sanitized $(CURDIR)/$(BIN)/python -m pytest -c $(CURDIR)/pyproject.toml \
		$(CURDIR)/tests/ops -k "values or same_bits or layouts or instruction_set or refuse or parts or any_shape or definition or any_call"

# The CPU kernels as a machine without AVX2 and OpenMP has them, by any compiler: make portable CXX=clang++
portable: $(VENV)/dev.stamp
	rm -rf build/portable
	PYFASTGAN_BUILD=none $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --target build/portable .
	cmake -S . -B build/portable/cmake -G Ninja -DPYFASTGAN_CUDA=off \
		-DPYFASTGAN_INSTRUCTION_SETS=portable -DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON \
		-DPYFASTGAN_VERSION="$$($(BIN)/python -c 'import pyfastgan; print(pyfastgan.__version__)')" \
		-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)" \
		-DCMAKE_INSTALL_PREFIX=$(CURDIR)/build/portable/pyfastgan
	cmake --build build/portable/cmake --target install
	cd build/portable && PYTHONPATH=$(CURDIR)/build/portable $(CURDIR)/$(BIN)/python -m pytest -n 2 --dist worksteal \
		-c $(CURDIR)/pyproject.toml $(CURDIR)/tests/ops/test_contract.py -k "values or same_bits or layouts"

# In at most 25 minutes, or as BENCH says: make bench BENCH="--quick --seconds 900 --resume"
bench: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/report.py --run $(BENCH)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*')

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*')

# The pages as a site in build/site; a broken link or reference is an error.
docs: $(VENV)/dev.stamp
	$(BIN)/python -m mkdocs build --quiet --strict

# What takes too long for `make test`.
proofs: sanitize portable
	PYFASTGAN_FUZZ_CALLS=100000 PYFASTGAN_KILLS=50 $(BIN)/python -m pytest --timeout 7200 \
		tests/ops/test_fuzz.py tests/training/test_kill.py
	$(BIN)/python -m pytest -s --timeout 1800 proofs

gpu-check:
	python3 benchmarks/gpu_check.py

clean:
	rm -rf $(VENV) build dist *.egg-info pyfastgan/*.so

$(VENV)/venv.stamp: constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python found: install Python 3.11 or newer, or say make PYTHON=/path/to/python3"; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch numpy setuptools cmake ninja pybind11
	@touch $@

# Compiled without build isolation, so that a change of one kernel is compiled with the tools at hand.
$(VENV)/demo.stamp: $(VENV)/venv.stamp pyproject.toml $(SOURCES)
	@echo "Compiling the kernels and installing pyfastgan (a minute or two)"
	PYFASTGAN_BUILD=$(BUILD) $(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[train]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	@echo "Installing the tools for development, and the libraries to compare with"
	for extra in dev docs peers; do \
		$(BIN)/python -c "from importlib.metadata import requires; print(*(r.split(';')[0] for r in requires('pyfastgan') if '$$extra' in r.split(';')[-1]), sep='\n')" > $(VENV)/$$extra.txt; done
	$(BIN)/python -m pip install --quiet -c constraints.txt -r $(VENV)/dev.txt -r $(VENV)/docs.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps -r $(VENV)/peers.txt
	@touch $@
