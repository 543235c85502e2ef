"""Builds the compiled modules with CMake; everything else stands in pyproject.toml.

PYFASTGAN_BUILD chooses what is compiled: `auto` (default: the CPU module, and the CUDA module where nvcc is found),
`cpu`, `cuda` (fails without nvcc) or `none` (a pure-Python package, served by the PyTorch reference).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CHOICES = ("auto", "cpu", "cuda", "none")


def build_choice() -> str:
    choice = os.environ.get("PYFASTGAN_BUILD", "auto")
    if choice not in CHOICES:
        sys.exit(f"PYFASTGAN_BUILD must be one of {', '.join(CHOICES)}, got {choice!r}")
    return choice


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        choice = build_choice()
        # The package's own folder for an editable install, the wheel's staging folder otherwise.
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        work = Path(self.build_temp).resolve() / "cmake"
        if work.exists():  # a stale cache would keep a compiler that is gone
            shutil.rmtree(work)
        work.mkdir(parents=True)
        for stale in (*target.glob("_cpu*.so"), *target.glob("_cuda*.so")):
            stale.unlink()
        # CMake and ninja may be this environment's own, whose folder need not be on PATH.
        tools = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        environment = {**os.environ, "PATH": tools}
        cmake = shutil.which("cmake", path=tools)
        if cmake is None:
            sys.exit(
                "cmake was not found: pip install cmake ninja, or PYFASTGAN_BUILD=none for pure Python"
            )
        subprocess.run(
            [
                cmake, "-S", str(ROOT), "-B", str(work), "-G", "Ninja",
                f"-DPYFASTGAN_VERSION={self.distribution.get_version()}",
                f"-DPYFASTGAN_CUDA={ {'auto': 'auto', 'cpu': 'off', 'cuda': 'on'}[choice] }",
                f"-DPYFASTGAN_SANITIZE={os.environ.get('PYFASTGAN_SANITIZE', '')}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DCMAKE_INSTALL_PREFIX={target}",
            ],
            check=True,
            env=environment,
        )  # fmt: skip
        subprocess.run(
            [cmake, "--build", str(work), "--target", "install"], check=True, env=environment
        )

    def copy_extensions_to_source(self) -> None:
        # For an editable install. setuptools knows of one extension and would copy that alone.
        package = ROOT / "pyfastgan"
        for stale in (*package.glob("_cpu*.so"), *package.glob("_cuda*.so")):
            stale.unlink()
        for module in (Path(self.build_lib) / "pyfastgan").glob("*.so"):
            shutil.copy2(module, package)

    def get_outputs(self) -> list[str]:
        return []  # CMake decides which modules there are


# The one extension stands for everything that CMake builds.
extensions = [] if build_choice() == "none" else [Extension("pyfastgan._cpu", sources=[])]
setup(ext_modules=extensions, cmdclass={"build_ext": CMakeBuild})
