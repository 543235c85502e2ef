"""Inpainting: the known part stays, is noised to each level, and conditions the rest."""

import pytest
import torch

from pyfastgan.diffusion import DDPM, EDM, NoiseSchedule, Path, Sigmas, inpaint

from .models import HALF, KNOWN, images, levels


@pytest.mark.parametrize(
    ("process", "options"),
    [
        (levels(), {"sampler": "ddpm", "steps": 6, "repeats": 3}),
        (levels(), {"sampler": "dpmpp-3m", "steps": 5}),
        (Sigmas(), {"sampler": "edm", "steps": 4, "churn": 4.0}),
        (Path(), {"sampler": "rk4", "steps": 3}),
    ],
    ids=["repaint", "dpmpp-3m", "edm", "rk4"],
)
def test_inpainting_keeps_the_known_part(process, options):
    model = images(process)
    found = model.sample(3, 1, known=KNOWN, mask=HALF, **options)
    assert torch.equal(found[..., :4], KNOWN[..., :4])
    assert found.isfinite().all()
    assert (found[..., 4:] - KNOWN[..., 4:]).abs().max() > 0.1
    free = {key: value for key, value in options.items() if key != "repeats"}
    nothing = model.sample(3, 1, known=KNOWN, mask=HALF & False, **free)
    torch.testing.assert_close(nothing, model.sample(3, 1, **free), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("repeats", [1, 4])
def test_inpainting_noises_the_known_part_to_each_level(repeats):
    """The network sees known places with the noise of its level."""
    schedule = NoiseSchedule.linear(50)
    sampler = DDPM(schedule, schedule.timesteps(10, "trailing"))
    seen = []

    def network(x, time):
        seen.append((int(time[0]), float(x[:, :, 0].std()), float(x[:, :, 0].mean())))
        return torch.zeros_like(x)

    known = torch.full((8, 500, 2), 0.8)
    mask = torch.tensor([True, False]).expand(8, 500, 2)
    y = inpaint(sampler, network, known, mask, 3, repeats=repeats)
    assert torch.equal(y[:, :, 0], known[:, :, 0])
    assert len(seen) == 9 * repeats + 1
    for level, deviation, mean in seen:
        assert deviation == pytest.approx(float(schedule.sigma[level]), abs=0.04)
        assert mean == pytest.approx(0.8 * float(schedule.alpha[level]), abs=0.05)


def test_repaint_reaches_the_conditional_distribution():
    """Of two numbers with correlation 0.9 the first is known: the second's mean is 0.9 of it. Replacement alone falls
    short of that; repeats come closer."""
    schedule = NoiseSchedule.linear(200)
    sampler = DDPM(schedule, schedule.timesteps(40, "trailing"))
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]])

    def network(x, time):
        a, s = schedule.alpha[int(time[0])], schedule.sigma[int(time[0])]
        gain = (
            float(a)
            * covariance
            @ torch.linalg.inv(float(a**2) * covariance + float(s**2) * torch.eye(2))
        )
        return (x - float(a) * x @ gain.T) / float(s)

    known = torch.tensor([[1.5, 0.0]]).expand(3000, 2)
    mask = torch.tensor([[True, False]])
    found = [
        inpaint(sampler, network, known, mask.expand(3000, 2), 1, repeats=r)[:, 1] for r in (1, 10)
    ]
    means = [float(y.mean()) for y in found]
    assert abs(means[1] - 1.35) < abs(means[0] - 1.35)
    assert means[1] == pytest.approx(1.35, abs=0.12)
    # Variance 1 - 0.81; without the noise of going back it would shrink.
    assert float(found[1].var()) == pytest.approx(0.19, abs=0.06)


def test_a_mask_that_is_not_bool():
    with pytest.raises(TypeError, match=r"mask bool, got torch.float32, torch.float32"):
        images(levels()).sample(3, 0, known=KNOWN, mask=HALF.float())


def test_the_known_places_have_the_noise_of_a_raised_first_level():
    """EDM with churn adds noise before its first call: to what is known, no more than to the rest."""
    sampler = EDM(NoiseSchedule.karras(3), prediction="x0", churn=1.0)
    seen, known = [], torch.zeros(1, 1, 100, 100)
    mask = torch.zeros(1, 1, 100, 100, dtype=torch.bool)
    mask[..., 50:] = True

    def network(x, time):
        seen.append(x)
        return torch.zeros_like(x)

    inpaint(sampler, network, known, mask, 0)
    raised = float(sampler.sigmas[sampler.stages[0].level])
    for part in (seen[0][mask], seen[0][~mask]):
        assert float(part.std()) == pytest.approx(raised, rel=0.05)
