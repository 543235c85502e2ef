"""A network together with its process: losses in training, samples, likelihoods."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan._names import check_choice
from pyfastgan.diffusion.choices import make_sampler
from pyfastgan.diffusion.coupling import optimal_assignment
from pyfastgan.diffusion.guidance import SelfConditioned, check_rescale, rescaled, sample_labels
from pyfastgan.diffusion.inpainting import check_mask, inpaint
from pyfastgan.diffusion.likelihood import bits_per_dim, process_nll, variational_bound
from pyfastgan.diffusion.prediction import PREDICTIONS, edm_input_scale, target
from pyfastgan.diffusion.process import Levels, Path, Process
from pyfastgan.diffusion.sampler import Sampler
from pyfastgan.ops import diffuse, gaussian_vlb, random_normal, random_uniform
from pyfastgan.training.rng import derive_seed

Decode = Callable[[Tensor], Tensor]
COUPLINGS = ("independent", "optimal")
METHODS = ("vlb", "ode")
_BATCH = 256
# Weight of the bound, of all its terms in bits/dim, beside the squared error (Nichol & Dhariwal 2021, section 3.1).
_BOUND_WEIGHT = 0.001


class DiffusionModel(nn.Module):
    """A diffusion or flow-matching model.

    Args:
        network: `network(x, time, labels, x0)`, as `UNet` and `MLP` have it.
        process: What it is trained on.
        shape: Of a sample, (C, H, W) or (dim,).
        classes: Of a conditional network.
        label_dropout: Share of the labels that training hides, for guidance.
        self_conditioning: Whether the network takes an estimate of x_0; training gives it one in half of the steps.
        learned_variance: Whether the second half of the network's channels is a variance, of a process with levels.
        coupling: "independent" noise, or for flow matching "optimal" (OT-CFM).
        levels: Values that a number of an image may have.
        shift, scale: Data are (x - shift) / scale to the network.

    Raises `ValueError` for an unknown coupling, and for options of another process.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        shape: tuple[int, ...],
        *,
        classes: int | None = None,
        label_dropout: float = 0.1,
        self_conditioning: bool = False,
        learned_variance: bool = False,
        coupling: str = "independent",
        levels: int = 256,
        shift: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("coupling", coupling, COUPLINGS)
        if coupling == "optimal" and not isinstance(process, Path):
            raise ValueError("coupling must be 'independent' where it is not flow matching")
        if learned_variance and not isinstance(process, Levels):
            raise ValueError("learned_variance must be false where there are no levels")
        self.network, self.process, self.shape, self.classes = network, process, shape, classes
        self.label_dropout, self.self_conditioning = label_dropout, self_conditioning
        self.learned_variance, self.coupling, self.levels = learned_variance, coupling, levels
        self.register_buffer("shift", torch.tensor(shift))
        self.register_buffer("scale", torch.tensor(scale))
        # From the latent vectors of another model to images; None where samples are images or points.
        self.decode: Decode | None = None

    @property
    def dims(self) -> int:
        """Numbers in a sample."""
        return math.prod(self.shape)

    @property
    def images(self) -> bool:
        """Whether samples are images in [-1, 1] (not points, nor another model's latent vectors)."""
        return len(self.shape) == 3

    def forward(
        self,
        data: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int,
        stream: int = 0,
        sample_offset: int = 0,
    ) -> dict[str, Tensor]:
        """The losses of a batch, scalars: `loss` to be descended, and its parts where it has some.

        Args:
            data: (N, ...) in the data's own units.
            labels: int64 (N,), of a conditional model.
            seed, stream, sample_offset: Of times and noise; streams 4 `stream` to 4 `stream` + 3 are used.
        """
        x0 = (data - self.shift) / self.scale
        place = (seed, 4 * stream, sample_offset)
        times = self.process.draw(len(x0), x0.device, *place)
        noise = {"stream": 4 * stream + 1, "sample_offset": sample_offset}
        given = None
        if self.coupling == "optimal":
            given = random_normal(x0.shape, seed, dtype=x0.dtype, device=x0.device, **noise)  # type: ignore[arg-type]
            given = given[optimal_assignment(x0, given)]
        if given is None:
            x_t, z = diffuse(x0, times.alpha, times.sigma, seed, **noise)  # type: ignore[arg-type]
        else:
            x_t, z = diffuse(x0, times.alpha, times.sigma, noise=given)
        assert z is not None
        labels = self._hide(labels, seed, 4 * stream + 2, sample_offset)
        options: dict[str, Any] = {}
        if self.self_conditioning and derive_seed(seed, stream) % 2:
            with torch.no_grad():
                options["x0"] = self._estimate(x_t, times, labels)
        found = self._network(self._scaled(x_t, times.sigma), times.time, labels, **options)
        prediction, variance = found, None
        if self.learned_variance:
            prediction, variance = found.chunk(2, 1)
        wanted = target(self.process.prediction, x0, z, times.alpha, times.sigma)
        weight = self.process.weight(times)
        if weight is None:
            loss = functional.mse_loss(prediction, wanted)
        else:
            loss = ((prediction - wanted).square().flatten(1).mean(1) * weight).mean()
        if variance is None:
            return {"loss": loss}
        assert isinstance(self.process, Levels)
        assert times.level is not None
        schedule = self.process.schedule
        rows = schedule.vlb_coefficients(times.level)
        bound = gaussian_vlb(x0, x_t, prediction.detach(), variance, rows, levels=self.levels)
        # A level in T is drawn, so T times its term is the bound on average.
        bits = bits_per_dim(bound, self.dims).mean() * len(schedule)
        return {"loss": loss + _BOUND_WEIGHT * bits, "error": loss, "bound": bits}

    def _hide(self, labels: Tensor | None, seed: int, stream: int, offset: int) -> Tensor | None:
        if self.classes is None:
            return None
        if labels is None:
            raise ValueError("labels must be given to a conditional model, got None")
        u = random_uniform(
            (len(labels), 1), seed, stream=stream, sample_offset=offset, device=labels.device
        )
        return torch.where(u[:, 0] < self.label_dropout, self.classes, labels)

    def _scaled(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.process.prediction != "edm":
            return x
        return x * edm_input_scale(sigma).reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)

    def _network(self, x: Tensor, time: Tensor, labels: Tensor | None, **options: Any) -> Tensor:
        return self.network(x, time, labels, **options).to(x.dtype)

    def _estimate(self, x_t: Tensor, times: Any, labels: Tensor | None) -> Tensor:
        found = self._network(self._scaled(x_t, times.sigma), times.time, labels)
        column = (-1, *[1] * (x_t.dim() - 1))
        factors = PREDICTIONS[self.process.prediction].x0(times.alpha, times.sigma)
        state, prediction = (t.reshape(column).to(x_t.dtype) for t in factors)
        x0 = state * x_t + prediction * found[:, : x_t.shape[1]]
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    @property
    def clip(self) -> float | None:
        """The bound on a predicted x_0: that of images, for processes with levels."""
        return 1.0 if self.images and isinstance(self.process, Levels) else None

    @torch.no_grad()
    def sample(
        self,
        count: int,
        seed: int | Tensor | None = None,
        *,
        labels: Tensor | int | None = None,
        sampler: str | Sampler | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        rescale: float = 0.0,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        repeats: int = 1,
        batch_size: int = _BATCH,
        after: Callable[[int, Tensor], Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """Images (count, C, H, W) in [-1, 1] or points (count, dim).

        Args:
            count: How many.
            seed: An int; or int64 (count,), a seed for each sample, which alone decides on it: up to rounding it
                is the same in any batch. By default an int is drawn from torch's generator.
            labels: int64 (count,) or one class for all; by default the classes in turn, by the seed where each
                sample has one.
            sampler: A name (see `pyfastgan.diffusion.SAMPLERS`) or a sampler.
            steps: Of a sampler by name.
            guidance: The guidance scale of a conditional model; 1 and None are no guidance.
            rescale: See `pyfastgan.diffusion.guide`.
            known, mask, repeats: Inpainting, see `pyfastgan.diffusion.inpaint`; known in the data's units.
            batch_size: Samples made together.
            after: As in `Sampler.sample`, in the network's units; not with inpainting.
            options: Of the sampler by name: `eta` of ddim, `churn` of edm.

        Raises:
            ValueError: A count below 1, seeds of another shape, labels or guidance of an unconditional model, labels
                out of range, known without a mask or of another shape, and what `make_sampler` refuses.
        """
        device = self.scale.device
        if count < 1 or batch_size < 1:
            raise ValueError(f"count and batch_size must be at least 1, got {count}, {batch_size}")
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        if isinstance(seed, Tensor) and (seed.dtype != torch.int64 or seed.shape != (count,)):
            raise ValueError(
                f"seed must be an int or int64 ({count},), got {seed.dtype} {tuple(seed.shape)}"
            )
        if not isinstance(sampler, Sampler):
            learned = self.learned_variance
            sampler = make_sampler(
                *(self.process, sampler, steps),
                clip=self.clip,
                learned_variance=learned,
                **options,
            )
        check_rescale(rescale)
        given = sample_labels(labels, count, seed, self.classes, guidance, device)
        if (known is None) != (mask is None):
            raise ValueError("known and mask must be given together")
        if known is not None:
            if known.shape not in ((count, *self.shape), (1, *self.shape)):
                raise ValueError(
                    f"known must be of shape {(count, *self.shape)}, got {tuple(known.shape)}"
                )
            known = known.to(device).expand(count, *self.shape)
            assert mask is not None
            mask = check_mask(mask.to(device), known).expand(count, *known.shape[1:])
        found = []
        for start in range(0, count, batch_size):
            part = slice(start, min(start + batch_size, count))
            seeds = seed[part].to(device) if isinstance(seed, Tensor) else seed
            loop: dict[str, Any] = {
                "sample_offset": start,
                "learned_variance": self.learned_variance,
            }
            network = self._prepare(loop, sampler, given, part, guidance, rescale, repeats)
            shape = (part.stop - part.start, *self.shape)
            if known is None or mask is None:
                x = sampler.initial_noise(
                    shape, seeds, sample_offset=start, dtype=self.scale.dtype, device=device
                )
                x = sampler.sample(network, x, seeds, after=after, **loop)
            else:
                there = (known[part] - self.shift) / self.scale
                x = inpaint(sampler, network, there, mask[part], seeds, repeats=repeats, **loop)
            found.append(x)
        x = torch.cat(found) * self.scale + self.shift
        if known is not None and mask is not None:
            x = torch.where(mask, known, x)
        return self.finish(x)

    def finish(self, x: Tensor) -> Tensor:
        """Samples in the data's units as what they stand for: images within [-1, 1], or decoded latent vectors."""
        if self.decode is not None:
            return self.decode(x.cpu())
        return x.clamp(-1, 1) if self.images else x

    def _prepare(
        self,
        loop: dict[str, Any],
        sampler: Sampler,
        labels: Tensor | None,
        part: slice,
        guidance: float | None,
        rescale: float,
        repeats: int,
    ) -> Callable[..., Tensor]:
        """The network of one sampling loop, and the loop's options for its condition."""
        network: Callable[..., Tensor] = self._network_of_two
        if self.self_conditioning:
            network = SelfConditioned(network, sampler, self.clip, repeats)
        if labels is None:
            return network
        condition = labels[part]
        nothing = torch.full_like(condition, self.classes or 0)
        loop["condition"] = condition
        if guidance is None or guidance == 1:
            return network
        if rescale:
            return rescaled(network, nothing, guidance, rescale)
        loop |= {"no_condition": nothing, "guidance": guidance}
        return network

    def _network_of_two(
        self, x: Tensor, time: Tensor, labels: Tensor | None = None, **options: Any
    ) -> Tensor:
        return self._network(x, time, labels, **options)

    @torch.no_grad()
    def nll(
        self,
        data: Tensor,
        labels: Tensor | None = None,
        *,
        method: str = "ode",
        seed: int = 0,
        terms: int | None = None,
        sample_offset: int = 0,
        **options: Any,
    ) -> Tensor:
        """-ln p of data (N, ...) in nats, float64 (N,).

        Args:
            data: Images with `levels` values in [-1, 1], points, or latent vectors.
            labels: int64 (N,), of a conditional model; without, the network's answer for no class.
            method: "vlb", a bound on -ln of the probability of images, of a process with levels; or "ode", -ln of the
                density at the least noise level. To images it adds uniform noise of one step of their values, so that
                `bits_per_dim(nll, dims, levels)` bounds the bits of a value.
            seed: Of the noise.
            terms: Of "vlb", see `variational_bound`.
            sample_offset: The number of the first sample.
            options: Of "ode": `solver`, `steps`, `tolerance`, `method`, `divergence` of `flow_nll`.

        Raises:
            ValueError: An unknown method, a bound of a model that has none, data of another shape.
        """
        check_choice("method", method, METHODS)
        if tuple(data.shape[1:]) != self.shape:
            raise ValueError(f"data must be of shape (N, *{self.shape}), got {tuple(data.shape)}")
        if self.classes is not None and labels is None:
            labels = torch.full((len(data),), self.classes, device=data.device)

        def network(x: Tensor, time: Tensor) -> Tensor:
            return self._network_of_two(x, time, labels)

        if method == "vlb":
            if not isinstance(self.process, Levels) or not self.images:
                raise ValueError("method must be 'ode': a bound is for images and levels")
            return variational_bound(
                network,
                self.process.schedule,
                data,
                seed,
                learned_variance=self.learned_variance,
                levels=self.levels,
                terms=terms,
                sample_offset=sample_offset,
            )
        x = data.double()
        if self.images:
            u = random_uniform(data.shape, seed, sample_offset=sample_offset, device=data.device)
            x = x + (u.double() - 0.5) * (2 / (self.levels - 1))
        x = (x - self.shift) / self.scale
        density = process_nll(
            network,
            self.process,
            x,
            self.scale.dtype,
            seed=seed,
            sample_offset=sample_offset,
            **options,
        )
        return density + self.dims * math.log(float(self.scale))

    def bits_per_dim(self, nll: Tensor, method: str) -> Tensor:
        """What `nll` gave, as bits a number: of images a bound on those of their values, of other data those of the
        density."""
        return bits_per_dim(
            nll, self.dims, self.levels if self.images and method == "ode" else None
        )
