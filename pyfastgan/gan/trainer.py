"""Training a GAN: algorithm 1 of Goodfellow et al. 2014, with any loss, penalty or clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pyfastgan import data as data_sets
from pyfastgan.data import ImageData, MapData, TensorData
from pyfastgan.gan.augment import diff_augment, smoothing_loss
from pyfastgan.gan.config import GANConfig
from pyfastgan.gan.critic_step import critic_step
from pyfastgan.gan.dcgan import IMAGE_SIZES
from pyfastgan.gan.latent import interpolate
from pyfastgan.gan.level_sets import level_set_picture
from pyfastgan.gan.mlp_step import Passes, critics_turn, generators_turn
from pyfastgan.gan.networks import make_discriminator, make_generator
from pyfastgan.gan.objectives import discriminator_loss, generator_loss, get_objective
from pyfastgan.gan.orthogonal import add_orthogonal_gradients, matrices
from pyfastgan.gan.packing import packed
from pyfastgan.gan.shaped import square_images
from pyfastgan.gan.systems import KINDS, PRESETS, preset
from pyfastgan.ops import random_normal
from pyfastgan.training import (
    Run,
    TrainConfig,
    fit,
    image_grid,
    load_weights,
    resolve_config,
    run_name,
    save_png,
)
from pyfastgan.training.adam import Adam
from pyfastgan.training.config import read_config_file
from pyfastgan.training.rng import derive_seed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# The model's name in a run whose configuration was not chosen by the name of a preset.
_NAME = "dcgan"
_ROWS, _COLUMNS = 8, 10
# The noise of penalties has streams apart from those of the latent vectors, one a step each.
_PENALTY_STREAM = 2**31
_PICTURED_POINTS = 1000
# Uses of augmentation under one seed, each with a stream a step.
_REAL, _FAKE, _GENERATORS = range(1, 4)


class GAN:
    """The system that the training loop drives: two networks, two optimizers, one step.

    Args:
        config: How to train.
        points: Data (N, 2) to draw beside the discriminator's level sets at the end.
    """

    averaged: tuple[str, ...] = ("generator",)

    def __init__(self, config: GANConfig, points: Tensor | None = None) -> None:
        self.config, self.points = config, points
        self.networks: dict[str, nn.Module] = {
            "generator": make_generator(config),
            "discriminator": make_discriminator(config),
        }
        self.optimizers = {
            name: _optimizer(network, config) for name, network in self.networks.items()
        }
        # In another precision, and behind a parametrisation, the written passes are not those of
        # the networks.
        self._passes: dict[str, Passes] | None = None
        plain = config.precision == "32-true" and not config.spectral_norm
        plain = plain and config.label_smoothing == 0
        if config.architecture == "mlp" and plain:
            self._passes = {name: Passes(net) for name, net in self.networks.items()}  # type: ignore[arg-type]

    @property
    def period(self) -> int:
        """Of the generator's turns and the penalties."""
        config = self.config
        return math.lcm(
            config.discriminator_steps, 1 if config.penalty == "none" else config.penalty_interval
        )

    def training_step(
        self, fabric: Fabric, batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """A step of the discriminator, and of the generator if it is its turn.

        Both judge the same generated images, as in PyTorch's DCGAN tutorial, which saves a pass
        through the generator; real and generated images are normalised apart. Of a `wgan` loss the
        negative is logged, the estimate of the Wasserstein-1 distance (up to the slope's bound), and
        of a penalty the mean norm of the gradients.
        """
        real = batch[0]
        generators_turn = step % self.config.discriminator_steps == 0
        generator, discriminator = self.networks["generator"], self.networks["discriminator"]
        # Keyed by the step and the place in the global batch, so that noise depends neither on
        # where a run was interrupted nor on the number of ranks.
        latent = random_normal(
            (len(real), self.config.latent_dim),
            self.config.seed,
            stream=step,
            sample_offset=fabric.global_rank * len(real),
            device=real.device,
        )
        if self._passes is not None:
            real = packed(real, self.config.pack)
            return self._written_step(fabric, self._passes, real, latent, step)
        with torch.set_grad_enabled(generators_turn):
            fake = generator(latent)

        offset = fabric.global_rank * len(real)
        real = self._shown(real, _REAL, step, offset)
        shown = self._shown(fake.detach(), _FAKE, step, offset)
        losses = self._discriminator_step(fabric, real, shown, step)
        if generators_turn:
            # Frozen, since the gradients of its weights would be computed only to be thrown away.
            discriminator.requires_grad_(False)
            objective = self.config.objective
            judged = discriminator(real) if get_objective(objective).pairs else None
            fake = self._shown(fake, _GENERATORS, step, offset)
            loss = generator_loss(objective, discriminator(fake), judged)
            self._descend(fabric, "generator", loss)
            discriminator.requires_grad_(True)
            losses["generator_loss"] = loss.detach()
        return losses

    def _shown(self, images: Tensor, use: int, step: int, offset: int) -> Tensor:
        """The images as the discriminator sees them: augmented, then in packs."""
        seed = derive_seed(self.config.seed, use)
        policy = self.config.augment
        shown = diff_augment(images, policy, seed=seed, stream=step, sample_offset=offset)
        return packed(shown, self.config.pack)

    def _written_step(
        self, fabric: Fabric, passes: dict[str, Passes], real: Tensor, latent: Tensor, step: int
    ) -> dict[str, Tensor]:
        """`training_step` of an mlp, on the samples in their packs."""
        config, generator, critic = self.config, passes["generator"], passes["discriminator"]
        with torch.no_grad():
            kept, made = generator.forward(latent)
        fake = packed(made, config.pack)
        due = config.penalty != "none" and step % config.penalty_interval == 0
        adversarial, penalty, norm = critics_turn(
            critic,
            real,
            fake,
            objective=config.objective,
            penalty=config.penalty if due else None,
            weight=config.penalty_weight * config.penalty_interval,
            **self._penalty_noise(fabric, len(real), step),
        )
        self._step_discriminator()
        losses = self._logged(adversarial)
        if due:
            losses |= {"penalty": penalty, "gradient_norm": norm}
        if step % config.discriminator_steps == 0:
            value, by_sample = generators_turn(critic, real, fake, objective=config.objective)
            with torch.no_grad():
                generator.overwrite(kept, by_sample.reshape(made.shape))
            self.optimizers["generator"].step()
            losses["generator_loss"] = value
        return losses

    def _discriminator_step(
        self, fabric: Fabric, real: Tensor, fake: Tensor, step: int
    ) -> dict[str, Tensor]:
        config, discriminator = self.config, self.networks["discriminator"]
        if config.penalty != "none":
            losses, adversarial = self._penalised_step(fabric, real, fake, step)
            return {**self._logged(adversarial), **losses}
        of_real = discriminator(real)
        loss = discriminator_loss(config.objective, of_real, discriminator(fake))
        if config.label_smoothing > 0:
            loss = loss + smoothing_loss(config.label_smoothing, of_real)
        self.optimizers["discriminator"].zero_grad()
        fabric.backward(loss)
        self._step_discriminator()
        return self._logged(loss.detach())

    def _step_discriminator(self) -> None:
        """With its gradients there: the regularisation and the bounds of its weights."""
        config, discriminator = self.config, self.networks["discriminator"]
        if config.orthogonal_weight > 0:
            add_orthogonal_gradients(matrices(discriminator), config.orthogonal_weight)
        self.optimizers["discriminator"].step()
        if config.clip > 0:
            with torch.no_grad():
                torch._foreach_clamp_min_(list(discriminator.parameters()), -config.clip)
                torch._foreach_clamp_max_(list(discriminator.parameters()), config.clip)

    def _logged(self, adversarial: Tensor) -> dict[str, Tensor]:
        if self.config.objective == "wgan":
            return {"wasserstein_estimate": -adversarial}
        return {"discriminator_loss": adversarial}

    def _penalty_noise(self, fabric: Fabric, count: int, step: int) -> dict[str, Any]:
        return {
            "seed": self.config.seed,
            "stream": _PENALTY_STREAM + step,
            "sample_offset": fabric.global_rank * count,
        }

    def _penalised_step(
        self, fabric: Fabric, real: Tensor, fake: Tensor, step: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients written by `critic_step`, which sees the network without Fabric's wrapper."""
        config = self.config
        network = self.networks["discriminator"]
        critic = getattr(network, "module", network)
        dtype = next(critic.parameters()).dtype
        scaler = getattr(fabric.strategy.precision, "scaler", None)
        self.optimizers["discriminator"].zero_grad()
        due = step % config.penalty_interval == 0
        with fabric.autocast():
            result = critic_step(
                critic,
                real.to(dtype),
                fake.to(dtype),
                loss=config.objective,
                penalty=config.penalty if due else None,
                weight=config.penalty_weight,
                interval=config.penalty_interval,
                # Scaling a 1 brings the scaler to life, which the optimizer's step expects.
                loss_scale=1.0 if scaler is None else float(scaler.scale(real.new_ones(()))),
                **self._penalty_noise(fabric, len(real), step),
                synchronize=False,  # the strategy averages when the optimizer steps
            )
        self._step_discriminator()
        if not due:
            return {}, result.adversarial
        return {
            "penalty": result.penalty,
            "gradient_norm": result.gradient_norm,
        }, result.adversarial

    def _descend(self, fabric: Fabric, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad()
        fabric.backward(loss)
        self.optimizers[name].step()

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Images (count, channels, size, size) in [-1, 1]; image i is the same for any count."""
        return networks["generator"].sample(count, seed)  # type: ignore[operator]

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Save `interpolation.png`, on each row the way from one image to another; for points
        `level_sets.png`, the discriminator over the plane."""
        generator = networks["generator"]
        if self.config.architecture == "mlp":
            samples = generator.sample(_PICTURED_POINTS, self.config.seed)  # type: ignore[operator]
            judge, pack = self.networks["discriminator"], self.config.pack

            def critic(points: Tensor) -> Tensor:
                """Of packs of one and the same point."""
                return judge(points.repeat(1, pack))

            save_png(level_set_picture(critic, samples, self.points), folder / "level_sets.png")
            return
        ends = generator.latents(2 * _ROWS, self.config.seed)  # type: ignore[operator]
        walks = interpolate(ends[:_ROWS], ends[_ROWS:], _COLUMNS)
        with torch.no_grad():
            images = generator(walks.flatten(0, 1))
        save_png(image_grid(images, columns=_COLUMNS), folder / "interpolation.png")


def train(
    config: str | Path | TrainConfig | Mapping[str, Any] = "dcgan",
    *,
    data: str | Tensor | Dataset[Any] | None = None,
    out: str | Path,
    resume: bool = False,
    **overrides: Any,
) -> Run:
    """Train a GAN and write a run folder.

    Args:
        config: The name of a preset, a configuration, a mapping of its fields, or a YAML or JSON file.
            Some presets have networks of their own for points in the plane (`preset` tells).
        data: A name that `pyfastgan.data.load` understands instead of the configuration's, images
            (N, C, size, size) in [-1, 1], points (N, 2), or a data set of them.
        out: The folder of the run; it must not hold one yet, unless `resume`.
        resume: Go on from the checkpoint in `out`, with the same bits as without the interruption.
        overrides: Fields that replace those of the configuration.

    Returns:
        The run: `run.samples` is the last picture, `load(run)` the generator.

    Raises:
        ValueError: An unknown preset, key or objective (with the nearest one), images of another
            size than `image_size`, and what `pyfastgan.training.fit` refuses.
    """
    own = None if data is None or isinstance(data, str) else data_sets.load(data)
    name, source = _named(config, own or data or overrides.get("data"))
    if data is not None:
        overrides["data"] = data if isinstance(data, str) else data_sets.OWN
    kind = KINDS.get(type(PRESETS[name]))
    if kind is not None:
        resolved = resolve_config(type(PRESETS[name]), source, **overrides)
        resolved, dataset, build = kind.prepare(resolved, own)
        return fit(build, dataset, resolved, out, name=name, resume=resume)
    resolved = resolve_config(GANConfig, source, **overrides)
    dataset = _dataset(own, resolved)
    points = None
    if resolved.architecture == "mlp":
        held = dataset.tensors
        points = None if held is None else held[0][:_PICTURED_POINTS]
    else:
        channels, image_size = dataset.shape[0], dataset.shape[-1]
        resolved = resolve_config(GANConfig, resolved, image_size=image_size, channels=channels)
    return fit(lambda: GAN(resolved, points), dataset, resolved, out, name=name, resume=resume)


def _named(config: Any, data: Any) -> tuple[str, Any]:
    """The preset that a configuration belongs to, and where its fields are."""
    if isinstance(config, str) and not Path(config).is_file():
        return config, preset(config, data)
    name = _NAME
    if isinstance(config, (str, Path)):
        name = str(read_config_file(config, run_keys=True).get("model", _NAME))
        name = name if type(PRESETS.get(name)) in KINDS else _NAME
    elif type(config) in KINDS:
        name = KINDS[type(config)].name
    return name, config


def load(run: Run | str | Path) -> nn.Module:
    """The generator of a run, on the CPU in evaluation mode: `load("runs/digits").sample(64, 1)`.

    Raises:
        ValueError: No run there, one of another kind, or weights that cannot be read.
    """
    path = run.path if isinstance(run, Run) else Path(run)
    kind = type(PRESETS.get(run_name(path)))
    if kind in KINDS:
        return KINDS[kind].load(Run.open(path, kind))
    run = Run.open(path, GANConfig)
    assert isinstance(run.config, GANConfig)
    generator = make_generator(run.config).eval()
    load_weights(run.weights, {"generator": generator})
    return generator


def _optimizer(network: nn.Module, config: GANConfig) -> torch.optim.Optimizer:
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(network.parameters(), config.learning_rate)
    return Adam(network.parameters(), config.learning_rate, config.betas)


def _dataset(own: Any, config: GANConfig) -> TensorData | ImageData | MapData:
    """The data as a data set, after checking that they are what the networks expect."""
    if own is not None:
        dataset = own
    elif config.data == data_sets.OWN:
        raise ValueError("data must be given: this configuration is of a run on the caller's own")
    elif config.data in data_sets.TOYS:
        dataset = data_sets.load(config.data)
    else:
        dataset = square_images(config.data, config.image_size)
    if config.architecture == "mlp":
        if dataset.shape != (2,):
            raise ValueError(
                f"data must be points of shape (2,), got items of shape {dataset.shape}"
            )
        return dataset
    size, channels = config.image_size, config.channels
    if len(dataset.shape) == 3:
        # What the configuration leaves open is as the data have it.
        size = dataset.shape[-1] if size is None else size
        channels = dataset.shape[0] if channels is None else channels
    if dataset.shape != (channels, size, size) or size not in IMAGE_SIZES:
        raise ValueError(
            f"data must be images of shape {_wanted(config)}, got items of shape {dataset.shape}; "
            "the configuration's channels and image_size say what is expected"
        )
    return dataset


def _wanted(config: GANConfig) -> str:
    sizes = "8, 16, 32, 64 or 128" if config.image_size is None else str(config.image_size)
    return f"({config.channels or '1 or 3'}, {sizes}, {sizes})"
