"""A small classifier for any labelled images: features for metrics, and classes to count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan.metrics.features import batches_of
from pyfastgan.training.checkpoint import load_weights, save_weights

FEATURES = 64
_STEPS, _BATCH, _RATE = 500, 128, 2e-3


class ImageClassifier:
    """Three convolutions and two linear layers, trained on a labelled data set when it is made.

    The same data give the same classifier on one machine with one number of threads: seeds are
    fixed, and torch's own generator is left alone. Called with images it gives the activations of
    the last hidden layer.

    Args:
        data: Images with labels, as `pyfastgan.data.load` gives them.
        name: What the data are, for `name`.
        weights: A file that `save` wrote: nothing is trained then.

    Raises:
        ValueError: Data without labels, or with a single class.
    """

    def __init__(self, data: Any, name: str, weights: Path | None = None) -> None:
        if (data.classes or 0) < 2:
            raise ValueError(f"a classifier needs labels of two classes or more, {name} has none")
        self.shape, self.classes = tuple(data.shape), int(data.classes)
        self.name = f"CNN trained on {len(data)} images of {name}, last hidden layer ({FEATURES})"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._hidden = nn.Sequential(
                nn.Conv2d(self.shape[0], 32, 5, 2, 2),
                nn.ReLU(),
                nn.Conv2d(32, 64, 3, 2, 1),
                nn.ReLU(),
                nn.Conv2d(64, 64, 3, 2, 1),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(4),
                nn.Flatten(),
                nn.Linear(1024, FEATURES),
                nn.ReLU(),
            )
            self._head = nn.Linear(FEATURES, self.classes)
        if weights is None:
            self._train(data)
        else:
            load_weights(weights, self._networks())

    def save(self, path: Path) -> None:
        """Write the weights, as safetensors."""
        save_weights(path, self._networks(), {"name": self.name})

    def _networks(self) -> dict[str, nn.Module]:
        return {"hidden": self._hidden, "head": self._head}

    @torch.enable_grad()
    def _train(self, data: Any) -> None:
        network = nn.Sequential(self._hidden, self._head)
        optimizer = torch.optim.Adam(network.parameters(), _RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
        generator = torch.Generator().manual_seed(0)
        for _ in range(_STEPS):
            index = torch.randint(len(data), (_BATCH,), generator=generator)
            images, labels = data[index]
            loss = functional.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        network.requires_grad_(False)

    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, 64), float32, of images (N, C, H, W) in [-1, 1]."""
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"images must be of shape {('N', *self.shape)}, not {tuple(images.shape)}"
            )
        features: Tensor = self._hidden(images.detach().float().cpu())
        return features

    def probabilities(self, images: Tensor) -> Tensor:
        """How likely each class is, float64 (N, K)."""
        logits: Tensor = self._head(self(images))
        return logits.double().softmax(1)

    def predict(self, images: Tensor) -> Tensor:
        """The likeliest class of each image, int64 (N,)."""
        return self.probabilities(images).argmax(1)

    def accuracy(self, data: Any) -> float:
        """The share of a labelled data set that is classified rightly."""
        _, labels = data.tensors or data.stored
        found = torch.cat([self.predict(batch) for batch in batches_of(data, 256)])
        return (found == labels).double().mean().item()
