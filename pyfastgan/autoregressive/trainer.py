"""Training a PixelCNN: the configuration, its presets, and bits per dimension on held-out data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pyfastgan import data as data_sets
from pyfastgan._names import check_choice
from pyfastgan.autoregressive.codes import load_codes
from pyfastgan.autoregressive.gated import GatedPixelCNN
from pyfastgan.autoregressive.likelihood import Likelihood, LogisticMixture, Softmax, bits_per_dim
from pyfastgan.autoregressive.masked import PixelCNN
from pyfastgan.autoregressive.model import Decode, PixelModel
from pyfastgan.autoregressive.network import CausalNetwork, check_kernel
from pyfastgan.autoregressive.two_levels import TwoLevelPrior
from pyfastgan.training import Run, TrainConfig, fit, load_weights, resolve_config
from pyfastgan.training.adam import Adam
from pyfastgan.training.config import check_number, read_config_file
from pyfastgan.training.report import report

if TYPE_CHECKING:
    from lightning_fabric import Fabric

NETWORKS = ("gated", "masked")
LIKELIHOODS = ("softmax", "mixture")
# The model's name in a run whose configuration was not chosen by the name of a preset.
_NAME = "pixelcnn"
# What digits of 8 pixels have; other images have bytes.
_DIGIT_LEVELS, _BYTES = 17, 256


@dataclass(kw_only=True)
class PixelCNNConfig(TrainConfig):
    """How to train a PixelCNN.

    Args:
        codes: The folder of a run whose codes to learn a prior over, instead of images; `data` is
            then that run's. Of codes of two levels the finer ones are conditioned on the coarser ones.
        network: "gated" (van den Oord et al. 2016, without a blind spot) or "masked" (PixelCNN).
        layers: Gated layers, or residual blocks.
        width: Channels of the maps.
        kernel_size: Of the layers but the first; odd.
        first_kernel_size: Of the first layer; odd, at least 3.
        attention: A causal attention (PixelSNAIL) after every so many gated layers; 0 for none. Of codes
            of two levels it is in the network of the coarser ones, by default after every other layer;
            otherwise 0 by default.
        dropout: Share of the layers' features that is dropped in training.
        likelihood: "softmax" over the levels of grey images, or "mixture" of discretised logistics
            for 8-bit images; by default the mixture for 256 levels, else the softmax.
        levels: Values that images are rounded to; by default 17 for digits of 8 pixels, else 256.
        components: Of the mixture.
        conditional: Whether the class of an image is given to the network.
        image_size: Pixels a side; by default as the data have.
        top_size: Of the coarser codes of two levels, which say it.
        channels: Of the images; by default as the data have.
        classes: Number of classes; by default as the data have.
        learning_rate: Of Adam.
    """

    codes: str | None = None
    network: str = "gated"
    layers: int = 6
    width: int = 64
    kernel_size: int = 3
    first_kernel_size: int = 7
    attention: int | None = None
    dropout: float = 0.0
    likelihood: str | None = None
    levels: int | None = None
    components: int = 10
    conditional: bool = False
    image_size: int | None = None
    top_size: int | None = None
    channels: int | None = None
    classes: int | None = None
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "width", "components"):
            check_number(name, getattr(self, name), int, at_least=1)
        check_kernel("kernel_size", self.kernel_size)
        check_kernel("first_kernel_size", self.first_kernel_size, at_least=3)
        for name, least in (
            ("attention", 0),
            ("levels", 2),
            ("image_size", 1),
            ("top_size", 1),
            ("channels", 1),
            ("classes", 1),
        ):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), int, at_least=least)
        check_number("dropout", self.dropout, float, at_least=0)
        if self.dropout >= 1:
            raise ValueError(f"dropout must be below 1, got {self.dropout}")
        check_choice("network", self.network, NETWORKS)
        if self.attention and self.network != "gated":
            raise ValueError("attention must be 0 in a masked network: the gated one has it")
        if self.likelihood is not None:
            check_choice("likelihood", self.likelihood, LIKELIHOODS)
        check_number("learning_rate", self.learning_rate, float, at_least=0)


PRESETS: dict[str, PixelCNNConfig] = {
    # More steps than these learn the 1,200 digits by heart.
    "pixelcnn": PixelCNNConfig(
        data="digits", width=32, layers=5, dropout=0.5, steps=400, ema_decay=0.98
    ),
}


class _Data(NamedTuple):
    """What to train on and what to judge by."""

    train: Any
    test: Any | None


class PixelCNNSystem:
    """The system that the training loop drives: one network, one optimizer, one step."""

    averaged: tuple[str, ...] = ("network",)
    period = 1

    def __init__(
        self,
        config: PixelCNNConfig,
        train: Any | None = None,
        test: Any | None = None,
        *,
        decode: Decode | None = None,
    ) -> None:
        self.config, self.train, self.test, self.decode = config, train, test, decode
        network = _network(config)
        self.network = network
        self.networks: dict[str, nn.Module] = {"network": network}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "network": Adam(network.parameters(), config.learning_rate)
        }

    def training_step(
        self, fabric: Fabric, batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """One step down the mean negative log-likelihood, in bits per dimension."""
        model = self._model(self.network)
        values = model.values(batch[0])
        labels = batch[1] if self.config.conditional else None
        parameters = self.networks["network"](values, labels)
        nll = self.network.nll_of(values, parameters)
        loss = bits_per_dim(nll.mean(), model.dims)
        self.optimizers["network"].zero_grad()
        fabric.backward(loss)
        self.optimizers["network"].step()
        return {"bits_per_dim": loss.detach()}

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Images (count, C, H, W) in [-1, 1]."""
        return self._model(networks["network"]).sample(count, seed)

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Test the model, and write `test.json`."""
        data, model = self.test or self.train, self._model(networks["network"])
        if data is None:
            return
        nll = model.mean_nll(data)
        report(
            folder,
            data=self.config.data,
            held_out="the test split" if self.test is not None else None,
            images=len(data),
            nll=nll,
            bits_per_dim=nll / model.dims / math.log(2),
        )

    def _model(self, network: nn.Module) -> PixelModel:
        assert isinstance(network, CausalNetwork | TwoLevelPrior)
        return PixelModel(network, codes=self.config.codes is not None, decode=self.decode)


def train(
    config: str | Path | PixelCNNConfig | Mapping[str, Any] = "pixelcnn",
    *,
    data: str | Tensor | Dataset[Any] | None = None,
    out: str | Path,
    resume: bool = False,
    decode: Decode | None = None,
    **overrides: Any,
) -> Run:
    """Train a PixelCNN and write a run folder.

    Of data with a training and a test split, the first is trained on, and the second tested: at the end
    `test.json` holds its mean negative log-likelihood in nats and in bits per dimension.

    Args:
        config: The name of a preset, a configuration, a mapping of its fields, or a YAML or JSON file.
        data: A name that `pyfastgan.data.load` understands instead of the configuration's, images
            (N, C, size, size) in [-1, 1], or a data set of them.
        out: The folder of the run; it must not hold one yet, unless `resume`.
        resume: Go on from the checkpoint in `out`, with the same bits as without the interruption.
        decode: With `codes`, maps codes to images, as `PixelModel` has it, for the pictures of samples.
        overrides: Fields that replace those of the configuration.

    Returns:
        The run: `run.samples` is the last picture, `load(run)` the model.

    Raises:
        ValueError: An unknown preset or key (with the nearest one), images of another shape than
            the configuration's, codes out of range, and what `pyfastgan.training.fit` refuses.
    """
    name, source = _NAME, config
    if isinstance(config, str) and not Path(config).is_file():
        check_choice("preset", config, PRESETS)
        name, source = config, PRESETS[config]
    if data is not None:
        overrides["data"] = data if isinstance(data, str) else data_sets.OWN
    resolved = resolve_config(PixelCNNConfig, source, **overrides)
    if resolved.codes is not None:
        found, resolved = _from_codes(resolved)
    else:
        found, resolved = _from_images(data, resolved)

    def build() -> PixelCNNSystem:
        return PixelCNNSystem(resolved, found.train, found.test, decode=decode)

    return fit(build, found.train, resolved, out, name=name, resume=resume)


def load(run: Run | str | Path, *, decode: Decode | None = None) -> PixelModel:
    """The model of a run, on the CPU in evaluation mode: `load("runs/a").sample(64, 1)`.

    Args:
        run: The run or its folder.
        decode: Of a prior over codes, maps codes to images, as `PixelModel` has it; without it codes
            are drawn as grey levels.

    Raises:
        ValueError: No run there, one of another kind, or weights that cannot be read.
    """
    run = Run.open(run.path if isinstance(run, Run) else run, PixelCNNConfig)
    assert isinstance(run.config, PixelCNNConfig)
    network = _network(run.config).eval()
    load_weights(run.weights, {"network": network})
    return PixelModel(network, codes=run.config.codes is not None, decode=decode)


def _network(config: PixelCNNConfig) -> CausalNetwork | TwoLevelPrior:
    if config.image_size is None or config.channels is None:
        raise ValueError(
            "image_size and channels must be given where there are no data to take them from,"
            f" got {config.image_size} and {config.channels}"
        )
    shape = (config.image_size, config.image_size)
    options: dict[str, Any] = {
        "layers": config.layers,
        "width": config.width,
        "kernel_size": config.kernel_size,
        "first_kernel_size": config.first_kernel_size,
        "dropout": config.dropout,
        "classes": config.classes if config.conditional else None,
    }
    likelihood = _likelihood(config)
    attention = config.attention or 0
    if config.top_size is not None:
        if config.network != "gated" or not isinstance(likelihood, Softmax):
            raise ValueError(
                "network must be 'gated' for codes of two levels: the masked one takes no other map"
            )
        small = (config.top_size, config.top_size)
        top = GatedPixelCNN(likelihood, small, attention=attention, **options)
        above = (likelihood.levels, *small)
        return TwoLevelPrior(top, GatedPixelCNN(likelihood, shape, above=above, **options))
    if config.network == "masked":
        return PixelCNN(likelihood, shape, **options)
    return GatedPixelCNN(likelihood, shape, attention=attention, **options)


def _likelihood(config: PixelCNNConfig) -> Likelihood:
    levels, kind = config.levels or _BYTES, config.likelihood
    if kind is None:
        kind = "mixture" if levels == _BYTES and config.codes is None else "softmax"
    if kind == "softmax":
        if config.channels != 1:
            raise ValueError(
                f"likelihood must be 'mixture' for images of {config.channels} channels:"
                " a softmax is over the levels of one"
            )
        return Softmax(levels)
    if levels != _BYTES or config.codes is not None:
        raise ValueError(f"levels must be {_BYTES} for a mixture of logistics, got {levels}")
    return LogisticMixture(config.channels or 1, config.components)


def _from_codes(config: PixelCNNConfig) -> tuple[_Data, PixelCNNConfig]:
    """The codes of a run, and the configuration with what they say."""
    assert config.codes is not None
    train, test = load_codes(config.codes)
    height, width = train.shape
    if height != width:
        raise ValueError(f"{config.codes}: the maps of codes must be square, got {train.shape}")
    known = {"image_size": height, "channels": 1, "levels": train.count}
    if train.top_shape is not None:
        if train.top_shape[0] != train.top_shape[1]:
            raise ValueError(
                f"{config.codes}: the maps of codes must be square, got {train.top_shape}"
            )
        known["top_size"] = train.top_shape[0]
    elif config.top_size is not None:
        raise ValueError(f"top_size must be left out: {config.codes} has codes of one level")
    for name, value in known.items():
        if getattr(config, name) not in (None, value):
            raise ValueError(f"{name} must be {value} like the codes of {config.codes}")
    values: dict[str, Any] = {"data": _data_of(config), "classes": _classes(config, train)}
    if config.conditional and test is not None and test.classes is None:
        test = None
    if train.top_shape is not None and config.network == "gated" and config.attention is None:
        values["attention"] = 2
    resolved = resolve_config(PixelCNNConfig, config, **known, **values)
    return _Data(train, test), resolved


def _data_of(config: PixelCNNConfig) -> str:
    """The data of the run that made the codes."""
    file = Path(config.codes or "") / "config.yaml"
    return str(read_config_file(file).get("data", config.data))


def _from_images(data: Any, config: PixelCNNConfig) -> tuple[_Data, PixelCNNConfig]:
    """The images, and the configuration with what they say."""
    if config.top_size is not None:
        raise ValueError("top_size is for codes of two levels, got it for images")
    name, found = config.data, _images(data, config)
    if found.test is not None and name in data_sets.BUILT_IN:
        name = f"{name}:train"  # so that the run's configuration says what it was trained on
    shape = found.train.shape
    size, channels = config.image_size or shape[-1], config.channels or shape[0]
    if shape != (channels, size, size):
        raise ValueError(
            f"data must be images of shape ({config.channels or '1 or 3'}, {size}, {size}),"
            f" got items of shape {shape}; the configuration's channels and image_size say what"
            " is expected"
        )
    digits = name.partition(":")[0] == "digits" and size == 8 and config.likelihood != "mixture"
    levels = config.levels or (_DIGIT_LEVELS if digits else _BYTES)
    values = {
        "data": name,
        "image_size": size,
        "channels": channels,
        "levels": levels,
        "classes": _classes(config, found.train),
    }
    return found, resolve_config(PixelCNNConfig, config, **values)


def _images(data: Any, config: PixelCNNConfig) -> _Data:
    """The data set to train on, and its test split where it has one."""
    if data is not None and not isinstance(data, str):
        return _Data(data_sets.load(data), None)
    name = config.data
    if name == data_sets.OWN:
        raise ValueError("data must be given: this configuration is of a run on the caller's own")
    if name in data_sets.TOYS:
        return _Data(data_sets.load(name), None)  # refused for its shape
    size = {} if config.image_size is None else {"size": config.image_size}
    if not data_sets.has_splits(name) or name.endswith((":all", ":test")):
        return _Data(data_sets.load(name, **size), None)
    train, test = (data_sets.load(name, split=part, **size) for part in ("train", "test"))
    return _Data(train, test)


def _classes(config: PixelCNNConfig, dataset: Any) -> int | None:
    if not config.conditional:
        return config.classes
    if dataset.classes is None:
        raise ValueError("conditional must be false: the data have no labels")
    if config.classes is not None and config.classes < dataset.classes:
        raise ValueError(f"classes must be at least {dataset.classes}, got {config.classes}")
    return config.classes or int(dataset.classes)
