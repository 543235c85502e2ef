"""Random numbers: known answers, the same numbers however a batch is cut, and the distributions."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyfastgan as pf
from pyfastgan.ops import _backends
from pyfastgan.ops._random_kernels import _philox, round_down
from pyfastgan.ops._registry import FLOATS, ops
from pyfastgan.ops.random import (
    random_normal_reference,
    random_uniform_reference,
    random_words_reference,
)
from pyfastgan.testing import backends

# Random123's kat_vectors for philox4x32-10: counter, key, words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip

BACKENDS = backends(ops()["random_words"])


def hexadecimal(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers_of_the_reference(counter, key, words):
    result = _philox(
        [torch.tensor(w) for w in hexadecimal(counter)], *map(torch.tensor, hexadecimal(key))
    )
    assert [w.item() for w in result] == hexadecimal(words)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b == "cpu"])
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers_of_the_cpu_kernel(backend, counter, key, words):
    counter, key = (np.array(hexadecimal(text), dtype=np.uint32) for text in (counter, key))
    out = np.zeros(4 * 8, dtype=np.uint32)
    module = _backends.native("_cpu")
    module.philox(counter.ctypes.data, key.ctypes.data, out.ctypes.data)
    lanes = {"avx512": 8, "avx2": 4, "portable": 2}[module.isa]
    assert (out[: 4 * lanes].reshape(-1, 4) == hexadecimal(words)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_counter_is_block_sample_stream(backend):
    """The layout of the counter, against the bare generator."""
    seed, stream, offset = 0x299F31D0_A4093822, 0x03707344, 7
    with pf.use_backend(backend):
        words = pf.ops.random_words((2, 11), seed, stream=stream, sample_offset=offset)
    for sample in range(2):
        for block in range(3):
            counter = [torch.tensor(w) for w in (block, 0, sample + offset, stream)]
            expected = _philox(counter, torch.tensor(0xA4093822), torch.tensor(0x299F31D0))
            got = words[sample, 4 * block : 4 * block + 4].tolist()
            assert got == [w.item() for w in expected][: len(got)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["random_words", "random_uniform", "random_normal"])
@settings(deadline=None, max_examples=25)
@given(
    shape=st.lists(st.integers(1, 40), min_size=2, max_size=3),
    seed=st.integers(-(2**63), 2**64 - 1),
    stream=st.integers(0, 2**32 - 1),
    offset=st.integers(0, 2**31),
    cut=st.integers(0, 40),
)
def test_a_batch_is_its_parts(backend, name, shape, seed, stream, offset, cut):
    f = getattr(pf.ops, name)
    cut = min(cut, shape[0])
    with pf.use_backend(backend):
        whole = f(shape, seed, stream=stream, sample_offset=offset)
        first = f([cut, *shape[1:]], seed, stream=stream, sample_offset=offset)
        second = f([shape[0] - cut, *shape[1:]], seed, stream=stream, sample_offset=offset + cut)
        alone = f(
            shape[1:] if len(shape) == 2 else [1, *shape[1:]],
            seed,
            stream=stream,
            sample_offset=offset,
        )
    assert torch.equal(whole, torch.cat((first, second)))
    assert torch.equal(whole[:1].flatten(), alone.flatten())


@pytest.mark.parametrize("backend", BACKENDS)
def test_words_are_the_reference_s_on_every_backend(backend):
    with pf.use_backend(backend):
        for shape in ((3, 5), (1, 1000), (70, 3, 3), (20001,)):
            words = pf.ops.random_words(shape, 77, stream=5)
            assert torch.equal(words, random_words_reference(shape, 77, stream=5))
            for dtype in FLOATS:
                uniform = pf.ops.random_uniform(shape, 77, stream=5, dtype=dtype)
                assert torch.equal(uniform, round_down((words.double() + 0.5) / 2**32, dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_normals_are_box_and_muller_s(backend):
    """Against the formula, written anew here in float64 from the words."""
    with pf.use_backend(backend):
        words = pf.ops.random_words((4, 100_000), 3).numpy().astype(np.float64)
        u = (words + 0.5) / 2**32
        radius, turn = np.sqrt(-2 * np.log(u[:, 0::2])), 2 * np.pi * u[:, 1::2]
        expected = np.stack((radius * np.cos(turn), radius * np.sin(turn)), -1).reshape(4, -1)
        for dtype in FLOATS:
            z = pf.ops.random_normal((4, 100_000), 3, dtype=dtype).double().numpy()
            error = np.abs(z - expected) / np.maximum(np.abs(expected), 1)
            # This formula rounds its angle: half an ulp of 2 pi, times a radius of up to 6.7. The
            # kernel's is exact.
            slack = 16 if dtype == torch.float64 else 4
            assert error.max() <= slack * torch.finfo(dtype).eps


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_seed_for_each_sample(backend):
    seeds = torch.tensor([5, -9, 2**40])
    with pf.use_backend(backend):
        batch = pf.ops.random_normal((3, 50), seeds)
        swapped = pf.ops.random_normal((3, 50), seeds.flip(0), sample_offset=9)
        for k, seed in enumerate(seeds):
            single = pf.ops.random_normal((50,), seed.clone())
            assert torch.equal(batch[k], single)
    assert torch.equal(batch, swapped.flip(0))


def test_seed_forms_agree():
    a = pf.ops.random_words((2, 6), 2**64 - 3)
    assert torch.equal(a, pf.ops.random_words((2, 6), -3))
    assert torch.equal(a, pf.ops.random_words((2, 6), torch.tensor(-3)))
    b = pf.ops.random_words((2, 6), -3, stream=1)
    c = pf.ops.random_words((2, 6), -3, sample_offset=1)
    d = pf.ops.random_words((2, 6), -2)
    assert len({tuple(t.flatten().tolist()) for t in (a, b, c, d)}) == 4
    assert torch.equal(a[1], c[0])


def test_a_missing_seed_follows_torch():
    torch.manual_seed(11)
    a, b = pf.ops.random_normal((8,)), pf.ops.random_normal((8,))
    torch.manual_seed(11)
    assert torch.equal(a, pf.ops.random_normal((8,)))
    assert not torch.equal(a, b)
    g = torch.Generator().manual_seed(4)
    c = pf.ops.random_normal((8,), generator=g)
    assert torch.equal(c, pf.ops.random_normal((8,), generator=torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("name", ["random_uniform", "random_normal"])
def test_few_numbers_are_the_same_by_the_short_way(name):
    """A shape as a tuple takes it, as a list does not."""
    f = getattr(pf.ops, name)
    for shape in ((7,), (3, 5), (2, 3, 4), (0,), (0, 3)):
        for seed in (0, 5, -1, -(2**63), 2**63, 2**64 - 1):
            kwargs = {"seed": seed, "stream": 3, "sample_offset": 9, "dtype": torch.float64}
            assert torch.equal(f(shape, **kwargs), f(list(shape), **kwargs))
        for make in (lambda: None, lambda: torch.Generator().manual_seed(4)):
            drawn = []
            for form in (shape, list(shape)):
                torch.manual_seed(8)
                g = make()
                drawn.append((f(form, generator=g), f(form, generator=g), torch.rand(3)))
            assert all(map(torch.equal, *drawn))
    with torch.device("meta"):
        assert f((3,), 1).is_meta


def test_threads_do_not_share_a_seed():
    """Drawing one lets other threads go on before it is used."""

    def draw(thread, form):
        g = torch.Generator().manual_seed(thread)
        return torch.stack([pf.ops.random_normal(form((8,)), generator=g) for _ in range(300)])

    with ThreadPoolExecutor(4) as pool:
        drawn = pool.map(lambda thread: draw(thread, tuple), range(4))
        for thread, numbers in enumerate(drawn):
            assert torch.equal(numbers, draw(thread, list))


def test_default_dtype_and_device():
    assert pf.ops.random_normal((2,)).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert pf.ops.random_uniform((2,)).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert pf.ops.random_words((2,), device="meta").device.type == "meta"


def test_uniform_stays_inside_its_interval():
    """At both ends of the words, where rounding to nearest would give 1."""
    for dtype in FLOATS:
        top = round_down(torch.tensor([2**32 - 0.5, 0.5], dtype=torch.float64) / 2**32, dtype)
        assert top[0] < 1
        assert top[1] >= 0
    # Among 4 million words some are so large that float32 and the halves would round them to 1.
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        u = pf.ops.random_uniform((4, 1_000_000), 1, dtype=dtype)
        assert u.max() < 1
        assert u.min() >= 0


def test_distributions():
    u = pf.ops.random_uniform((64, 5000), 21, dtype=torch.float64).numpy()
    assert scipy.stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    z = pf.ops.random_normal((64, 5000), 22).double().numpy()
    assert scipy.stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    n = z.size
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    # Neighbours in a sample, and the same place in neighbouring samples, are independent.
    for a, b in ((z[:, :-1], z[:, 1:]), (z[:-1], z[1:])):
        assert abs((a * b).mean()) < 4 / math.sqrt(a.size)


def test_tails_are_right():
    """P(|z| > 4) = 6.33e-5: a u0 rounded before its logarithm would miss the tail."""
    z = pf.ops.random_normal((16, 1_000_000), 5)
    assert 0.9 < (z.abs() > 4).double().mean().item() / 6.334e-5 < 1.1
    assert z.abs().max() < math.sqrt(-2 * math.log(2**-33)) + 1e-3


def test_reference_functions_have_the_public_signature():
    for ours, reference in (
        (pf.ops.random_uniform, random_uniform_reference),
        (pf.ops.random_normal, random_normal_reference),
    ):
        a = ours((3, 4), 9, stream=2, sample_offset=1, dtype=torch.float64)
        b = reference((3, 4), 9, stream=2, sample_offset=1, dtype=torch.float64)
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


def test_a_compiled_call_draws_anew():
    f = torch.compile(lambda: pf.ops.random_normal((16,)), fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    a, b = f(), f()
    assert not torch.equal(a, b)
