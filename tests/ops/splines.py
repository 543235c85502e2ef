"""What the tests of rational_quadratic_spline share: logits, inputs at every special place, derivatives, cases."""

import torch
from hypothesis import strategies as st

NAMES = ("y", "logdet", "dx", "dwidths", "dheights", "dderivatives")


def logits(count, bins, *, knots=-1, extra=0, seed=0, dtype=torch.float32, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return [
        scale * torch.randn(count, 1, n, generator=g, dtype=dtype)
        for n in (bins + extra, bins + extra, bins + knots)
    ]


def inputs(count, bound, w, seed):
    """Numbers inside and outside, the bounds and their neighbours, zero, and every knot of the first elements."""
    g = torch.Generator().manual_seed(seed)
    x = bound * 1.5 * (2 * torch.rand(count, 1, generator=g, dtype=torch.float64) - 1)
    limit = torch.tensor(float(bound), dtype=torch.float32)
    near = [limit, torch.nextafter(limit, 2 * limit), torch.nextafter(limit, 0 * limit), 0 * limit]
    special = torch.stack([*near, *(-t for t in near)]).double()
    x[: len(special), 0] = special
    at = len(special)
    share = 1e-3 + (1 - 1e-3 * w.size(-1)) * torch.softmax(w.double(), -1)
    for k in range(w.size(-1) - 1):
        row = (at + k) % count
        x[row, 0] = bound * (2 * share[row, 0, : k + 1].sum() - 1)
    return x.float()


def derivatives(function, x, parameters, dtype):
    """Value, log-determinant and gradients for fixed cotangents."""
    leaves = [t.to(dtype).detach().requires_grad_() for t in (x, *parameters)]
    y, log = function(*leaves)
    g = torch.Generator().manual_seed(7)
    cotangents = [torch.randn(x.shape, generator=g, dtype=torch.float64).to(dtype) for _ in "yl"]
    grads = torch.autograd.grad((y, log), leaves, (cotangents[0], cotangents[1].reshape(log.shape)))
    return [y.detach(), log.detach(), *grads]


def close_to_a_knot(x, share, bound):
    at = share.cumsum(-1)
    knots = torch.cat((torch.zeros_like(at[..., :1]), at), -1) * 2 * bound - bound
    return ((x.double()[..., None] - knots).abs() < 3e-6 * bound).any(-1)


CASES = st.tuples(
    st.integers(1, 16),
    st.floats(0.5, 5.0),
    st.booleans(),
    st.floats(0.1, 3.0),
    st.integers(0, 2**31),
)
