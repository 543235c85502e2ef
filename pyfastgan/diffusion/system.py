"""The steps of a diffusion model's training, and its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyfastgan.diffusion.animation import Recorder, frames, save_gif
from pyfastgan.diffusion.choices import make_sampler
from pyfastgan.diffusion.config import DiffusionConfig
from pyfastgan.diffusion.mlp import MLP
from pyfastgan.diffusion.model import Decode, DiffusionModel
from pyfastgan.diffusion.power_average import PowerAverages, save_snapshot
from pyfastgan.diffusion.process import make_process
from pyfastgan.diffusion.unet import UNet
from pyfastgan.training.adam import Adam
from pyfastgan.training.devices import direct
from pyfastgan.training.rng import derive_seed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# The noise of training is unrelated to that of samples from the same seed.
_TRAINING = 5
_ANIMATED_IMAGES, _ANIMATED_POINTS = 36, 2000


def build(config: DiffusionConfig, shift: float = 0.0, scale: float = 1.0) -> DiffusionModel:
    """The model of a configuration, for data that are (x - shift) / scale to the network.

    Raises:
        ValueError: The data's shape, or the classes of a conditional model, are not given.
    """
    process = make_process(
        config.objective,
        schedule=config.schedule,
        levels=config.levels,
        prediction=config.prediction,
        zero_terminal_snr=config.zero_terminal_snr,
        weighting=config.weighting,
        gamma=config.min_snr_gamma,
    )
    classes = config.classes if config.conditional else None
    if config.conditional and classes is None:
        raise ValueError("classes must be given for a conditional model without data")
    shape = _shape(config)
    outputs = shape[0] * (1 + config.learned_variance)
    options: dict[str, Any] = {
        "out": outputs,
        "classes": classes,
        "time_scale": process.time_scale,
        "self_conditioning": config.self_conditioning,
    }
    network: nn.Module
    if len(shape) == 1:
        network = MLP(shape[0], width=config.width or 256, layers=config.blocks or 4, **options)
    else:
        network = UNet(
            shape[0],
            shape[1],
            width=config.width or 32,
            multipliers=config.multipliers or (1, 2),
            blocks=config.blocks or 1,
            attention=config.attention,
            dropout=config.dropout,
            **options,
        )
    return DiffusionModel(
        network,
        process,
        shape,
        classes=classes,
        label_dropout=config.label_dropout,
        self_conditioning=config.self_conditioning,
        learned_variance=config.learned_variance,
        coupling=config.coupling,
        levels=config.pixel_values or 256,
        shift=shift,
        scale=scale,
    )


def _shape(config: DiffusionConfig) -> tuple[int, ...]:
    if config.dim is not None:
        return (config.dim,)
    if config.image_size is None or config.channels is None:
        raise ValueError(
            "image_size and channels, or dim, must be given where there are no data to take them from,"
            f" got {config.image_size}, {config.channels} and {config.dim}"
        )
    return config.channels, config.image_size, config.image_size


class DiffusionSystem:
    """The system that the training loop drives: a model, its optimizer, one step.

    Args:
        config: With the shape of the data.
        shift, scale: Of the data.
        folder: Of the run, for stored averages.
        points: Data (N, 2) to draw beside moving points.
        decode: From latent vectors to images.
    """

    averaged: tuple[str, ...] = ("model",)

    def __init__(
        self,
        config: DiffusionConfig,
        shift: float = 0.0,
        scale: float = 1.0,
        *,
        folder: Path | None = None,
        points: Tensor | None = None,
        decode: Decode | None = None,
    ) -> None:
        self.config, self.folder, self.points, self.decode = config, folder, points, decode
        model = build(config, shift, scale)
        self.networks: dict[str, nn.Module] = {"model": model}
        self.profiles: PowerAverages | None = None
        if config.ema_snapshots:
            self.profiles = PowerAverages(model)
            self.networks.update(self.profiles.networks)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "model": Adam(model.parameters(), config.learning_rate)
        }
        self.seed = derive_seed(config.seed, _TRAINING)

    @property
    def period(self) -> int:
        """A toss of self-conditioning, an assignment on the CPU and stored averages are another work in each step."""
        config = self.config
        alike = not config.self_conditioning and config.coupling == "independent"
        return 1 if alike and not config.ema_snapshots else 0

    def training_step(
        self, fabric: Fabric, batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """A step down the loss. Noise is keyed by the step and the place in the global batch, so that it depends
        neither on where a run was interrupted nor on the number of ranks."""
        data = batch[0]
        labels = batch[1] if self.config.conditional else None
        place = {"stream": step, "sample_offset": fabric.global_rank * len(data)}
        optimizer = self.optimizers["model"]
        optimizer.zero_grad()  # first, so that the forward pass finds their memory free
        model = direct(fabric, self.networks["model"])
        losses = model(data, labels, seed=self.seed, **place)
        fabric.backward(losses["loss"])
        optimizer.step()
        if self.profiles is not None:
            self._follow(self.profiles, step, fabric.global_rank == 0)
        return {name: value.detach() for name, value in losses.items()}

    def _follow(self, profiles: PowerAverages, step: int, first: bool) -> None:
        inner = {name: getattr(net, "module", net) for name, net in self.networks.items()}
        model = inner.pop("model")
        profiles.update(model, inner, step)
        due = step % self.config.ema_snapshots == 0 or step == self.config.steps
        if due and first and self.folder is not None:
            save_snapshot(self.folder, inner, step)

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Images (count, C, H, W) in [-1, 1], or points (count, 2): of longer vectors the first two numbers."""
        found = self._model(networks).sample(
            count,
            seed,
            sampler=self.config.sampler,
            steps=self.config.sampler_steps,
            guidance=self.config.guidance,
        )
        return found if found.ndim == 4 else found[:, :2]

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Write `sampling.gif`: samples on their way from noise."""
        save_gif(animate(self._model(networks), self.config, self.points), folder / "sampling.gif")

    def _model(self, networks: dict[str, nn.Module]) -> DiffusionModel:
        model = networks["model"]
        assert isinstance(model, DiffusionModel)
        model.decode = self.decode
        return model


def animate(
    model: DiffusionModel, config: DiffusionConfig, points: Tensor | None = None, **options: Any
) -> list[Any]:
    """Frames of a sampling run, from noise to samples.

    Args:
        model: The model.
        config: For the sampler and the seed.
        points: Data (N, 2) to draw in grey.
        options: Of `DiffusionModel.sample`, instead of the configuration's: `seed`, `sampler`, `steps` and others.
    """
    plane = model.decode is None and not model.images
    count = _ANIMATED_POINTS if plane else _ANIMATED_IMAGES
    name = options.pop("sampler", None) or config.sampler
    steps = options.pop("steps", None) or config.sampler_steps
    of_sampler = {key: options.pop(key) for key in ("eta", "churn") if key in options}
    sampler = make_sampler(
        *(model.process, name, steps),
        clip=model.clip,
        learned_variance=model.learned_variance,
        **of_sampler,
    )
    recorder = Recorder(len(sampler.stages))
    options = {"seed": config.seed, "guidance": config.guidance, **options}
    seed = options.pop("seed")
    last = model.sample(count, seed, sampler=sampler, after=recorder, batch_size=count, **options)

    def finish(state: Tensor) -> Tensor:
        found = model.finish(state * model.scale + model.shift)
        return found if found.ndim == 4 else found[:, :2]

    kept = [*recorder.states[:-1], (last - model.shift) / model.scale]
    if model.decode is not None:
        kept = recorder.states
    return frames(kept, finish, points if plane else None)
