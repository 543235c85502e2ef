"""Points for the flows of other libraries, and parameters away from where these begin."""

import torch

WIDTH = 6


def points(n=40, width=WIDTH, seed=0):
    """Some of them beyond the splines' bounds."""
    return 1.5 * torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def stirred(model, by=0.2):
    """The libraries begin near the identity, where nothing would show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += by * torch.randn(p.shape, generator=generator)
    return model
