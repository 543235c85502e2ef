"""The same numbers as the schedulers of `diffusers`, step by step from their configurations, with the noise given."""

import diffusers.schedulers.scheduling_ddim as their_ddim
import diffusers.schedulers.scheduling_ddpm as their_ddpm
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from pyfastgan.diffusion import (
    DDIM,
    DDPM,
    DPMSolverPP,
    Euler,
    FlowMatching,
    Heun,
    NoiseSchedule,
    UniPC,
)

SHAPE = (2, 3, 4, 4)


def normals(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(ours, theirs):
    """1e-6 of the largest number, as float32 sums of several terms have it."""
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


def network(x, k):
    """A prediction that is neither noise nor data, so that every term counts."""
    return torch.tanh(x + 0.3 * k) + 0.1 * normals(k, x.shape)


def compare(sampler, scheduler, step, scaled=False):
    """Every stage from the peer's own state; `scaled` where that is x / alpha."""
    x = normals(99) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    kept = {}
    assert len(scheduler.timesteps) == len(sampler.stages)
    for k, t in enumerate(scheduler.timesteps):
        noise = normals(1000 + k)
        level, goal = (sampler.stages[j].level for j in (k, min(k + 1, len(sampler.stages) - 1)))
        last = k + 1 == len(sampler.stages)
        here = sampler.alphas[level] if scaled else 1.0
        there = (sampler.alphas[sampler.steps] if last else sampler.alphas[goal]) if scaled else 1.0
        prediction = network(x * here, k)
        given = {"noise": noise} if sampler.stages[k].noise else {}
        ours = sampler.step(k, x * here, prediction, kept, **given)
        x = step(prediction, t, x, noise)
        close(ours, x * there)


SCHEDULES = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    {"trained_betas": [0.001 * (k + 1) for k in range(100)], "num_train_timesteps": 100},
]
IDS = ["linear", "scaled", "cosine, v", "trained"]


@pytest.mark.parametrize("config", SCHEDULES, ids=IDS)
@pytest.mark.parametrize("zero", [False, True])
def test_tables_and_add_noise(config, zero):
    scheduler = DDPMScheduler(**config, rescale_betas_zero_snr=zero)
    schedule = NoiseSchedule.from_diffusers(scheduler.config)
    assert torch.equal(schedule.alpha_squared, scheduler.alphas_cumprod)
    level = torch.tensor([0, 1, len(schedule) // 2, len(schedule) - 1])
    x0, noise = normals(0, (4, 3, 5)), normals(1, (4, 3, 5))
    ours, _ = schedule.add_noise(x0, level, noise=noise)
    close(ours, scheduler.add_noise(x0, noise, level))


def test_the_sigmoid_schedule():
    scheduler = DDPMScheduler(beta_schedule="sigmoid")
    schedule = NoiseSchedule.from_diffusers(scheduler.config)
    assert torch.equal(schedule.alpha_squared, scheduler.alphas_cumprod)


@pytest.mark.parametrize("config", SCHEDULES, ids=IDS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm(config, variance, monkeypatch):
    scheduler = DDPMScheduler(**config, variance_type=variance)
    scheduler.set_timesteps(10)
    schedule = NoiseSchedule.from_diffusers(scheduler.config)
    name = variance.removeprefix("fixed_")
    sampler = DDPM(schedule, scheduler.timesteps, clip=1.0, variance=name)

    def step(prediction, t, x, noise):
        monkeypatch.setattr(their_ddpm, "randn_tensor", lambda *a, **k: noise)
        return scheduler.step(prediction, t, x).prev_sample

    compare(sampler, scheduler, step)


def test_ddpm_with_every_level_and_a_dynamic_threshold(monkeypatch):
    options = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 3.0}
    scheduler = DDPMScheduler(50, **options)
    schedule = NoiseSchedule.from_diffusers(scheduler.config)
    sampler = DDPM(schedule, clip=1.0, quantile=0.9, quantile_limit=3.0)

    def step(prediction, t, x, noise):
        monkeypatch.setattr(their_ddpm, "randn_tensor", lambda *a, **k: noise)
        return scheduler.step(prediction, t, x).prev_sample

    compare(sampler, scheduler, step)


def test_ddpm_with_a_learned_variance(monkeypatch):
    scheduler = DDPMScheduler(variance_type="learned_range")
    scheduler.set_timesteps(8)
    schedule = NoiseSchedule.from_diffusers(scheduler.config)
    sampler = DDPM(schedule, scheduler.timesteps, clip=1.0, variance="learned")
    x, v = normals(1), torch.rand(SHAPE) * 2 - 1
    for k, t in enumerate(scheduler.timesteps):
        prediction, noise = network(x, k), normals(100 + k)
        monkeypatch.setattr(their_ddpm, "randn_tensor", lambda *a, noise=noise, **k: noise)
        given = {"noise": noise, "variance": v} if sampler.stages[k].noise else {}
        ours = sampler.step(k, x, prediction, {}, **given)
        x = scheduler.step(torch.cat((prediction, v), 1), t, x).prev_sample
        close(ours, x)


@pytest.mark.parametrize("config", SCHEDULES, ids=IDS)
@pytest.mark.parametrize(
    ("eta", "clip", "clipped"), [(0.0, None, False), (0.7, 1.0, False), (1.0, 1.0, True)]
)
def test_ddim(config, eta, clip, clipped, monkeypatch):
    scheduler = DDIMScheduler(**config, clip_sample=clip is not None)
    scheduler.set_timesteps(10)
    schedule = NoiseSchedule.from_diffusers(scheduler.config)
    sampler = DDIM(schedule, scheduler.timesteps, clip=clip, eta=eta, clipped_noise=clipped)

    def step(prediction, t, x, noise):
        monkeypatch.setattr(their_ddim, "randn_tensor", lambda *a, **k: noise)
        options = {"eta": eta, "use_clipped_model_output": clipped}
        return scheduler.step(prediction, t, x, **options).prev_sample

    compare(sampler, scheduler, step)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_euler_and_heun(prediction, spacing):
    """linspace gives levels between those of the table."""
    options = {"prediction_type": prediction, "timestep_spacing": spacing}
    options |= {"steps_offset": 1} if spacing == "leading" else {}
    for kind, ours in ((EulerDiscreteScheduler, Euler), (HeunDiscreteScheduler, Heun)):
        scheduler = kind(**options)
        scheduler.set_timesteps(7)
        levels = list(dict.fromkeys(scheduler.timesteps.tolist()))
        sampler = ours(NoiseSchedule.from_diffusers(scheduler.config), levels)
        compare(
            sampler, scheduler, lambda m, t, x, _, s=scheduler: s.step(m, t, x).prev_sample, True
        )


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@pytest.mark.parametrize("stochastic", [False, True])
def test_dpm_solver_multistep(order, steps, solver, stochastic):
    algorithm = "sde-dpmsolver++" if stochastic else "dpmsolver++"
    scheduler = DPMSolverMultistepScheduler(
        solver_order=order, solver_type=solver, algorithm_type=algorithm
    )
    scheduler.set_timesteps(steps)
    schedule = NoiseSchedule.from_diffusers(scheduler.config)
    options = {"order": order, "solver": solver, "stochastic": stochastic, "third": "compat"}
    sampler = DPMSolverPP(schedule, scheduler.timesteps, **options)

    def step(prediction, t, x, noise):
        return scheduler.step(prediction, t, x, variance_noise=noise).prev_sample

    compare(sampler, scheduler, step)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
def test_dpm_solver_singlestep(order, solver):
    scheduler = DPMSolverSinglestepScheduler(solver_order=order, solver_type=solver)
    scheduler.set_timesteps(3 * order + 1)
    schedule = NoiseSchedule.from_diffusers(scheduler.config)
    sampler = DPMSolverPP(
        schedule, scheduler.timesteps, order=order, solver=solver, variant="singlestep"
    )
    compare(sampler, scheduler, lambda m, t, x, _: scheduler.step(m, t, x).prev_sample)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [6, 15])
def test_unipc(order, steps):
    scheduler = UniPCMultistepScheduler(solver_order=order)
    scheduler.set_timesteps(steps)
    schedule = NoiseSchedule.from_diffusers(scheduler.config)
    sampler = UniPC(schedule, scheduler.timesteps, order=order)
    compare(sampler, scheduler, lambda m, t, x, _: scheduler.step(m, t, x).prev_sample)


def test_flow_matching_euler():
    scheduler = FlowMatchEulerDiscreteScheduler(100, shift=3.0)
    schedule = NoiseSchedule.from_diffusers(scheduler.config)
    level = torch.tensor([0, 40, 99])
    x0, noise = normals(0, (3, 5)), normals(1, (3, 5))
    ours, _ = schedule.add_noise(x0, level, noise=noise)
    close(ours, scheduler.scale_noise(x0, schedule.time[level], noise))
    scheduler.set_timesteps(
        sigmas=[(schedule.sigma[k] / (3 - 2 * schedule.sigma[k])).item() for k in range(99, -1, -1)]
    )
    scheduler.init_noise_sigma = 1.0
    sampler = FlowMatching(schedule)
    compare(sampler, scheduler, lambda m, t, x, _: scheduler.step(m, t, x).prev_sample)


def test_unknown_and_unsupported_keys_are_refused():
    config = dict(DDPMScheduler().config)
    with pytest.raises(ValueError, match="unknown key 'beta_strat'; did you mean 'beta_start'"):
        NoiseSchedule.from_diffusers(config | {"beta_strat": 1e-4})
    with pytest.raises(ValueError, match="use_karras_sigmas=True is not supported"):
        NoiseSchedule.from_diffusers(config | {"use_karras_sigmas": True})
    with pytest.raises(ValueError, match="beta_schedule must be one of linear"):
        NoiseSchedule.from_diffusers(config | {"beta_schedule": "liner"})
    with pytest.raises(ValueError, match="prediction_type must be one of epsilon"):
        NoiseSchedule.from_diffusers(config | {"prediction_type": "flow"})


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_a_zero_terminal_signal_of_schedulers_that_work_on_sigma(kind):
    """They keep it finite."""
    config = {
        "beta_schedule": "scaled_linear",
        "beta_end": 0.012,
        "prediction_type": "v_prediction",
    }
    scheduler = kind(rescale_betas_zero_snr=True, **config)
    schedule = NoiseSchedule.from_diffusers(scheduler.config)
    assert torch.equal(schedule.alpha_squared, scheduler.alphas_cumprod)
    assert float(schedule.alpha_squared[-1]) == 2**-24


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (5, "config must be a mapping, got int"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be at least 1"),
        ({"num_train_timesteps": "9"}, "num_train_timesteps must be int, got '9'"),
        ({"beta_start": "a"}, "beta_start must be float, got 'a'"),
        ({"shift": -1.0}, "shift must be at least 0, got -1.0"),
        ({"trained_betas": []}, "with at least one level"),
    ],
)
def test_mistakes_in_a_configuration_are_named(config, says):
    with pytest.raises((TypeError, ValueError), match=says):
        NoiseSchedule.from_diffusers(config)
