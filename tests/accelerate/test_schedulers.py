"""Schedulers of diffusers, step by step and in a pipeline."""

import copy
import dataclasses
import pickle

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers import scheduling_ddim
from diffusers.schedulers.scheduling_utils import SchedulerOutput

import pyfastgan as pf
from pyfastgan.acceleration.schedulers import common
from pyfastgan.ops import diffuse

SHAPE = (2, 3, 8, 8)
CLIP = {"clip_sample": True, "clip_sample_range": 0.8}
DYNAMIC = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.0}
V = {"prediction_type": "v_prediction"}
X0 = {"prediction_type": "sample"}
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SDE = {"algorithm_type": "sde-dpmsolver++"}
CASES = [
    (DDPMScheduler, CLIP, {}),
    (DDPMScheduler, {"variance_type": "fixed_large", **DYNAMIC}, {}),
    (DDPMScheduler, {"variance_type": "fixed_small_log", "clip_sample": False, **V, **LATENT}, {}),
    (DDPMScheduler, {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, **X0}, {}),
    (DDIMScheduler, CLIP, {}),
    (DDIMScheduler, {"clip_sample": False, **V}, {"eta": 0.7}),
    (DDIMScheduler, {**CLIP, **LATENT}, {"eta": 1.0, "use_clipped_model_output": True}),
    (DDIMScheduler, {"set_alpha_to_one": False, **DYNAMIC, **X0}, {}),
    (EulerDiscreteScheduler, LATENT, {}),
    (EulerDiscreteScheduler, {"use_karras_sigmas": True, **V}, {}),
    (EulerDiscreteScheduler, X0, {"s_churn": 0.5}),
    (EulerDiscreteScheduler, X0, {}),
    (FlowMatchEulerDiscreteScheduler, {"shift": 3.0}, {}),
    (FlowMatchEulerDiscreteScheduler, {"stochastic_sampling": True}, {}),
    *((DPMSolverMultistepScheduler, {"solver_order": n}, {}) for n in (1, 2, 3)),
    *((DPMSolverMultistepScheduler, {"solver_order": n, **SDE}, {}) for n in (1, 2, 3)),
    (DPMSolverMultistepScheduler, {"solver_type": "heun", **V, **DYNAMIC}, {}),
    (DPMSolverMultistepScheduler, {"solver_type": "heun", **SDE, **X0}, {}),
    (
        DPMSolverMultistepScheduler,
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        {},
    ),
]
IDS = [f"{k} {kind.__name__}" for k, (kind, *_) in enumerate(CASES)]


def normals(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(scheduler, options, steps=8):
    """Every state on the way, and what else a step gives."""
    scheduler.set_timesteps(steps)
    x = normals(0) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    found = []
    torch.manual_seed(3)
    for k, t in enumerate(scheduler.timesteps):
        if isinstance(scheduler, EulerDiscreteScheduler):
            x = scheduler.scale_model_input(x, t) * (scheduler.sigmas[k] ** 2 + 1) ** 0.5
        prediction = torch.tanh(x) + 0.1 * normals(k)
        output = scheduler.step(prediction, t, x, **options)
        x = output.prev_sample
        found += list(output.values())
    return found


@pytest.mark.parametrize(("kind", "config", "options"), CASES, ids=IDS)
def test_sampling(kind, config, options):
    theirs, ours = kind(**config), kind(**config)
    report = pf.accelerate(ours)
    assert [r.kind for r in report.replaced] == [kind.__name__]
    assert isinstance(ours, kind)
    assert ours.config == theirs.config
    for a, b in zip(sample(ours, options), sample(theirs, options), strict=True):
        size = float(b.abs().max())
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5 * size)
    assert vars(ours).keys() == vars(theirs).keys()

    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is type(ours)
    report.revert()
    assert type(ours) is kind


@pytest.mark.parametrize("kind", [scheduling_ddim.DDIMSchedulerOutput, SchedulerOutput])
def test_outputs_are_as_the_library_makes_them(kind):
    tensors = dict(zip((f.name for f in dataclasses.fields(kind)), normals(0), strict=False))
    ours, theirs = common.output(kind, **tensors), kind(**tensors)
    assert type(ours) is kind
    assert list(ours) == list(theirs) == list(vars(ours)) == list(vars(theirs)) == list(tensors)
    for name, tensor in tensors.items():
        assert ours[name] is getattr(ours, name) is tensor
    again = pickle.loads(pickle.dumps(ours))
    assert [*map(torch.equal, again.to_tuple(), theirs.to_tuple())] == [True] * len(tensors)
    ours.prev_sample = again.prev_sample  # attribute and item stay one
    assert ours["prev_sample"] is ours.prev_sample is ours[0]


def test_numbers_of_a_file(tmp_path):
    """Saved under the library's name, so that anybody can load it."""
    scheduler = DDPMScheduler()
    pf.accelerate(scheduler)
    scheduler.save_pretrained(tmp_path)
    assert type(DDPMScheduler.from_pretrained(tmp_path)) is DDPMScheduler
    assert "DDPMScheduler" in repr(scheduler)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        DDPMScheduler,
        lambda: DDIMScheduler(**LATENT),
        EulerDiscreteScheduler,
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
    ],
)
def test_adding_noise(make, twice, monkeypatch):
    theirs, ours = make(), make()
    pf.accelerate(ours)
    flow = isinstance(theirs, FlowMatchEulerDiscreteScheduler)
    integers = isinstance(theirs, DDPMScheduler | DDIMScheduler)
    place = torch.tensor([0, 3, 500, 999])
    t = place if integers else theirs.timesteps[place]
    if twice and not integers:  # a timestep that stands twice: the library takes the second
        for m in (ours, theirs):
            m.timesteps = m.timesteps.clone()
            m.timesteps[4] = m.timesteps[3]
    x, noise = normals(1, (4, 3, 5)).requires_grad_(), normals(2, (4, 3, 5))
    results = [
        m.scale_noise(x, t, noise) if flow else m.add_noise(x, noise, t) for m in (ours, theirs)
    ]
    torch.testing.assert_close(*results)
    if not (twice and not integers):  # it is ours that served
        counted = []
        monkeypatch.setattr(
            common, "diffuse", lambda *a, **k: counted.append(a) or diffuse(*a, **k)
        )
        (ours.scale_noise(x, t, noise) if flow else ours.add_noise(x, noise, t)).sum()
        assert len(counted) == 1
    torch.testing.assert_close(*(torch.autograd.grad(r.square().sum(), x)[0] for r in results))
    if integers:
        # One timestep for all, and a type that the library rounds in its own way.
        torch.testing.assert_close(*(m.add_noise(x, noise, t[2:3]) for m in (ours, theirs)))
        half = x.detach().bfloat16(), noise.bfloat16(), t
        assert torch.equal(*(m.add_noise(*half) for m in (ours, theirs)))


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
def test_a_first_step_without_signal(kind):
    # Predicted noise is divided by an alpha of 0: what is infinite then is clipped to finite numbers.
    scheduler = kind(timestep_spacing="trailing", rescale_betas_zero_snr=True)
    assert scheduler.alphas_cumprod[-1] == 0
    fast = copy.deepcopy(scheduler)
    assert pf.accelerate(fast).replaced
    for ours, theirs in zip(sample(fast, {}), sample(scheduler, {}), strict=True):
        assert theirs.isfinite().all()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_errors_of_the_library():
    scheduler = EulerDiscreteScheduler()
    pf.accelerate(scheduler)
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="Passing integer indices"):
        scheduler.step(normals(0), 3, normals(1))
    ddim = DDIMScheduler()
    pf.accelerate(ddim)
    with pytest.raises(ValueError, match="set_timesteps"):
        ddim.step(normals(0), 3, normals(1))


def test_what_is_left_alone():
    for scheduler, reason in (
        (diffusers.HeunDiscreteScheduler(), "no op serves it"),
        (DDPMScheduler(variance_type="learned_range"), "its variance is 'learned_range'"),
        (
            DPMSolverMultistepScheduler(algorithm_type="dpmsolver", final_sigmas_type="sigma_min"),
            "its algorithm is 'dpmsolver'",
        ),
        (type("Mine", (DDPMScheduler,), {})(), "subclass of DDPMScheduler"),
    ):
        kind = type(scheduler)
        (skipped,) = pf.accelerate(scheduler).skipped
        assert reason in skipped.reason
        assert type(scheduler) is kind


def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def test_a_pipeline():
    pipeline = diffusers.DDPMPipeline(unet(), DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def images():
        generator = torch.Generator().manual_seed(1)
        call = pipeline(2, generator, num_inference_steps=4, output_type="np")
        return torch.from_numpy(call.images)

    before, state = images(), pipeline.unet.state_dict()
    objects = [id(p) for p in pipeline.unet.parameters()]
    report = pf.accelerate(pipeline)
    assert "scheduler" in [r.name for r in report.replaced]
    torch.testing.assert_close(images(), before, rtol=1e-4, atol=1e-4)
    assert pipeline.unet.state_dict().keys() == state.keys()
    assert [id(p) for p in pipeline.unet.parameters()] == objects
    assert pf.accelerate(pipeline).replaced == []
    report.revert()
    assert type(pipeline.scheduler) is DDPMScheduler


def test_training_a_pipeline():
    losses = []
    for fast in (False, True):
        pipeline = diffusers.DDPMPipeline(unet(), DDPMScheduler())
        optimizer = torch.optim.SGD(pipeline.unet.parameters(), lr=1e-2)
        if fast:
            pf.accelerate(pipeline)
        generator = torch.Generator().manual_seed(2)
        for _ in range(20):
            x, noise = torch.randn(2, 4, 3, 8, 8, generator=generator)
            t = torch.randint(0, 1000, (4,), generator=generator)
            noisy = pipeline.scheduler.add_noise(x, noise, t)
            loss = (pipeline.unet(noisy, t).sample - noise).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    torch.testing.assert_close(
        torch.tensor(losses[20:]), torch.tensor(losses[:20]), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, EulerDiscreteScheduler])
def test_a_change_between_two_steps_is_seen(kind):
    theirs, ours = kind(), kind()
    pf.accelerate(ours)
    table = "sigmas" if kind is EulerDiscreteScheduler else "alphas_cumprod"
    x, prediction = normals(0), normals(1)

    def check(**options):
        def step(m):
            m._step_index = 3
            m.is_scale_input_called = True
            generator = torch.Generator().manual_seed(5)
            return m.step(prediction, m.timesteps[3], x, generator=generator, **options)[0]

        torch.testing.assert_close(step(ours), step(theirs), atol=2e-5, rtol=1e-5)

    def both(change):
        change(theirs)
        change(ours)
        check()

    both(lambda m: m.set_timesteps(10))
    both(lambda m: m.set_timesteps(5))
    both(lambda m: getattr(m, table).mul_(0.9))
    both(lambda m: setattr(m, table, getattr(m, table) * 0.9))
    both(lambda m: m.register_to_config(prediction_type="v_prediction"))
    if kind is DDIMScheduler:
        check(eta=0.5)
        check(use_clipped_model_output=True)
    with torch.inference_mode():
        both(lambda m: setattr(m, table, getattr(m, table) * 0.9))
        both(lambda m: getattr(m, table).mul_(0.9))


@pytest.mark.parametrize(
    "kind", [EulerDiscreteScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler]
)
def test_a_change_between_two_additions_of_noise_is_seen(kind):
    theirs, ours = kind(), kind()
    pf.accelerate(ours)
    x, noise = normals(0), normals(1)

    def both(change):
        for m in (theirs, ours):
            change(m)
        t = theirs.timesteps[torch.tensor([1, 4])]
        add = "scale_noise" if kind is FlowMatchEulerDiscreteScheduler else "add_noise"
        arguments = (x, t, noise) if add == "scale_noise" else (x, noise, t)
        torch.testing.assert_close(*(getattr(m, add)(*arguments) for m in (ours, theirs)))

    both(lambda m: None)
    both(lambda m: m.set_timesteps(10))
    both(lambda m: m.sigmas.mul_(0.9))
    both(lambda m: m.timesteps.copy_(m.timesteps.flip(0)))  # they rise: the library serves
    both(lambda m: m.set_timesteps(6))
    both(lambda m: setattr(m, "sigmas", m.sigmas * 0.9))
    unknown = theirs.timesteps[2:4] + 1
    if kind is not DPMSolverMultistepScheduler:  # which takes the last level for it
        with pytest.raises(IndexError):
            ours.add_noise(x, noise, unknown) if kind is EulerDiscreteScheduler else (
                ours.scale_noise(x, unknown, noise)
            )
    else:
        torch.testing.assert_close(*(m.add_noise(x, noise, unknown) for m in (ours, theirs)))
    if kind is DPMSolverMultistepScheduler:
        both(lambda m: m.register_to_config(use_flow_sigmas=True))
