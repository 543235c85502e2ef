"""A mixture of normal distributions in the plane, whose best denoiser is known."""

import torch
from scipy.integrate import solve_ivp

MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]], dtype=torch.float64)
DEVIATIONS = torch.tensor([0.5, 0.3, 0.7], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
HIGH, LOW = 20.0, 0.02


def denoise(x, alpha, sigma):
    """E[x_0 | alpha x_0 + sigma z = x]."""
    variance = alpha**2 * DEVIATIONS**2 + sigma**2
    away = x[:, None].double() - alpha * MEANS
    weight = WEIGHTS.log() - variance.log() - 0.5 * (away**2).sum(-1) / variance
    weight = torch.softmax(weight, 1)[..., None]
    means = MEANS + (alpha * DEVIATIONS**2 / variance)[:, None] * away
    return (weight * means).sum(1).to(x.dtype)


def moments():
    mean = (WEIGHTS[:, None] * MEANS).sum(0)
    away = MEANS - mean
    spread = (WEIGHTS[:, None, None] * away[:, :, None] * away[:, None, :]).sum(0)
    return mean, spread + (WEIGHTS * DEVIATIONS**2).sum() * torch.eye(2)


def solution(x, high=HIGH, low=LOW):
    """Where the equation of sampling takes x / alpha from one sigma / alpha to another."""

    def slope(r, flat):
        at = torch.from_numpy(flat).reshape(-1, 2)
        return ((at - denoise(at, torch.tensor(1.0), torch.tensor(r))) / r).numpy().ravel()

    options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-12}
    found = solve_ivp(slope, (high, low), x.numpy().ravel(), **options)
    return torch.from_numpy(found.y[:, -1]).reshape(-1, 2)
