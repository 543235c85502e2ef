"""denoise_step: known steps from Bayes' rule and from torch's own functions, guidance, thresholds, gradients."""

import math

import pytest
import torch

import pyfastgan as pf
from pyfastgan.ops._registry import ops
from pyfastgan.ops.denoise_step import COEFFICIENTS
from pyfastgan.testing import backends

BACKENDS = backends(ops()["denoise_step"])
SHAPE = (4, 3, 5, 5)


def row(**named):
    assert set(named) <= set(COEFFICIENTS)
    return torch.tensor([named.get(name, 0.0) for name in COEFFICIENTS], dtype=torch.float64)


def doubles(*shape, count):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_ancestral_step_is_bayes_rule(backend):
    """q(x_s | x_t, x_0) as the product of two normal densities of x_s, not from its usual formulas."""
    now, before = 0.6, 0.7
    share = now / before
    x, eps, z = doubles(*SHAPE, count=3)
    x0 = ((x - math.sqrt(1 - now) * eps) / math.sqrt(now)).clamp(-1, 1)
    # x_s ~ N(sqrt(before) x0, 1 - before) and x | x_s ~ N(sqrt(share) x_s, 1 - share).
    precision = 1 / (1 - before) + share / (1 - share)
    weighted = math.sqrt(before) / (1 - before) * x0 + math.sqrt(share) / (1 - share) * x
    expected = weighted / precision + z / math.sqrt(precision)
    coefficients = row(
        x0_state=1 / math.sqrt(now),
        x0_prediction=-math.sqrt(1 / now - 1),
        x0=math.sqrt(before) * (1 - share) / (1 - now),
        state=math.sqrt(share) * (1 - before) / (1 - now),
        noise=math.sqrt((1 - before) / (1 - now) * (1 - share)),
    )
    with pf.use_backend(backend):
        y, found = pf.ops.denoise_step(
            x, eps, coefficients, noise=z, add_noise=True, clip=1.0, return_x0=True
        )
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found, x0, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_dynamic_threshold_is_torch_s_quantile(backend):
    x, m = doubles(*SHAPE, count=2)
    scale = torch.tensor([0.1, 1.0, 3.0, 30.0], dtype=torch.float64).reshape(4, 1, 1, 1)
    x0 = scale * x + 0.5 * m
    rows = torch.stack([row(x0_state=s, x0_prediction=0.5, x0=1) for s in scale.flatten()])
    bound = torch.quantile(x0.abs().flatten(1), 0.9, dim=1).clamp(1, 20).reshape(4, 1, 1, 1)
    assert (bound == 1).any()
    assert (bound == 20).any()
    with pf.use_backend(backend):
        options = {"clip": 1.0, "quantile": 0.9, "quantile_limit": 20.0}
        y, _ = pf.ops.denoise_step(x, m, rows, **options)
        torch.testing.assert_close(y, x0.clamp(-bound, bound) / bound, rtol=1e-12, atol=1e-12)
        m[1, 0, 0, 0] = math.nan
        y, _ = pf.ops.denoise_step(x, m, rows, **options)
    assert y[1].isnan().all()
    assert y[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_guidance(backend):
    x, m, u = doubles(*SHAPE, count=3)
    coefficients = row(x0_state=0.5, x0_prediction=2, x0=1, prediction=0.25)

    def step(prediction, **options):
        with pf.use_backend(backend):
            return pf.ops.denoise_step(x, prediction, coefficients, **options)[0]

    torch.testing.assert_close(step(m, unconditional=u, guidance=1.0), step(m))
    torch.testing.assert_close(step(m, unconditional=u, guidance=0.0), step(u))
    scales = torch.tensor([0.0, 1.0, 2.5, 7.0], dtype=torch.float64)
    mixed = u + scales.reshape(4, 1, 1, 1) * (m - u)
    torch.testing.assert_close(step(m, unconditional=u, guidance=scales), step(mixed))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_learned_variance_lies_between_its_bounds_in_logarithms(backend):
    x, z = doubles(*SHAPE, count=2)
    v = torch.tensor([-1.0, 0.0, 1.0, 0.5]).double().reshape(4, 1, 1, 1).expand(SHAPE)
    coefficients = row(noise=2, log_min=math.log(0.01), log_max=math.log(0.04))
    with pf.use_backend(backend):
        y, _ = pf.ops.denoise_step(x, x, coefficients, noise=z, add_noise=True, variance=v)
    expected = [0.1, math.sqrt(0.02), 0.2, 0.2 / 2**0.25]
    for k, deviation in enumerate(expected):
        torch.testing.assert_close(y[k], 2 * deviation * z[k])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_its_parts(backend):
    """1 x 64 and 4 x 16 samples have the same noise, with a row for each sample."""
    x, m = torch.randn(2, 64, 3, 4, 4)
    rows = torch.randn(64, len(COEFFICIENTS))
    with pf.use_backend(backend):
        whole, _ = pf.ops.denoise_step(x, m, rows, 5, stream=2, add_noise=True)
        parts = [
            pf.ops.denoise_step(
                *(t[k : k + 16] for t in (x, m, rows)),
                5,
                stream=2,
                sample_offset=k,
                add_noise=True,
            )[0]
            for k in range(0, 64, 16)
        ]
    assert torch.equal(whole, torch.cat(parts))


def test_guided_sampling_has_gradients():
    """Through the state, predictions, coefficients and guidance, against finite differences; a clip that binds."""
    x, m, u, h = (t.requires_grad_() for t in doubles(3, 4, count=4))
    coefficients = torch.randn(len(COEFFICIENTS), dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def step(x, m, u, h, coefficients, scale):
        return pf.ops.denoise_step(
            x,
            m,
            coefficients,
            3,
            add_noise=True,
            unconditional=u,
            guidance=scale,
            history2=h,
            clip=1.5,
            return_x0=True,
        )

    assert torch.autograd.gradcheck(step, (x, m, u, h, coefficients, scale))
    with torch.no_grad():
        plain = step(x, m, u, h, coefficients, scale)
    for a, b in zip(step(x, m, u, h, coefficients, scale), plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", [1, 2, 3])
def test_each_history_counts_alone(backend, which):
    x, h = doubles(*SHAPE, count=2)
    name = f"history{which}"
    with pf.use_backend(backend):
        y, _ = pf.ops.denoise_step(x, x, row(state=2, **{name: 3}), **{name: h})
    torch.testing.assert_close(y, 2 * x + 3 * h)


def test_a_prediction_of_another_dtype_is_converted():
    x, m = torch.randn(2, 4, 6)
    coefficients = row(state=1, prediction=1)
    y, _ = pf.ops.denoise_step(x, m.bfloat16(), coefficients)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, x + m.bfloat16().float())


def test_a_whole_loop_compiles():
    """Many steps, each with its row of a table and its stream of noise, without a graph break."""
    table = torch.randn(5, len(COEFFICIENTS)) / 3

    def loop(x, seed):
        for k in range(5):
            x, _ = pf.ops.denoise_step(x, torch.tanh(x), table[k], seed, stream=k, add_noise=True)
        return x

    x, seed = torch.randn(4, 6), torch.tensor(7)
    compiled = torch.compile(loop, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, seed), loop(x, seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "given", ["", "noise", "guidance", "guidances", "histories", "clip", "rows", "all"]
)
def test_the_short_way_is_the_long_one(dtype, given):
    """Which the number of the first sample, where no noise depends on it, asks for."""
    x, prediction, *more = torch.randn(7, 2, 3, 5, dtype=dtype)
    factors, options = torch.randn(11, dtype=dtype), {"return_x0": given != "clip"}
    if given == "rows":
        factors = torch.randn(2, 11, dtype=dtype)
    if given in ("noise", "all"):
        options |= {"noise": more[0], "add_noise": True}
    if given in ("guidance", "all"):
        options |= {"unconditional": more[1], "guidance": 2.5}
    if given in ("guidances", "all"):
        scales = torch.tensor([2.5, -1.0], dtype=dtype)
        options |= {"unconditional": more[1], "guidance": scales[0] if given == "all" else scales}
    if given in ("histories", "all"):
        options |= {"history1": more[2], "history2": more[3], "history3": more[4]}
    if given in ("clip", "all"):
        options |= {"clip": 0.4}
    for short, long in zip(
        pf.ops.denoise_step(x, prediction, factors, **options),
        pf.ops.denoise_step(x, prediction, factors, sample_offset=1, **options),
        strict=True,
    ):
        assert (short is long is None) or torch.equal(short, long)


@pytest.mark.parametrize("seed", [7, 2**64 - 1, -5, None])
@pytest.mark.parametrize("own", [True, False])
def test_noise_made_on_the_short_way_is_that_of_the_long_one(seed, own):
    """Which coefficients that do not lie next to each other ask for."""
    x, prediction = torch.randn(2, 3, 2, 5)
    generator = torch.Generator() if own and seed is None else None
    options = {"add_noise": True, "stream": 3, "sample_offset": 4, "generator": generator}
    state = torch.get_rng_state()

    def step(coefficients):
        torch.set_rng_state(state) if generator is None else generator.manual_seed(1)
        return pf.ops.denoise_step(x, prediction, coefficients, seed, **options)[0]

    assert torch.equal(step(torch.ones(11)), step(torch.ones(22)[::2]))
    first, second = (
        pf.ops.denoise_step(x, prediction, torch.ones(11), seed, **options)[0] for _ in range(2)
    )
    assert torch.equal(first, second) == (seed is not None)


@pytest.mark.parametrize("more", [{"stream": -1}, {"sample_offset": 2**32 - 1}, {"seed": 2**64}])
def test_a_wrong_seed_is_refused_on_either_way(more):
    x = torch.randn(2, 5)
    with pytest.raises(ValueError, match=next(iter(more))):
        pf.ops.denoise_step(x, x, torch.ones(11), **({"seed": 1, "add_noise": True} | more))
    with pytest.raises(ValueError, match=next(iter(more))):
        pf.ops.diffuse(x, x[:, 0].clone(), x[:, 1].clone(), **({"seed": 1} | more))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"guidance": torch.zeros(3)}, "guidance must be a number"),
        ({"guidance": torch.zeros(2, 1)}, "guidance must be a number"),
        ({"guidance": torch.zeros(2, device="meta")}, "guidance must be on cpu"),
        ({"coefficients": torch.zeros(3, 11)}, "coefficients must have shape"),
        ({"coefficients": torch.zeros(2, 10)}, "coefficients must have shape"),
    ],
)
def test_the_short_way_refuses_what_the_long_one_does(wrong, says):
    x, u = torch.randn(2, 2, 5)
    options = {"unconditional": u, "guidance": 2.0, "coefficients": torch.randn(11)} | wrong
    with pytest.raises(ValueError, match=says):
        pf.ops.denoise_step(x, x, **options)


def test_guidance_in_another_type_counts():
    x, m, u = doubles(*SHAPE, count=3)
    coefficients = row(state=0.5, x0_prediction=1, x0=1)
    y, _ = pf.ops.denoise_step(x, m, coefficients, unconditional=u, guidance=torch.tensor(2.0))
    torch.testing.assert_close(y, 0.5 * x + u + 2 * (m - u))
