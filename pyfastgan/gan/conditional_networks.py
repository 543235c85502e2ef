"""DCGAN's networks, told a class.

The generator's latent vector has the label beside it, one-hot (Mirza and Osindero 2014, "Conditional
generative adversarial nets", here with convolutions). A discriminator learns of the label in one of
three ways:

    concat      the one-hot label as further channels of the image (the same paper);
    projection  phi(x)'v(y) is added to the logit, phi the sum of the last map over its pixels, v an
                embedding of the class (Miyato and Koyama 2018, "cGANs with projection discriminator");
    auxiliary   not at all: it names the class itself (Odena et al. 2017, "Conditional image synthesis
                with auxiliary classifier GANs").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan._names import check_choice
from pyfastgan.gan.biggan import check_labels, labels_for
from pyfastgan.gan.dcgan import (
    _SAMPLE_BATCH,
    Discriminator,
    Generator,
    check_images,
    check_latent,
    check_network,
    draw_latents,
)
from pyfastgan.gan.latent import check_truncation
from pyfastgan.nn import ConvBlock, FusedSequential

CONDITIONINGS = ("concat", "projection", "auxiliary")


class ConditionalGenerator(nn.Module):
    """Latent vectors (N, latent_dim) and labels (N,) to images (N, channels, size, size) in [-1, 1].

    Arguments and errors are those of `pyfastgan.gan.Generator`, and `classes`, how many there are.
    """

    def __init__(
        self,
        image_size: int = 64,
        *,
        classes: int,
        channels: int = 3,
        width: int = 64,
        latent_dim: int = 100,
    ) -> None:
        super().__init__()
        check_network(image_size, classes=classes, latent_dim=latent_dim)
        self.latent_dim, self.classes = latent_dim, classes
        self.main = Generator(
            image_size, channels=channels, width=width, latent_dim=latent_dim + classes
        )

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        check_latent(latent, self.latent_dim)
        check_labels(labels, self.classes, len(latent))
        told = functional.one_hot(labels, self.classes).to(latent.dtype)
        return self.main(torch.cat([latent, told], 1))

    def latents(
        self, count: int, seed: int | None = None, truncation: float | None = None
    ) -> Tensor:
        """Normal latent vectors (count, latent_dim); vector i is the same for any count."""
        return draw_latents(self, self.latent_dim, count, seed, truncation)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        seed: int | None = None,
        truncation: float | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Images (count, channels, size, size) of the labels, int64 (count,), by default of the classes
        in turns; in evaluation mode image i is the same for any count."""
        check_truncation(truncation)
        labels = labels_for(self, count, self.classes, labels)
        latents = self.latents(count, seed, truncation)
        parts = zip(latents.split(_SAMPLE_BATCH), labels.split(_SAMPLE_BATCH), strict=True)
        return torch.cat([self(*part) for part in parts])


class ConditionalDiscriminator(nn.Module):
    """Images (N, channels, size, size) and labels (N,) to logits (N,); with `auxiliary` conditioning to a
    pair of these and the classes' logits (N, classes).

    Arguments and errors are those of `pyfastgan.gan.Discriminator`, and

        classes: how many there are;
        conditioning: concat, projection or auxiliary.
    """

    def __init__(
        self,
        image_size: int = 64,
        *,
        classes: int,
        conditioning: str = "concat",
        channels: int = 3,
        width: int = 64,
        norm: str | None = "batch",
    ) -> None:
        super().__init__()
        check_choice("conditioning", conditioning, CONDITIONINGS)
        check_network(image_size, classes=classes, channels=channels)
        self.image_shape = (channels, image_size, image_size)
        self.classes, self.conditioning = classes, conditioning
        seen = channels + classes * (conditioning == "concat")
        plain = Discriminator(image_size, channels=seen, width=width, norm=norm)
        *features, score = plain.main
        self.features, self.score = FusedSequential(*features), score
        last = score.conv.in_channels
        if conditioning == "projection":
            self.embed = nn.Embedding(classes, last)
            nn.init.normal_(self.embed.weight, 0.0, 0.02)
        elif conditioning == "auxiliary":
            self.classifier = ConvBlock(last, classes, 4, 1, 0, act="linear")
            nn.init.normal_(self.classifier.conv.weight, 0.0, 0.02)
            nn.init.zeros_(self.classifier.conv.bias)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        check_images(images, self.image_shape)
        check_labels(labels, self.classes, len(images))
        if self.conditioning == "concat":
            told = functional.one_hot(labels, self.classes).to(images.dtype)
            maps = told[..., None, None].expand(-1, -1, *images.shape[2:])
            images = torch.cat([images, maps], 1)
        features = self.features(images)
        scores = self.score(features).reshape(-1)
        if self.conditioning == "projection":
            scores = scores + (self.embed(labels) * features.sum((2, 3))).sum(1)
        elif self.conditioning == "auxiliary":
            return scores, self.classifier(features).flatten(1)
        return scores
