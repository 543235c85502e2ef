"""Losses against closed forms on discrete distributions; optima by descending the loss itself."""

from __future__ import annotations

import math

import pytest
import torch

from pyfastgan.gan.objectives import (
    OBJECTIVES,
    discriminator_loss,
    discriminator_slopes,
    generator_loss,
    generator_slope,
    get_objective,
    sample_scores,
)

# How often each of five atoms is seen in 20 real and in 20 generated samples. Every atom is seen on
# both sides, so that its best logit is finite, and never equally often, so that the hinge optimum
# is sharp.
REAL = torch.tensor([1, 2, 4, 5, 8])
FAKE = torch.tensor([7, 1, 5, 4, 3])
# Their losses grow as the exponential of an output.
EXPONENTIALS = ("kl", "reverse-kl", "squared-hellinger")
P, Q = (counts.double() / 20 for counts in (REAL, FAKE))


def spread(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A logit for every sample, from one for every atom."""
    return logits.repeat_interleave(REAL), logits.repeat_interleave(FAKE)


def best_logits(name: str) -> torch.Tensor:
    """The optimal discriminator, by full-batch descent on the loss of the table."""
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits],
        max_iter=200,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = discriminator_loss(name, *spread(logits))
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach()


def jensen_shannon() -> torch.Tensor:
    middle = (P + Q) / 2
    return 0.5 * ((P * (P / middle).log()).sum() + (Q * (Q / middle).log()).sum())


@pytest.mark.parametrize("name", ["minimax", "non-saturating"])
def test_cross_entropy_is_optimal_at_the_density_ratio(name: str) -> None:
    logits = best_logits(name)
    torch.testing.assert_close(torch.sigmoid(logits), P / (P + Q), rtol=0, atol=1e-6)
    value = -discriminator_loss(name, *spread(logits))
    torch.testing.assert_close(value, -math.log(4) + 2 * jensen_shannon(), rtol=0, atol=1e-10)


def test_minimax_is_a_zero_sum_game() -> None:
    """C(G) = V(D*, G), and the generator's loss is the part of V that depends on G."""
    real, fake = spread((P / Q).log())
    share = generator_loss("minimax", fake)
    torch.testing.assert_close(share, (Q * (Q / (P + Q)).log()).sum(), rtol=0, atol=1e-12)
    rest = (P * (P / (P + Q)).log()).sum()
    torch.testing.assert_close(
        share + rest, -discriminator_loss("minimax", real, fake), rtol=0, atol=1e-12
    )


def test_non_saturating_value_at_the_optimum() -> None:
    """E_q[-log D*] = KL(q, p) - KL(q, (p + q) / 2) + log 2."""
    middle = (P + Q) / 2
    expected = (Q * (Q / P).log()).sum() - (Q * (Q / middle).log()).sum() + math.log(2)
    torch.testing.assert_close(
        generator_loss("non-saturating", spread((P / Q).log())[1]), expected, rtol=0, atol=1e-12
    )


def test_least_squares_optimum() -> None:
    """D* = p / (p + q), value sum pq / (p + q) / 2, generator sum q^3 / (p + q)^2 / 2."""
    logits = best_logits("least-squares")
    torch.testing.assert_close(logits, P / (P + Q), rtol=0, atol=1e-8)
    real, fake = spread(logits)
    expected = 0.5 * (P * Q / (P + Q)).sum()
    torch.testing.assert_close(
        discriminator_loss("least-squares", real, fake), expected, rtol=0, atol=1e-12
    )
    expected = 0.5 * (Q**3 / (P + Q) ** 2).sum()
    torch.testing.assert_close(generator_loss("least-squares", fake), expected, rtol=0, atol=1e-7)


def test_hinge_optimum() -> None:
    """l* = sign(p - q), value 2 - 2 TV, generator -E_q l*; no other logit does better."""
    logits = (P - Q).sign()
    real, fake = spread(logits)
    best = discriminator_loss("hinge", real, fake)
    torch.testing.assert_close(best, 2 - (P - Q).abs().sum(), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        generator_loss("hinge", fake), -(Q * logits).sum(), rtol=0, atol=1e-12
    )
    for atom in range(5):
        for other in torch.linspace(-3, 3, 61, dtype=torch.float64):
            tried = logits.clone()
            tried[atom] = other
            assert discriminator_loss("hinge", *spread(tried)) >= best - 1e-12


# From the definition D_f(p, q) = sum q f(p / q), and T* = f'(p / q) as an output v with g_f(v) = T*.
RATIO = P / Q
DIVERGENCES = {
    "kl": ((P * RATIO.log()).sum(), 1 + RATIO.log()),
    "reverse-kl": (-(Q * RATIO.log()).sum(), RATIO.log()),
    "pearson": ((Q * (RATIO - 1).square()).sum(), 2 * (RATIO - 1)),
    "squared-hellinger": ((P.sqrt() - Q.sqrt()).square().sum(), RATIO.log() / 2),
    "jensen-shannon": (2 * jensen_shannon(), RATIO.log()),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_bound_of_an_f_divergence_reaches_it(name: str) -> None:
    """At outputs found by descent, which are those that the derivative of f gives."""
    divergence, outputs = DIVERGENCES[name]
    found = best_logits(name)
    torch.testing.assert_close(found, outputs, rtol=0, atol=1e-6)
    real, fake = spread(found)
    torch.testing.assert_close(
        -discriminator_loss(name, real, fake), divergence, rtol=0, atol=1e-11
    )
    # The generator minimises what of the bound depends on it.
    rest = get_objective(name).real.value(real).mean()
    torch.testing.assert_close(generator_loss(name, fake) - rest, divergence, rtol=0, atol=1e-11)
    # No bound is above the divergence.
    torch.manual_seed(0)
    for scale in (0.1, 1.0, 4.0):
        other = found + scale * torch.randn(5, dtype=torch.float64)
        assert -discriminator_loss(name, *spread(other)) < divergence


CONVEX = {
    "kl": lambda u: u * u.log(),
    "reverse-kl": lambda u: -u.log(),
    "pearson": lambda u: (u - 1).square(),
    "squared-hellinger": lambda u: (u.sqrt() - 1).square(),
    "jensen-shannon": lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
    "total-variation": lambda u: (u - 1).abs() / 2,
}


@pytest.mark.parametrize("name", CONVEX)
def test_conjugates_are_those_of_the_definition(name: str) -> None:
    """f*(T) = sup over u of u T - f(u), on a mesh, at outputs v with T = -real(v)."""
    row = get_objective(name)
    assert row.fake is not None
    u = torch.logspace(-6, 6, 400_001, dtype=torch.float64)
    for v in torch.linspace(-1.9, 3.0, 8, dtype=torch.float64):
        best = (u * -row.real.value(v) - CONVEX[name](u)).max()
        torch.testing.assert_close(row.fake.value(v), best, rtol=1e-6, atol=2e-6)


def test_the_bound_of_total_variation_reaches_it_at_sure_outputs() -> None:
    total = 0.5 * (P - Q).abs().sum()
    side = (P - Q).sign()
    values = [-discriminator_loss("total-variation", *spread(v * side)) for v in (1.0, 5.0, 20.0)]
    assert values[0] < values[1] < total
    torch.testing.assert_close(values[2], total, rtol=0, atol=1e-15)
    assert -discriminator_loss("total-variation", *spread(-20 * side)) < 0


def test_jensen_shannon_is_minimax_up_to_log_4() -> None:
    real, fake = spread(torch.tensor([-3.0, 0.5, 2.0, -0.1, 9.0], dtype=torch.float64))
    for slopes in zip(
        discriminator_slopes("jensen-shannon", real, fake),
        discriminator_slopes("minimax", real, fake),
        strict=True,
    ):
        torch.testing.assert_close(*slopes, rtol=0, atol=0)
    difference = discriminator_loss("minimax", real, fake) - discriminator_loss(
        "jensen-shannon", real, fake
    )
    torch.testing.assert_close(difference.item(), math.log(4), rtol=0, atol=1e-14)


def test_wasserstein_is_the_shift_where_jensen_shannon_stays_log_2() -> None:
    """Arjovsky et al. 2017, example 1: atoms that do not overlap, at every distance but 0."""
    atoms = torch.arange(5, dtype=torch.float64)
    for shift in (0.0, 0.25, 3.5, -7.25):
        # Over f of slope 1 on the line, of which sign(shift) x is the best for a shift.
        critic = math.copysign(1.0, -shift)
        distance = -discriminator_loss("wgan", critic * atoms, critic * (atoms + shift))
        assert distance.item() == pytest.approx(abs(shift), abs=1e-12)
        # The best logits: +-inf where only one of the two lies, 0 where both do equally.
        sure = torch.full((5,), 0.0 if shift == 0 else 40.0, dtype=torch.float64)
        twice = -discriminator_loss("jensen-shannon", sure, -sure)
        assert twice.item() / 2 == pytest.approx(0.0 if shift == 0 else math.log(2), abs=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_generator_gains_by_raising_its_logits(name: str) -> None:
    fake = torch.zeros(4, requires_grad=True)
    generator_loss(name, fake, torch.zeros(4)).backward()
    assert (fake.grad < 0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("size", [-1e4, -8.0, 0.0, 8.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extreme_logits_stay_finite_and_exact(name: str, size: float, dtype: torch.dtype) -> None:
    """Against float64 arithmetic by hand, where log(1 + exp(1e4)) is 1e4 to the last bit."""
    logits = torch.full((3,), size, dtype=dtype, requires_grad=True)
    exact = float(logits[0].detach().double())
    if name in EXPONENTIALS and abs(size) > 80:
        return
    up, down = (max(value, 0.0) + math.log1p(math.exp(-abs(value))) for value in (exact, -exact))
    expected = {
        "minimax": (up + down, -up),
        "non-saturating": (up + down, down),
        "least-squares": (0.5 * ((exact - 1) ** 2 + exact**2), 0.5 * (exact - 1) ** 2),
        "hinge": (max(0.0, 1 - exact) + max(0.0, 1 + exact), -exact),
        "wgan": (0.0, -exact),
        "relativistic": (math.log(2), down),
        "jensen-shannon": (up + down - math.log(4), math.log(2) - up),
        "pearson": (0.25 * exact**2, -0.25 * exact**2 - exact),
        "total-variation": (0.0, -0.5 * math.tanh(exact)),
    }
    if name in EXPONENTIALS:
        grown, shrunk = math.exp(exact), math.exp(-exact)
        expected |= {
            "kl": (grown / math.e - exact, -grown / math.e),
            "reverse-kl": (shrunk + exact - 1, 1 - exact),
            "squared-hellinger": (grown + shrunk - 2, 1 - grown),
        }
    expected = expected[name]
    against = torch.zeros_like(logits)
    losses = discriminator_loss(name, logits, logits), generator_loss(name, logits, against)
    for loss, value in zip(losses, expected, strict=True):
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert loss.item() == pytest.approx(value, rel=1e-6)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_nan_propagates(name: str) -> None:
    clean, broken = torch.zeros(3), torch.tensor([0.0, math.nan, 0.0])
    assert discriminator_loss(name, broken, clean).isnan()
    assert discriminator_loss(name, clean, broken).isnan()
    assert generator_loss(name, broken, clean).isnan()
    broken.requires_grad_(True)
    slopes = torch.autograd.grad(discriminator_loss(name, clean, broken), broken)
    torch.testing.assert_close(
        discriminator_slopes(name, clean, broken)[1], slopes[0], equal_nan=True
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_patches_are_averaged(name: str) -> None:
    torch.manual_seed(0)
    real, fake = torch.randn(2, 6, 1, 3, 3, dtype=torch.float64)
    apart = torch.stack(
        [discriminator_loss(name, r, f) for r, f in zip(real, fake, strict=True)]
    ).mean()
    torch.testing.assert_close(discriminator_loss(name, real, fake), apart)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_of_both_orders(name: str) -> None:
    torch.manual_seed(1)
    real, fake = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda r, f: discriminator_loss(name, r, f), (real, fake))
    assert torch.autograd.gradgradcheck(lambda r, f: discriminator_loss(name, r, f), (real, fake))
    assert torch.autograd.gradcheck(lambda f: generator_loss(name, f, real.detach()), (fake,))


def test_unknown_objective_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="'least_squares'; did you mean 'least-squares'"):
        get_objective("least_squares")
    with pytest.raises(
        ValueError, match=r"hinge, wgan, relativistic, kl, reverse-kl, .*variation, got 'zzz'$"
    ):
        get_objective("zzz")


def test_bad_logits() -> None:
    logits = torch.zeros(2)
    with pytest.raises(TypeError, match=r"real must be a floating-point .* not torch\.int64"):
        discriminator_loss("hinge", torch.zeros(2, dtype=torch.int64), logits)
    with pytest.raises(TypeError, match=r"fake must be a floating-point tensor .* not float"):
        generator_loss("hinge", 0.0)
    with pytest.raises(ValueError, match=r"fake must hold at least one output, not shape \(0, 1\)"):
        discriminator_loss("hinge", logits, torch.zeros(0, 1))

    with pytest.raises(ValueError, match=r"real and fake must be of one shape.*\(2,\) and \(3,\)"):
        discriminator_loss("relativistic", logits, torch.zeros(3))
    with pytest.raises(ValueError, match="real must be given: the relativistic loss"):
        generator_loss("relativistic", logits)


def test_wgan_is_the_difference_of_means() -> None:
    real, fake = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([5.0, -3.0])
    assert float(discriminator_loss("wgan", real, fake)) == 1.0 - 3.0
    assert float(generator_loss("wgan", fake)) == -1.0


def test_relativistic_compares_pair_by_pair() -> None:
    """Mean softplus of what the fake sample of each pair is above the real one, and the reverse."""
    real, fake = torch.tensor([1.0, 4.0]), torch.tensor([0.0, 6.0])
    critic = (math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 2
    generator = (math.log1p(math.exp(1)) + math.log1p(math.exp(-2))) / 2
    assert float(discriminator_loss("relativistic", real, fake)) == pytest.approx(critic)
    assert float(generator_loss("relativistic", fake, real)) == pytest.approx(generator)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("shape", [(7,), (7, 1), (3, 1, 2, 2)])
def test_slopes_are_the_derivatives_of_the_losses(name: str, shape: tuple[int, ...]) -> None:
    """Large and small outputs on both sides of every kink, and on it."""
    torch.manual_seed(2)
    real, fake = (3 * torch.randn(shape, dtype=torch.float64) for _ in range(2))
    large = 30.0 if name in EXPONENTIALS else 900.0
    real.view(-1)[:4] = torch.tensor([1.0, large, 0.5, -0.5])
    fake.view(-1)[:4] = torch.tensor([-1.0, -large, -0.5, 0.5])
    real.requires_grad_(True), fake.requires_grad_(True)
    loss = discriminator_loss(name, real, fake)
    expected = torch.autograd.grad(loss, (real, fake))
    with torch.no_grad():
        slopes = discriminator_slopes(name, real, fake)
    torch.testing.assert_close(slopes, expected, rtol=1e-13, atol=1e-300)
    (expected_fake,) = torch.autograd.grad(generator_loss(name, fake, real.detach()), fake)
    torch.testing.assert_close(
        generator_slope(name, fake.detach(), real.detach()), expected_fake, rtol=1e-13, atol=1e-300
    )


def test_scores_of_a_sample() -> None:
    patches = torch.randn(3, 1, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(sample_scores(patches, 3), patches.flatten(1).mean(1))
    assert torch.equal(sample_scores(patches[:, 0, 0, :1], 3), patches[:, 0, 0, 0])
    assert torch.equal(sample_scores(patches[:, 0, 0, 0], 3), patches[:, 0, 0, 0])
    for shape in ((4,), (3, 2), (3, 2, 4, 4), (3, 1, 0, 4), (3, 1, 4), (), (1, 3)):
        with pytest.raises(ValueError, match=r"critic's output must be of shape \(3,\), \(3, 1\)"):
            sample_scores(torch.zeros(shape), 3)
    with pytest.raises(TypeError, match=r"critic's output .* got torch\.int64"):
        sample_scores(torch.zeros(3, dtype=torch.int64), 3)
    with pytest.raises(TypeError, match=r"critic's output .* got tuple"):
        sample_scores((torch.zeros(3),), 3)
