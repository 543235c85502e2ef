"""Losses written out, couplings, guidance, self-conditioning, and samples by their seeds."""

import itertools
import math

import pytest
import torch

import pyfastgan as pf
from pyfastgan.diffusion import (
    DDIM,
    DDPM,
    EDM,
    SAMPLERS,
    DiffusionConfig,
    DPMSolverPP,
    FlowMatching,
    Levels,
    NoiseSchedule,
    Path,
    Sigmas,
    edm_input_scale,
    edm_time,
    guide,
    make_process,
    make_sampler,
    optimal_assignment,
    target,
)
from pyfastgan.diffusion.guidance import SelfConditioned, rescaled
from pyfastgan.diffusion.prediction import PREDICTIONS
from pyfastgan.training.rng import derive_seed

from .models import HALF, KNOWN, images, levels, points

DATA = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("weighting", ["none", "min-snr"])
def test_the_loss_of_levels_written_out(prediction, weighting):
    model = points(levels(prediction, weighting=weighting, gamma=2.0), shift=0.5, scale=2.0)
    place = {"seed": 7, "sample_offset": 3}
    found = model(DATA, stream=2, **place)
    u = pf.ops.random_uniform((6, 1), 7, stream=8, sample_offset=3)[:, 0]
    level = (u * 50).long()
    assert level.unique().numel() > 2
    schedule = model.process.schedule
    a, s = schedule.alpha[level].float()[:, None], schedule.sigma[level].float()[:, None]
    x0, z = (DATA - 0.5) / 2, pf.ops.random_normal((6, 3), 7, stream=9, sample_offset=3)
    x = a * x0 + s * z
    wanted = {"eps": z, "x0": x0, "v": a * z - s * x0}[prediction]
    error = (model.network(x, level.float()) - wanted).square().mean(1)
    snr = (a / s).square()[:, 0]
    if weighting == "min-snr":
        # Hang et al. 2023, section 3.4: min(SNR, gamma) on x_0, in units of each prediction.
        least = torch.minimum(snr, torch.tensor(2.0))
        error = error * {"eps": least / snr, "x0": least, "v": least / (snr + 1)}[prediction]
    torch.testing.assert_close(found, {"loss": error.mean()}, rtol=1e-4, atol=1e-6)


def test_the_losses_of_edm_and_flow_matching_written_out():
    edm, flow = points(Sigmas()), points(Path())
    z = pf.ops.random_normal((6, 3), 7, stream=1)
    sigma = torch.exp(-1.2 + 1.2 * pf.ops.random_normal((6, 1), 7, stream=0))
    c_in, c_skip = (sigma**2 + 0.25) ** -0.5, 0.25 / (sigma**2 + 0.25)
    c_out = sigma * 0.5 / (sigma**2 + 0.25) ** 0.5
    x = DATA + sigma * z
    denoised = c_skip * x + c_out * edm.network(c_in * x, sigma[:, 0].log() / 4)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    expected = (weight * (denoised - DATA).square()).mean()
    torch.testing.assert_close(edm(DATA, seed=7)["loss"], expected, rtol=1e-4, atol=1e-6)
    t = pf.ops.random_uniform((6, 1), 7, stream=0)
    velocity = flow.network((1 - t) * DATA + t * z, t[:, 0])
    expected = (velocity - (z - DATA)).square().mean()
    torch.testing.assert_close(flow(DATA, seed=7)["loss"], expected, rtol=1e-4, atol=1e-6)


def test_edm_preconditioning_keeps_unit_variance():
    """Karras et al. 2022, appendix B.6: inputs and targets of the network have variance 1 whatever sigma, and the
    squared error of the network is that of the denoiser over c_out^2."""
    n = 200_000
    x0 = 0.5 * pf.ops.random_normal((n, 1), 1, dtype=torch.float64)
    z = pf.ops.random_normal((n, 1), 2, dtype=torch.float64)
    for sigma in (0.01, 0.5, 40.0):
        s = torch.full((n,), sigma, dtype=torch.float64)
        wanted = target("edm", x0, z, torch.ones_like(s), s)
        assert float(wanted.var()) == pytest.approx(1, abs=0.02)
        state = (x0 + sigma * z) * edm_input_scale(s)[:, None]
        assert float(state.var()) == pytest.approx(1, abs=0.02)
        pair = PREDICTIONS["edm"].x0(torch.ones(1).double(), torch.tensor([sigma]).double())
        torch.testing.assert_close(pair.state * (x0 + sigma * z) + pair.prediction * wanted, x0)
    assert float(edm_time(torch.tensor(math.e**4))) == pytest.approx(1)


def test_the_hybrid_loss_leaves_the_mean_to_the_squared_error():
    model = points(levels(), learned_variance=True)
    found = model(DATA, seed=3)
    assert found.keys() == {"loss", "error", "bound"}
    torch.testing.assert_close(found["loss"], found["error"] + 0.001 * found["bound"])
    model.zero_grad()
    found["bound"].backward()
    grad = model.network.output.weight.grad
    assert not grad[:3].any()
    assert grad[3:].any()
    # 50 levels: 50 times the mean term of the levels drawn, in bits/dim.
    times = model.process.draw(6, torch.device("cpu"), 3, 0, 0)
    x_t, _ = pf.ops.diffuse(DATA, times.alpha, times.sigma, 3, stream=1)
    mean, variance = model.network(x_t, times.time).chunk(2, 1)
    term = model.process.schedule.vlb(DATA, x_t, mean, variance, times.level)
    expected = 50 * term.mean() / (3 * math.log(2))
    torch.testing.assert_close(found["bound"], expected, rtol=1e-4, atol=1e-5)


def test_noise_of_a_batch_in_parts_is_that_of_the_whole():
    for process in (levels(), Sigmas(), Path()):
        model = points(process)
        whole = model(DATA, seed=5, stream=1)["loss"]
        parts = [model(DATA[k : k + 2], seed=5, stream=1, sample_offset=k) for k in (0, 2, 4)]
        torch.testing.assert_close(torch.stack([p["loss"] for p in parts]).mean(), whole)


def test_self_conditioning_in_training_and_sampling():
    model = points(levels(), self_conditioning=True)
    seen = []
    model.network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("x0")), with_kwargs=True
    )
    with_estimate = [step for step in range(20) if derive_seed(5, step) % 2]
    assert 4 < len(with_estimate) < 16
    for step in range(20):
        seen.clear()
        model(DATA, seed=5, stream=step)
        assert len(seen) == (2 if step in with_estimate else 1)
        if step in with_estimate:
            # The estimate comes of a first pass without one, and has no gradient.
            assert seen[0] is None
            assert not seen[1].requires_grad
    seen.clear()
    sampler = make_sampler(model.process, "ddim", 4)
    x = sampler.initial_noise((2, 3), 0)
    network = SelfConditioned(
        lambda x, t, c=None, x0=None: model.network(x, t, c, x0=x0), sampler, 0.5
    )
    sampler.sample(network, x)
    assert seen[0] is None
    a, s = sampler.alphas[0].float(), sampler.sigmas[0].float()
    with torch.no_grad():
        first = model.network(x, sampler.times[0].float().expand(2), x0=None)
    torch.testing.assert_close(seen[1], ((x - s * first) / a).clamp(-0.5, 0.5))


def test_the_optimal_assignment_against_all_permutations():
    for n, seed in itertools.product((1, 2, 5, 6), range(5)):
        x, z = torch.randn(2, n, 3, generator=torch.Generator().manual_seed(seed)).unbind(0)
        found = optimal_assignment(x, z)
        assert sorted(found.tolist()) == list(range(n))
        costs = [
            float((x - z[list(order)]).square().sum()) for order in itertools.permutations(range(n))
        ]
        assert float((x - z[found]).square().sum()) == pytest.approx(min(costs), rel=1e-5)
    with pytest.raises(ValueError, match="x0 and noise must be of one shape"):
        optimal_assignment(x, z[:3])
    with pytest.raises(ValueError, match="x0 and noise must be finite"):
        optimal_assignment(x * math.nan, z)


def test_ot_cfm_permutes_its_noise():
    model = points(Path(), coupling="optimal")
    z = pf.ops.random_normal((6, 3), 7, stream=1)
    z = z[optimal_assignment(DATA, z)]
    t = pf.ops.random_uniform((6, 1), 7, stream=0)
    velocity = model.network((1 - t) * DATA + t * z, t[:, 0])
    expected = (velocity - (z - DATA)).square().mean()
    torch.testing.assert_close(model(DATA, seed=7)["loss"], expected, rtol=1e-4, atol=1e-6)


def test_guidance_arithmetic():
    yes, no = torch.randn(2, 4, 3, 5).unbind(0)
    assert torch.equal(guide(yes, no, 1.0), no + (yes - no))
    torch.testing.assert_close(guide(yes, no, 3.0), 3 * yes - 2 * no)
    scale = torch.tensor([0.0, 1.0, 2.0, 3.0])
    torch.testing.assert_close(guide(yes, no, scale)[2], 2 * yes[2] - no[2])
    whole = guide(yes, no, 4.0, 1.0)
    torch.testing.assert_close(whole.std((1, 2)), yes.std((1, 2)))
    torch.testing.assert_close(guide(yes, no, 4.0, 0.3), 0.3 * whole + 0.7 * guide(yes, no, 4.0))
    with pytest.raises(ValueError, match=r"rescale must lie in \[0, 1\], got 1.5"):
        guide(yes, no, 1.0, 1.5)


def test_guidance_in_sampling():
    """A scale of 1 is the conditional model, and the fused combination is that of `guide`; rescale changes it."""
    model = points(levels("v"), classes=4)
    draw = lambda **o: model.sample(5, 3, labels=2, sampler="ddim", steps=6, **o)  # noqa: E731
    assert torch.equal(draw(), draw(guidance=1.0))
    strong = draw(guidance=3.0)
    assert (strong - draw()).abs().max() > 1e-3
    sampler = make_sampler(model.process, "ddim", 6)
    labels = torch.full((5,), 2)
    network = rescaled(model.network, torch.full((5,), 4), 3.0, 0.0)
    x = sampler.initial_noise((5, 3), 3)
    with torch.no_grad():
        expected = sampler.sample(network, x, condition=labels)
    torch.testing.assert_close(strong, expected, rtol=1e-4, atol=1e-4)
    assert (draw(guidance=3.0, rescale=0.7) - strong).abs().max() > 1e-3
    # A variance behind the prediction is left alone.
    network = rescaled(lambda x, t, c: torch.cat((x * c[:, None], x), 1), torch.zeros(2), 2.0, 0.5)
    out = network(torch.randn(2, 3), torch.ones(2), torch.ones(2))
    assert out.shape == (2, 6)


def test_hidden_labels():
    model = points(Path(), classes=4, label_dropout=0.4)
    labels = torch.arange(2000) % 4
    seen = model._hide(labels, 1, 2, 0)
    assert (seen == 4).float().mean() == pytest.approx(0.4, abs=0.04)
    assert ((seen == 4) | (seen == labels)).all()
    assert torch.equal(model._hide(labels[500:], 1, 2, 500), seen[500:])


ALL = [
    *((levels("v"), name) for name in SAMPLERS if name not in ("edm", "midpoint", "rk4")),
    *((Sigmas(), name) for name in ("edm", "euler", "heun", "dpmpp-3m", "unipc")),
    *((Path(), name) for name in ("euler", "midpoint", "heun", "rk4", "dpmpp-2m", "unipc")),
]


@pytest.mark.parametrize(("process", "name"), ALL, ids=[f"{type(p).__name__}-{n}" for p, n in ALL])
def test_every_sampler_draws_the_same_for_a_seed_in_any_batch(process, name):
    """A seed for the batch and its places, and a seed for each sample, in any order."""
    model = points(process)
    whole = model.sample(7, 11, sampler=name, steps=5)
    assert whole.isfinite().all()
    torch.testing.assert_close(model.sample(7, 11, sampler=name, steps=5, batch_size=3), whole)
    seeds = torch.tensor([5, 900, 17, 2**40])
    each = model.sample(4, seeds, sampler=name, steps=5)
    parts = model.sample(4, seeds, sampler=name, steps=5, batch_size=3)
    torch.testing.assert_close(parts, each, rtol=1e-4, atol=1e-4)
    assert (each[0] - each[1]).abs().max() > 1e-3
    for k in range(4):
        alone = model.sample(1, seeds[k : k + 1], sampler=name, steps=5)
        torch.testing.assert_close(alone[0], each[k], rtol=1e-4, atol=1e-4)


def test_images_by_seed():
    model = images(levels(), classes=3)
    seeds = torch.arange(6)
    whole = model.sample(6, seeds, steps=4)
    assert whole.shape == (6, 1, 8, 8)
    assert whole.abs().max() <= 1
    # The class follows the seed, not the place.
    torch.testing.assert_close(model.sample(2, seeds[4:], steps=4), whole[4:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", [images, points])
def test_a_whole_sampling_loop_of_a_model_compiles(make):
    """A U-Net in two calls, an MLP in seven; guidance, classes and fresh noise in both."""
    model = make(levels("v"), classes=3)
    name, steps = ("ddpm", 2) if make is images else ("dpmpp-3m", 3)
    sampler = make_sampler(model.process, name, steps, clip=1.0)
    labels, nothing = torch.tensor([0, 2]), torch.tensor([3, 3])
    options = {"condition": labels, "no_condition": nothing, "guidance": 2.0}
    seed = torch.tensor(4)

    def loop(x):
        return sampler.sample(lambda x, t, c: model.network(x, t, c), x, seed, **options)

    x = sampler.initial_noise((2, *model.shape), 0)
    with torch.no_grad():
        expected = loop(x)
        torch._dynamo.reset()
        found = torch.compile(loop, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


BAD = [
    (lambda: points(levels()).sample(2, 0, guidance=2.0), "guidance must be None for an uncond"),
    (lambda: points(levels()).sample(2, 0, labels=1), "labels must be None for an unconditional"),
    (lambda: points(levels(), classes=3).sample(2, 0, labels=3), r"labels must lie in \[0, 3\)"),
    (lambda: points(levels(), classes=3).sample(2, 0, guidance=math.inf), "guidance must be fin"),
    (lambda: points(levels(), classes=3)(DATA, seed=0), "labels must be given to a conditional"),
    (lambda: points(levels()).sample(0, 0), "count and batch_size must be at least 1, got 0"),
    (lambda: points(levels()).sample(2, torch.arange(3)), r"seed must be an int or int64 \(2,\)"),
    (lambda: points(levels()).sample(2, 0, sampler="dpm"), "sampler must be one of"),
    (lambda: points(levels()).sample(2, 0, sampler="edm"), "sampler must not be 'edm'"),
    (lambda: points(Sigmas()).sample(2, 0, sampler="rk4"), "sampler must not be 'rk4'"),
    (lambda: points(Path()).sample(2, 0, steps=-1), "steps must be at least 1, got -1"),
    (lambda: points(levels()).sample(2, 0, steps=51), r"steps must lie in \[1, 50\]"),
    (lambda: points(levels()).sample(2, 0, eta=0.5), "sampler 'dpmpp-2m' does not take eta"),
    (
        lambda: images(levels()).sample(3, 0, known=KNOWN, mask=HALF[..., :3]),
        r"mask must be of shape \(3, 1, 8, 8\) like known.*got \(1, 1, 8, 3\)",
    ),
    (lambda: images(levels()).sample(3, 0, known=KNOWN), "known and mask must be given together"),
    (
        lambda: images(levels()).sample(3, 0, known=KNOWN[..., :3], mask=HALF),
        r"known must be of shape \(3, 1, 8, 8\), got",
    ),
    (
        lambda: images(levels()).sample(3, 0, known=KNOWN, mask=HALF, repeats=2),
        "repeats must be 1 for DPMSolverPP",
    ),
    (
        lambda: images(levels()).sample(3, 0, known=KNOWN, mask=HALF, repeats=0),
        "repeats must be at least 1",
    ),
    (lambda: points(Sigmas(), coupling="optimal"), "coupling must be 'independent'"),
    (lambda: points(Path(), learned_variance=True), "learned_variance must be false"),
    (lambda: Levels(NoiseSchedule.linear(5), "max-snr"), "weighting must be one of"),
    (lambda: make_process("ddpm"), "objective must be one of diffusion, edm, flow"),
    # Of schedules: a timestep outside, sigma that does not decrease, an unknown key of diffusers.
    (lambda: NoiseSchedule.linear(10).grid([10]), r"timesteps must lie in \[0, 9\]"),
    (lambda: NoiseSchedule.from_sigmas([2.0, 1.0]), "sigma / alpha must grow"),
    (lambda: DDIM(NoiseSchedule.linear(10), [1, 5]), "sigma / alpha must fall"),
    (
        lambda: NoiseSchedule.from_diffusers({"beta_stat": 1e-4}),
        "unknown key 'beta_stat'; did you mean 'beta_start'",
    ),
]


@pytest.mark.parametrize("call", [c[0] for c in BAD], ids=range(len(BAD)))
def test_what_is_refused(call):
    text = next(t for c, t in BAD if c is call)
    with pytest.raises(ValueError, match=text):
        call()


def test_samplers_by_name():
    for name, kind, process in (
        ("dpmpp-3m", DPMSolverPP, levels()),
        ("edm", EDM, Sigmas()),
        ("heun", FlowMatching, Path()),
        ("ddpm", DDPM, levels()),
    ):
        assert type(make_sampler(process, name, 4)) is kind
    assert make_sampler(levels(), "dpmpp-3m").exact
    assert not make_sampler(levels(), "dpmpp-3m-compat").exact
    assert make_sampler(levels(), "ddpm", 4, learned_variance=True).variance == "learned"
    zero = Levels(NoiseSchedule.linear(50, prediction="v").zero_terminal_snr())
    assert points(zero).sample(2, 0, sampler="dpmpp-2m", steps=5).isfinite().all()


def test_the_weight_of_min_snr_is_bounded_by_something():
    with pytest.raises(ValueError, match="gamma must be positive, got 0"):
        make_process("diffusion", weighting="min-snr", gamma=0)


@pytest.mark.parametrize("field", ["levels", "min_snr_gamma"])
def test_fields_of_diffusion_mean_nothing_to_flow_matching(field):
    with pytest.raises(ValueError, match=f"{field} belongs to objective 'diffusion', got 7"):
        DiffusionConfig(objective="flow", **{field: 7})
