"""The Inception network of published figures, through torch-fidelity where that is installed."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

# What torch-fidelity keeps in torch's hub folder, the weights of the original TensorFlow network.
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


class Inception:
    """Inception v3's last pooled features, with the class probabilities of its logits.

    FID, KID and the inception score on these are the figures that papers report. Grey images are
    repeated in three channels. Nothing is downloaded.

    Args:
        weights: The file of weights; by default where torch-fidelity keeps it.

    Raises:
        ModuleNotFoundError: torch-fidelity is not installed.
        ValueError: The weights are not there, or hold more than tensors.
    """

    name = "Inception v3 (torch-fidelity, 2015-12-05), pooled features (2048)"

    def __init__(self, weights: str | Path | None = None) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ModuleNotFoundError(
                "Inception features need torch-fidelity: pip install torch-fidelity",
                name="pyfastgan.inception",
            ) from error
        path = Path(weights or Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS)
        if not path.is_file():
            raise ValueError(
                f"Inception features need the weights {path}, which are not there"
                " (torch-fidelity's releases have them)"
            )
        try:  # torch-fidelity itself would unpickle whatever the file holds
            torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"cannot read the weights {path}: {reason}") from None
        self._network = FeatureExtractorInceptionV3(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            feature_extractor_weights_path=str(path),
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, 2048), float32, of images (N, 1 or 3, H, W) in [-1, 1]."""
        return self._outputs(images)[0]

    def probabilities(self, images: Tensor) -> Tensor:
        """How likely each of the network's 1,008 classes is, float64 (N, 1008)."""
        return self._outputs(images)[1].double().softmax(1)

    def predict(self, images: Tensor) -> Tensor:
        """The likeliest class of each image, int64 (N,)."""
        return self.probabilities(images).argmax(1)

    def _outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        scaled = images.detach().float().clamp(-1, 1).add(1).mul(127.5).round().byte()
        features, logits = self._network(scaled.expand(-1, 3, -1, -1))
        return features, logits
