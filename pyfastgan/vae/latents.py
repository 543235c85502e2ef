"""The latent vectors of a VAE's images on disk, for who trains a prior over them.

The file holds float32 (N, latent_dim) under `train`, and under `test` where images are held out, each drawn
once from q(z|x); int64 (N,) under `labels_train` and `labels_test` where there are labels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pyfastgan.ops import random_normal
from pyfastgan.training.files import atomic
from pyfastgan.vae.datasets import ImageSet, batches_of
from pyfastgan.vae.model import VAE

# Apart from those of the test.
_OBSERVED, _DRAWN = 2, 3


def save_latents(path: Path, model: VAE, train: ImageSet, test: ImageSet | None) -> None:
    """Write the vectors of an unconditional model's data."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, dataset in (("train", train), ("test", test)):
        if dataset is None:
            continue
        found, labels = latents(model, dataset)
        tensors[name] = found
        if labels is not None:
            tensors[f"labels_{name}"] = labels
    with atomic(path) as temporary:
        save_file(tensors, temporary)


@torch.no_grad()
def latents(model: VAE, dataset: ImageSet) -> tuple[Tensor, Tensor | None]:
    """A vector drawn from q(z|x) for each image, (N, latent_dim), and the labels, both on the CPU."""
    device = next(model.parameters()).device
    vectors: list[Tensor] = []
    labels: list[Tensor] = []
    start = 0
    for batch in batches_of(dataset, device):
        x = model.observe(batch[0], 0, stream=_OBSERVED, sample_offset=start)
        mean, logvar = model.encode(x)
        noise = random_normal(
            mean.shape, 0, stream=_DRAWN, sample_offset=start, dtype=mean.dtype, device=device
        )
        vectors.append((mean + torch.exp(0.5 * logvar) * noise).float().cpu())
        labels.extend(part.cpu() for part in batch[1:2])
        start += len(x)
    return torch.cat(vectors), torch.cat(labels) if labels else None
