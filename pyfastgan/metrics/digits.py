"""A small classifier of handwritten digits: features for Fréchet distances, and labels to count."""

from __future__ import annotations

from functools import lru_cache

import torch
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from pyfastgan.data.digits import load_digits

HIDDEN = (128, 64)


class DigitsClassifier:
    """scikit-learn's multilayer perceptron, trained on the training split of the real digits.

    Called with images it gives the activations of its last hidden layer, so it serves `fid` as an
    extractor. Use `digits_classifier` to get one; training takes some seconds.
    """

    def __init__(self, size: int) -> None:
        images, labels = load_digits(size=size, split="train").tensors
        assert labels is not None, "the digits have labels"
        self.size = size
        self.name = f"scikit-learn MLP on digits at {size} px, last hidden layer ({HIDDEN[-1]})"
        self._model = MLPClassifier(HIDDEN, random_state=0, max_iter=400, alpha=1e-2)
        self._model.fit(images.flatten(1).numpy(), labels.numpy())

    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, 64), float64, of grey images (N, 1, size, size) in [-1, 1]."""
        hidden = self._check(images)
        layers = zip(self._model.coefs_[:-1], self._model.intercepts_[:-1], strict=True)
        for weight, bias in layers:
            hidden = torch.relu(hidden @ torch.from_numpy(weight).double() + torch.from_numpy(bias))
        return hidden

    def predict(self, images: Tensor) -> Tensor:
        """The digit (N,), int64, that each grey image (N, 1, size, size) in [-1, 1] looks like."""
        return torch.from_numpy(self._model.predict(self._check(images).float().numpy())).long()

    def probabilities(self, images: Tensor) -> Tensor:
        """How likely each digit is, float64 (N, 10)."""
        found = self._model.predict_proba(self._check(images).float().numpy())
        return torch.from_numpy(found).double()

    def count(self, images: Tensor) -> list[int]:
        """How many of the images look like each of the digits 0 to 9."""
        return torch.bincount(self.predict(images), minlength=10).tolist()

    def _check(self, images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != (1, self.size, self.size):
            raise ValueError(
                f"images must be of shape (N, 1, {self.size}, {self.size}), "
                f"not {tuple(images.shape)}"
            )
        return images.detach().cpu().double().flatten(1)


@lru_cache
def digits_classifier(size: int = 16) -> DigitsClassifier:
    """The classifier for digits of `size` pixels, trained once in a process; always the same
    one."""
    return DigitsClassifier(size)
