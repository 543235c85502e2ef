"""Small models that tests of the diffusion family share."""

import torch

from pyfastgan.diffusion import MLP, DiffusionModel, Levels, NoiseSchedule, UNet


def levels(prediction="eps", **options):
    return Levels(NoiseSchedule.cosine(50, prediction=prediction), **options)


def points(process, **options):
    """A small model of points, with a network whose last layer is not zero."""
    torch.manual_seed(0)
    learned = options.get("learned_variance", False)
    network = MLP(
        3,
        out=6 if learned else 3,
        width=16,
        layers=2,
        classes=options.get("classes"),
        time_scale=process.time_scale,
        self_conditioning=options.get("self_conditioning", False),
    )
    return DiffusionModel(network, process, (3,), **options).eval()


def images(process, **options):
    torch.manual_seed(0)
    network = UNet(
        1,
        8,
        out=2 if options.get("learned_variance") else 1,
        width=8,
        multipliers=(1, 2),
        blocks=1,
        classes=options.get("classes"),
        time_scale=process.time_scale,
        self_conditioning=options.get("self_conditioning", False),
    )
    torch.nn.init.normal_(network.output.weight, std=0.05)
    return DiffusionModel(network, process, (1, 8, 8), **options).eval()


KNOWN = torch.full((3, 1, 8, 8), 0.25)
HALF = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
HALF[..., :4] = True
