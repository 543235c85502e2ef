"""The screened search for the nearest code gives the bits of the float32 one, whatever it is fed.

It is used where the processor has AVX512-VNNI; elsewhere both sides are the float32 search.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfastgan.ops import _backends
from pyfastgan.ops._common import TYPE_NUMBER

pytestmark = pytest.mark.skipif(
    _backends.missing("cpu") is not None, reason="this build has no CPU kernels"
)


def search(x, book, screened):
    index = torch.empty(len(x), dtype=torch.int64)
    distance = torch.empty(len(x), dtype=torch.float32)
    _backends.native("_cpu").nearest_code(
        x.data_ptr(),
        book.data_ptr(),
        index.data_ptr(),
        distance.data_ptr(),
        TYPE_NUMBER[x.dtype],
        *(len(x), *book.shape),
        screened,
        torch.get_num_threads(),
    )
    return index, distance.view(torch.int32)  # so that NaN equals NaN


def same(x, book):
    x, book = x.contiguous(), book.contiguous()
    expected, found = search(x, book, 0), search(x, book, 1)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    return expected[0]


def between(x, book, g):
    """Midpoints of two codes, and one unit in the last place beside them."""
    first, second = (book[torch.randint(len(book), (len(x),), generator=g)] for _ in range(2))
    middle = (first + second) / 2
    return torch.where(torch.rand(x.shape, generator=g) < 0.1, middle * (1 + 2**-23), middle), book


def repeated(x, book, g):
    """Codes that are equal, in one lane and in others, and that differ in one last bit."""
    book = book[torch.randint(max(2, len(book) // 3), (len(book),), generator=g)]
    book[::5, 0] *= 1 + 2**-23
    return book[torch.randint(len(book), (len(x),), generator=g)] + 0.1 * x, book


def whole(x, book, g):
    """Small integers, so that scores are equal to the last bit."""
    return x.round(), book.round()


def far(x, book, g):
    """Away from the origin, by a different length in each direction."""
    offset = 10 ** (4 * torch.rand(x.shape[1], generator=g))
    return x + offset, book + offset


def flat(x, book, g):
    """All codes on one line."""
    return x, book[:, :1] * book[:1] + 1e-3 * book


def uneven(x, book, g):
    """Vectors and codes of very different lengths."""
    lengths = 10 ** (12 * torch.rand(len(x), 1, generator=g) - 6)
    of_codes = 10 ** (4 * torch.rand(len(book), 1, generator=g) - 2)
    return x * lengths, book * of_codes


def longer(x, book, g):
    """Vectors up to a hundred times as long as any code."""
    return x * 10 ** (2 * torch.rand(len(x), 1, generator=g)), book


def broken(x, book, g):
    """Vectors with NaN and infinities among others."""
    values = torch.tensor([math.nan, math.inf, -math.inf, 3e38, 1e-45, 0.0])
    places = torch.randint(6, (len(x),), generator=g)
    x[torch.arange(0, len(x), 7), places[::7] % x.shape[1]] = values[places[::7]]
    return x, book


def broken_code(x, book, g):
    value = [math.nan, math.inf, 3e38, 1e-45][int(torch.randint(4, (1,), generator=g))]
    book[int(torch.randint(len(book), (1,), generator=g)), -1] = value
    return x, book


def as_drawn(x, book, g):
    return x, book


KINDS = [as_drawn, between, repeated, whole, far, flat, uneven, longer, broken, broken_code]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(256, 400),
    codes=st.integers(64, 200),
    width=st.one_of(st.integers(16, 70), st.integers(120, 290)),
    power=st.sampled_from([0, 0, 0, -3, 6, 13, 16, 18, -14, -16, -19, -22, -38]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_bits_of_the_float32_search(kind, seed, rows, codes, width, power, dtype):
    g = torch.Generator().manual_seed(seed)
    x, book = torch.randn(rows, width, generator=g), torch.randn(codes, width, generator=g)
    x, book = kind(x, book, g)
    scale = 1.0 if dtype == torch.float16 else 10.0**power
    same((x * scale).to(dtype), (book * scale).to(dtype))


# What a vector of the longest length is rounded from, in csrc/cpu/nearest_code_screen.h.
_LONGEST = 32000 / 1.001


def test_vectors_whose_rounding_all_favours_another_code():
    """Each dimension is rounded by 0.49 against the nearest code: nearly the bound that decides."""
    g = torch.Generator().manual_seed(1)
    width, rows = 64, 2000
    sign = torch.randint(2, (40, width), generator=g) * 2.0 - 1
    # The first and its negative are the only ones that may be near; the mean of all is zero.
    book = torch.stack([sign, -sign], 1).flatten(0, 1).double()
    book[2:] *= 1.01
    book *= _LONGEST / (1.01 * width**0.5)
    # x in the units of the screen: whole numbers plus 0.49 along the first code.
    lower = (torch.arange(rows) % 31)[:, None]
    whole = -(torch.rand(rows, width, generator=g).argsort(1) < lower).double()
    x = (whole + 0.49) * sign[0]
    index = same(x.float(), book.float())
    # Rounded, those with a sum of whole numbers below zero seem nearer to the second code.
    assert (index == 0).all()


def test_codes_whose_rounding_all_favours_another_code():
    g = torch.Generator().manual_seed(2)
    width, rows = 64, 2000
    length = math.floor(_LONGEST / 1.01 / width**0.5)
    s = torch.randint(2, (width,), generator=g) * 2.0 - 1
    others = (torch.randint(2, (40, width), generator=g) * 2.0 - 1) * length
    z = (0.7 * length * s + 0.7 * others[0]).round()
    codes = []
    for few in range(8, 16):  # of the dimensions that do not make up for what is lost in rounding
        m = s * (torch.arange(width) >= few)
        codes.append(torch.stack([z + 0.49 * s, z + m - 0.49 * s]))
    x = (length * s).expand(rows, width).double()
    for pair in codes:
        book = torch.cat([others[2:], pair])
        book = torch.stack([book, -book], 1).flatten(0, 1)
        book[:2] *= (_LONGEST / book.norm(dim=1).max()).item()
        same(x.float(), book.float())


def test_everywhere_undecided_and_nowhere():
    """Pieces that give the screen up after their first tile beside others that do not."""
    g = torch.Generator().manual_seed(3)
    book = torch.randn(128, 32, generator=g)
    book[1::2] = book[::2]
    book[:8] += 5 * torch.eye(8, 32)
    x = torch.randn(600, 32, generator=g)
    x[100:200] = book[:100]
    x[300:420] = book[:8].repeat(15, 1)
    assert (same(x, book)[100:107] == torch.arange(7)).all()
