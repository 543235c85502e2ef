"""Samplers: orders of convergence, the distributions they reach, and what they refuse."""

import itertools
import math

import pytest
import torch

from pyfastgan.diffusion import (
    DDIM,
    DDPM,
    EDM,
    PREDICTIONS,
    DPMSolverPP,
    Euler,
    FlowMatching,
    Heun,
    NoiseSchedule,
    UniPC,
    edm_input_scale,
    edm_time,
    target,
)
from pyfastgan.ops import random_normal

from .mixture import HIGH, LOW, denoise, moments, solution

ONE = torch.tensor(1.0, dtype=torch.float64)


@pytest.fixture(scope="module")
def paths():
    """Where points end, of the equation itself."""
    x = HIGH * torch.randn(16, 2, generator=torch.Generator().manual_seed(0)).double()
    return x, solution(x)


def errors(paths, make, network, steps):
    x, end = paths
    found = []
    for n in steps:
        sampler = make(n)
        y = sampler.sample(network, x * sampler.alphas[0]) / sampler.alphas[sampler.steps]
        found.append((y - end).norm(dim=1).mean().item())
    return found


def check_order(found, order):
    for coarse, fine in zip(found[-3:], found[-2:]):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15), found


def on_sigmas(kind, **options):
    """Over Karras's levels from sigma 20 to 0.02."""

    def make(n):
        schedule = NoiseSchedule.karras(n + 1, LOW, HIGH, prediction="x0")
        return kind(schedule, final=None, **options)

    return make


def of_sigma(x, time):
    return denoise(x, ONE, time[0])


ORDERS = [
    ("Euler", on_sigmas(Euler), 1, (40, 80, 160)),
    ("DDIM", on_sigmas(DDIM), 1, (40, 80, 160)),
    ("Heun", on_sigmas(Heun), 2, (40, 80, 160)),
    ("EDM", on_sigmas(EDM), 2, (40, 80, 160)),
    ("DPM-Solver++ 2M", on_sigmas(DPMSolverPP), 2, (40, 80, 160)),
    ("2M, heun", on_sigmas(DPMSolverPP, solver="heun"), 2, (40, 80, 160)),
    ("2S", on_sigmas(DPMSolverPP, variant="singlestep"), 2, (80, 160, 320)),
    ("3M exact", on_sigmas(DPMSolverPP, order=3), 3, (160, 320, 640)),
    ("3M compat", on_sigmas(DPMSolverPP, order=3, third="compat"), 2, (80, 160, 320)),
    ("3S", on_sigmas(DPMSolverPP, order=3, variant="singlestep"), 3, (150, 300, 600)),
    ("3S, heun", on_sigmas(DPMSolverPP, order=3, variant="singlestep", solver="heun"), 3, (150, 300, 600)),
    # The corrector gives one order more than the predictor has.
    ("UniPC 1", on_sigmas(UniPC, order=1), 2, (40, 80, 160)),
    ("UniPC 2", on_sigmas(UniPC, order=2, lower_order_final=False), 3, (80, 160, 320)),
    ("UniPC 3", on_sigmas(UniPC, order=3, lower_order_final=False), 4, (160, 320, 640)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "order", "steps"), [c[1:] for c in ORDERS], ids=[c[0] for c in ORDERS]
)
def test_orders_of_convergence(paths, make, order, steps):
    check_order(errors(paths, make, of_sigma, steps), order)


@pytest.mark.parametrize(
    ("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)]
)
def test_orders_of_flow_matching(paths, method, order):
    def make(n):
        t = torch.linspace(LOW / (1 + LOW), HIGH / (1 + HIGH), n + 1, dtype=torch.float64)
        schedule = NoiseSchedule("flow", (1 - t) ** 2, t**2, t, prediction="flow")
        return FlowMatching(schedule, final=None, method=method)

    def velocity(x, time):
        t = time[0]
        return (x - denoise(x, 1 - t, t)) / t

    check_order(errors(paths, make, velocity, (40, 80, 160)), order)


def test_a_vp_schedule_converges_too(paths):
    """Third order with levels between those of the table for its start; noise is what the network predicts."""

    def make(n):
        # A table with the wanted levels, evenly spaced in ln(sigma / alpha).
        r = torch.linspace(math.log(LOW), math.log(HIGH), n + 1, dtype=torch.float64).exp()
        a2 = 1 / (1 + r**2)
        return DPMSolverPP(NoiseSchedule("vp", a2, 1 - a2, r), order=3, final=None)

    def noise(x, time):
        # The table's time is sigma / alpha, which is interpolated in its logarithm: exactly.
        r = time[0].log().exp()
        a = 1 / (1 + r**2) ** 0.5
        return (x - a * denoise(x, a, r * a)) / (r * a)

    found = errors(paths, make, noise, (20, 40, 80))
    assert found[-1] < 1e-4
    assert math.log2(found[-2] / found[-1]) > 2.5


def test_the_start_of_the_third_order_solver():
    """A first step alone, in the middle of the mixture: its error falls as the fourth power of its length."""
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(1)).double()
    found = []
    for h in (0.05, 0.025, 0.0125):
        sigmas = torch.tensor([0.8 * math.exp(-h), 0.8], dtype=torch.float64)
        sampler = DPMSolverPP(
            NoiseSchedule.from_sigmas(sigmas, prediction="x0"), order=3, final=None
        )
        y = sampler.sample(of_sigma, x)
        found.append((y - solution(x, 0.8, 0.8 * math.exp(-h))).norm(dim=1).mean().item())
    for coarse, fine in itertools.pairwise(found):
        assert math.log2(coarse / fine) == pytest.approx(4, abs=0.15), found


STOCHASTIC = {
    "DDPM": lambda: DDPM(NoiseSchedule.cosine(200), prediction="x0"),
    "DDIM, eta": lambda: DDIM(NoiseSchedule.cosine(200), prediction="x0", eta=1.0),
    "EDM with churn": lambda: EDM(NoiseSchedule.karras(40), prediction="x0", churn=30.0),
    "SDE 1": lambda: DPMSolverPP(
        NoiseSchedule.karras(100), prediction="x0", order=1, stochastic=True
    ),
    "SDE 2M": lambda: DPMSolverPP(NoiseSchedule.karras(60), prediction="x0", stochastic=True),
    "SDE 3M": lambda: DPMSolverPP(
        NoiseSchedule.karras(60), prediction="x0", order=3, stochastic=True
    ),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_reach_the_mixture(name):
    sampler = STOCHASTIC[name]()
    level = {"k": 0}

    def network(x, time):
        stage = sampler.stages[level["k"]]
        level["k"] += 1
        return denoise(
            x, sampler.alphas[stage.level].double(), sampler.sigmas[stage.level].double()
        )

    y = sampler.sample(network, sampler.initial_noise((3000, 2), 1), 2).double()
    mean, covariance = moments()
    assert (y.mean(0) - mean).abs().max() < 0.1
    assert (torch.cov(y.T) - covariance).abs().max() < 0.2


def test_edm_preconditioning():
    """The network sees c_in x and ln(sigma) / 4, and its prediction stands behind c_skip and c_out."""
    schedule = NoiseSchedule.karras(6, prediction="edm")
    sampler, plain = Heun(schedule), Heun(NoiseSchedule.karras(6, prediction="x0"))
    seen = []

    def raw(x, time):
        seen.append(time[0])
        return torch.tanh(x)

    def denoiser(x, sigma):
        s = sigma[0]
        torch.testing.assert_close(edm_time(s), seen.pop(0))
        skip, out = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25) ** 0.5
        return skip * x + out * torch.tanh(edm_input_scale(s) * x)

    x = sampler.initial_noise((3, 4), 0)
    y = sampler.sample(raw, x)
    torch.testing.assert_close(y, plain.sample(denoiser, x), rtol=1e-5, atol=1e-5)


def test_the_same_samples_in_a_batch_and_in_parts():
    """1 x 64 and 4 x 16, bitwise."""
    for make in (STOCHASTIC["DDPM"], STOCHASTIC["EDM with churn"]):
        sampler = make()

        def run(n, offset, sampler=sampler):
            x = sampler.initial_noise((n, 3), 5, sample_offset=offset)
            return sampler.sample(lambda x, t: 0.3 * x, x, 5, sample_offset=offset)

        parts = [run(16, k) for k in range(0, 64, 16)]
        assert torch.equal(run(64, 0), torch.cat(parts))


def test_noise_of_stages_differs_from_each_other_and_from_the_start():
    sampler = EDM(NoiseSchedule.karras(8), prediction="x0", churn=8.0)
    seen = []

    def network(x, time):
        seen.append(x.clone())
        return torch.zeros_like(x)

    x = sampler.initial_noise((1, 1000), 3)
    sampler.sample(network, x, 3)
    added = [seen[0] / x.std() - x / x.std()]
    # The state shrinks towards zero and gets noise before every second call.
    for k in range(2, len(seen), 2):
        ratio = sampler.grid.ratio
        shrunk = seen[k - 2] * float(ratio[k // 2] / sampler.sigmas[sampler.stages[k - 2].level])
        added.append(seen[k] - shrunk)
    correlation = torch.corrcoef(torch.cat([x, *added])) - torch.eye(len(added) + 1)
    assert correlation.abs().max() < 0.15


def test_guidance_and_conditions():
    sampler = DDIM(NoiseSchedule.linear(20))
    calls = []

    def network(x, time, condition):
        calls.append(len(x))
        return x * 0.1 + condition[:, None]

    x = sampler.initial_noise((3, 4), 0)
    yes, no = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)
    guided = sampler.sample(network, x, condition=yes, no_condition=no, guidance=2.0)
    assert set(calls) == {6}
    plain = sampler.sample(network, x, condition=2 * yes)
    torch.testing.assert_close(guided, plain, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="guidance must be None for an unconditional model"):
        sampler.sample(lambda x, t: x, x, guidance=2.0)


def test_a_learned_variance():
    schedule = NoiseSchedule.cosine(20)

    def run(variance, v):
        sampler = DDPM(schedule, variance=variance, clip=1.0)

        def network(x, time):
            m = 0.1 * x
            return torch.cat((m, torch.full_like(m, v)), 1) if variance == "learned" else m

        x = sampler.initial_noise((2, 3, 4), 0)
        return sampler.sample(network, x, 1, learned_variance=variance == "learned")

    torch.testing.assert_close(run("learned", 1.0), run("large", 0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run("learned", -1.0), run("small", 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [2, 3])
def test_a_single_step_solver_may_end_at_data_within_a_group(order):
    """The step to sigma = 0 stands alone: it ends at the predicted x_0."""
    sampler = DPMSolverPP(
        NoiseSchedule.karras(2 * order), order=order, variant="singlestep", prediction="x0"
    )
    y = sampler.sample(lambda x, t: torch.full_like(x, 0.25), torch.randn(2, 3))
    torch.testing.assert_close(y, torch.full_like(y, 0.25))


def test_after_is_asked_behind_every_stage():
    sampler = DDIM(NoiseSchedule.linear(5))
    seen = []

    def keep(k, x):
        seen.append(k)
        return torch.zeros_like(x)

    y = sampler.sample(lambda x, t: x, sampler.initial_noise((2, 3), 0), after=keep)
    assert seen == [0, 1, 2, 3, 4]
    assert not y.any()


def test_a_zero_terminal_signal_is_sampled_from_v_only():
    schedule = NoiseSchedule.linear(50).zero_terminal_snr()
    for kind in (DDPM, DDIM, Euler, DPMSolverPP):
        y = kind(schedule).sample(lambda x, t: 0.1 * x, torch.randn(2, 3), None)
        assert y.isfinite().all()
        with pytest.raises(ValueError, match="prediction 'eps' does not give x_0 at level 0"):
            kind(schedule, prediction="eps")


def test_a_whole_loop_compiles():
    for sampler in (
        DDPM(NoiseSchedule.linear(6), clip=1.0),
        DPMSolverPP(NoiseSchedule.karras(6), prediction="x0", order=3),
        EDM(NoiseSchedule.karras(4), prediction="edm", churn=2.0),
        UniPC(NoiseSchedule.cosine(6), order=3),
    ):
        x, seed = sampler.initial_noise((2, 4), 0), torch.tensor(3)

        def loop(x, seed, sampler=sampler):
            return sampler.sample(lambda x, t: torch.tanh(x), x, seed)

        expected = loop(x, seed)
        torch._dynamo.reset()
        compiled = torch.compile(loop, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, seed), expected)


def test_what_is_refused():
    vp, ve, flow = NoiseSchedule.linear(10), NoiseSchedule.karras(5), NoiseSchedule.flow(5)
    for call, text in (
        (lambda: DDPM(vp, variance="big"), "variance must be one of"),
        (lambda: DDIM(vp, eta=1.5), r"eta must lie in \[0, 1\]"),
        (lambda: DPMSolverPP(vp, order=4), "order must be 1, 2 or 3"),
        (
            lambda: DPMSolverPP(vp, variant="singlestep", stochastic=True),
            "variant must be multistep",
        ),
        (lambda: DPMSolverPP(vp, third="third"), "third must be one of"),
        (lambda: EDM(vp), "schedule must be of the ve path"),
        (lambda: EDM(ve, churn=-1.0), "churn must not be negative"),
        (lambda: DDIM(vp, prediction="edm"), "prediction 'edm' needs a ve schedule"),
        (lambda: FlowMatching(vp), "schedule must be of the flow path"),
        (lambda: FlowMatching(flow, clip=1.0), "clip must be None"),
        (lambda: FlowMatching(flow, method="rk45"), "method must be one of .*did you mean 'rk4'"),
        (lambda: UniPC(vp, order=0), "order must be 1, 2 or 3"),
        (lambda: DDIM(vp, [10]), "timesteps must lie in"),
    ):
        with pytest.raises(ValueError, match=text):
            call()


@pytest.mark.parametrize("path", ["vp", "ve", "flow"])
def test_what_the_network_predicts_does_not_matter(path):
    """Each prediction of one and the same x_0 gives the same samples, on every path."""
    schedule = {
        "vp": NoiseSchedule.linear(8),
        "ve": NoiseSchedule.karras(8),
        "flow": NoiseSchedule.flow(8),
    }[path]
    timesteps, found = [5, 3, 0], {}
    for name in set(PREDICTIONS) - ({"edm"} if path != "ve" else set()):
        sampler = DDIM(schedule, timesteps, prediction=name, clip=1.0)
        stages = iter(sampler.stages)

        def network(x, time, name=name, sampler=sampler, stages=stages):
            level = next(stages).level
            alpha, sigma = (t[level].expand(len(x)) for t in (sampler.alphas, sampler.sigmas))
            x = x / edm_input_scale(sigma[0]) if name == "edm" else x
            x0 = torch.tanh(2 * x)
            noise = (x - alpha[0] * x0) / sigma[0]
            return target(name, x0, noise, alpha, sigma)

        x = sampler.initial_noise((4, 3), 1, dtype=torch.float64)
        found[name] = sampler.sample(network, x)
    for y in found.values():
        torch.testing.assert_close(y, found["eps"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda s: DDIM("linear"), TypeError, "schedule must be a NoiseSchedule, got str"),
        (lambda s: DDIM(s, clip=-1.0), ValueError, "clip must be finite and positive"),
        (lambda s: DDIM(s, quantile=0.9), ValueError, "clip must be given with a quantile"),
        (lambda s: DDIM(s, [9], final=None), ValueError, "timesteps must be two or more"),
        (lambda s: DDIM(s, final=-1.0), ValueError, "final must not be negative"),
        (lambda s: DDIM(s, [float("nan")]), ValueError, "timesteps must lie in"),
        (lambda s: DDIM(s).sample(lambda x, t: x, "x"), TypeError, "x must be a tensor"),
        (
            lambda s: DDIM(s).sample(
                lambda x, t, c: x, torch.zeros(2, 3), condition=torch.zeros(3)
            ),
            ValueError,
            "condition must have 2 samples like x, got 3",
        ),
        (
            lambda s: DDPM(s, variance="learned").sample(lambda x, t: x, torch.zeros(2, 3), 0),
            ValueError,
            "learned_variance must be true",
        ),
        (
            lambda s: Heun(s.zero_terminal_snr()),
            ValueError,
            "timesteps must begin where there is a signal.* for Heun",
        ),
        (
            lambda s: EDM(NoiseSchedule.karras(5), churn=float("nan")),
            ValueError,
            "churn must not be negative, got nan",
        ),
    ],
)
def test_mistakes_are_named(call, error, says):
    with pytest.raises(error, match=says):
        call(NoiseSchedule.linear(10))


def test_churn_has_the_digits_of_float64():
    """The first state is the start and noise of the size that algorithm 2 says."""
    sampler = EDM(NoiseSchedule.karras(3), prediction="x0", churn=1.0)
    start, seen = torch.zeros(2, 3, dtype=torch.float64), []
    sampler.sample(lambda x, t: seen.append(x) or x, start, 7)
    gamma, sigma = min(1.0 / 3, 2**0.5 - 1), 80.0
    noise = random_normal((2, 3), 7, stream=len(sampler.stages) + 1, dtype=torch.float64)
    expected = sigma * ((1 + gamma) ** 2 - 1) ** 0.5 * noise
    torch.testing.assert_close(seen[0], expected, rtol=1e-12, atol=0)
