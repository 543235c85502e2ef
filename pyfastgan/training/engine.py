"""The training loop that every family shares."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from pyfastgan.data.pairs import PairData, UnpairedData
from pyfastgan.training.average import WeightAverage
from pyfastgan.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_state,
    save_checkpoint,
    save_weights,
)
from pyfastgan.training.config import RESUMABLE_KEYS, TrainConfig, plain, to_dict
from pyfastgan.training.devices import make_fabric
from pyfastgan.training.graphs import GraphedSteps, check_capturable
from pyfastgan.training.grids import loss_picture, sample_picture, save_png
from pyfastgan.training.log import LossMeter, RunWriter, Stopwatch, check_finite
from pyfastgan.training.rng import derive_seed, own_rng, rng_state, seed_all, set_rng_state
from pyfastgan.training.run import Run
from pyfastgan.training.sampler import Sampler, batches
from pyfastgan.training.signals import StopRequest, TrainingInterrupted
from pyfastgan.training.system import System

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_NOISE_STREAM = 2
_REFERENCE_POINTS = 2000
_RATES = ("steps_per_second", "images_per_second")


def fit(
    build: Callable[[], System],
    dataset: Dataset[Any],
    config: TrainConfig,
    out: str | Path,
    *,
    name: str,
    resume: bool = False,
) -> Run:
    """Train a system and write a run folder.

    Nothing is written before the first row, picture or checkpoint is due, so a start that fails
    leaves no folder. A run that is stopped and resumed gives the same bits as one that is not, on
    the same kind and number of devices and threads.

    Args:
        build: Makes the system; called once, after seeding.
        dataset: Map-style, items are tuples of tensors; one with `tensors` is indexed in memory.
        config: How to train.
        out: The folder of the run.
        name: What is trained, for messages and for checking a resumed run.
        resume: Go on from the checkpoint in `out`.

    Returns:
        The run.

    Raises:
        ValueError: A data set that is too small, a folder that already holds a run, a checkpoint
            that cannot be read or belongs to another model or configuration, a device that is not
            there, a loss that is no longer finite.
        TrainingInterrupted: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    run = Run(Path(out), name, config)
    sampler = Sampler(len(dataset), config.batch_size, config.seed)  # type: ignore[arg-type]
    state = None
    if resume:
        state = _checkpoint_to_resume(run)
    else:
        _check_new(run)
    fabric = make_fabric(config)
    fabric.launch()
    sampler.take_part(fabric.global_rank, fabric.world_size)
    seed_all(config.seed)
    system = build()
    if isinstance(dataset, PairData | UnpairedData) and not getattr(system, "two_kinds", False):
        raise ValueError(
            f"data must be images of one kind, or points, for {name}: {config.data!r} has images of two kinds"
        )
    if config.cuda_graph:
        check_capturable(system, fabric.device, name)
    trainer = _Trainer(system, dataset, sampler, run, fabric)
    # The noise of training is unrelated to the draws that initialised the networks, and to that of
    # other ranks.
    seed_all(derive_seed(config.seed, _NOISE_STREAM, fabric.global_rank))
    if state is not None:
        trainer.restore(state)
    try:
        trainer.train()
    finally:
        trainer.writer.close()
    fabric.barrier()
    return run


class _Trainer:
    """A system on its device, and all that changes while it is trained."""

    def __init__(
        self,
        system: System,
        dataset: Dataset[Any],
        sampler: Sampler,
        run: Run,
        fabric: Fabric,
    ) -> None:
        self.system, self.sampler, self.run, self.fabric = system, sampler, run, fabric
        for name, network in system.networks.items():
            system.networks[name] = fabric.setup_module(network)
        for name, optimizer in system.optimizers.items():
            system.optimizers[name] = cast(
                "torch.optim.Optimizer", fabric.setup_optimizers(optimizer)
            )
        self.networks = {name: _unwrapped(net) for name, net in system.networks.items()}
        self.average = WeightAverage(
            {name: self.networks[name] for name in system.averaged}, run.config.ema_decay
        )
        self.batches = batches(dataset, sampler, fabric.device)
        self.losses, self.stopwatch = LossMeter(), Stopwatch()
        self.writer = RunWriter(run, step=0)
        self.step = 0
        held = getattr(dataset, "tensors", None)
        self.reference = None if held is None else held[0][:_REFERENCE_POINTS]

    def train(self) -> None:
        """Run the loop up to `config.steps`, or until it is asked to stop."""
        config, first = self.run.config, self.fabric.is_global_zero
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            desc=self.run.name,
            unit="step",
            disable=not first,
            mininterval=0.2 if sys.stderr.isatty() else 10,
        )
        self.stopwatch = Stopwatch()
        graphed = GraphedSteps(self.system, self.fabric) if config.cuda_graph else None
        prepare = getattr(self.system, "prepare", lambda step: None)
        with StopRequest() as stop, bar:
            while self.step < config.steps:
                self.step += 1
                batch = next(self.batches)
                prepare(self.step)
                if graphed is None:
                    losses = self.system.training_step(self.fabric, batch, self.step)
                else:
                    losses = graphed(batch, self.step)
                self.average.update(self.step)
                self.losses.add(losses)
                self.stopwatch.steps += 1
                bar.update()
                logged = self._due(config.log_every)
                if logged:
                    bar.set_postfix(self.log(), refresh=False)
                with self.stopwatch.paused():
                    if self._due(config.checkpoint_every):
                        self.save()
                    if self._due(config.sample_every):
                        self.draw()
                if self._must_stop(stop, logged):
                    self.interrupt()
        self.finish()

    def _due(self, interval: int) -> bool:
        return self.step == self.run.config.steps or (interval > 0 and self.step % interval == 0)

    def log(self) -> dict[str, str]:
        """Read the losses, the one thing that makes the host wait, and write them down."""
        names, values = self._read_losses()
        self.losses.clear()
        rate = self.stopwatch.read()
        batch = self.run.config.batch_size
        row: dict[str, int | float] = {"step": self.step, "images": self.step * batch}
        row.update(zip(names, values, strict=True))
        row.update(zip(_RATES, (round(rate, 3), round(rate * batch, 1)), strict=True))
        if self.fabric.is_global_zero:
            with self.stopwatch.paused():
                self.writer.row(row)
        shown = {name: f"{value:.3f}" for name, value in zip(names, values, strict=True)}
        return {**shown, "images/s": f"{rate * batch:.0f}"}

    def _read_losses(self) -> tuple[list[str], list[float]]:
        names, means = self.losses.means()
        if not names:
            return [], []
        values = cast("Tensor", self.fabric.all_reduce(means, reduce_op="mean")).tolist()
        check_finite(names, values, self.step)
        return names, values

    def draw(self) -> None:
        """Save a picture of samples from the fixed seed, leaving the generators as they were."""
        if not self.fabric.is_global_zero:
            return
        config = self.run.config
        with torch.no_grad(), own_rng(config.seed, self.fabric.device):
            samples = self.system.sample(self.average.current(), config.sample_count, config.seed)
        pixels = sample_picture(samples, self.reference)
        self.writer.picture(pixels, self.step)
        save_png(pixels, self.run.step_picture(self.step))
        save_png(pixels, self.run.samples)

    def save(self) -> None:
        """Write the checkpoint, and the weights to sample from."""
        self._read_losses()
        losses = self.losses.state_dict()
        # Every rank goes on from these: not those of the first one's part of the batches.
        losses["sums"] = {
            name: self.fabric.all_reduce(value.clone(), reduce_op="mean")
            for name, value in losses["sums"].items()
        }
        rng = _gathered(rng_state(self.fabric.device), self.fabric)
        if not self.fabric.is_global_zero:
            return
        self.writer.open()
        average = self.average.current()
        save_checkpoint(
            self.run.checkpoint,
            {
                "model": self.run.name,
                "config": plain(to_dict(self.run.config)),
                "step": self.step,
                "phase": self._phase(),
                "networks": {name: net.state_dict() for name, net in self.networks.items()},
                "average": {name: net.state_dict() for name, net in average.items()},
                "optimizers": {
                    name: optimizer.state_dict()
                    for name, optimizer in self.system.optimizers.items()
                },
                "sampler": self.sampler.state_dict(),
                "losses": losses,
                "precision": self.fabric.strategy.precision.state_dict(),
                "rng": rng,
            },
        )
        save_weights(self.run.weights, average, {"model": self.run.name})

    def _phase(self) -> str:
        """What the system calls the part of its training that it is in; nothing if it has none."""
        return str(getattr(self.system, "phase", ""))

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `save` was called.

        Raises:
            CheckpointError: The checkpoint holds other networks or optimizers than the system.
        """
        where = self.run.checkpoint
        _same_names("networks", state["networks"], self.networks, where)
        _same_names("averaged networks", state["average"], self.average.networks, where)
        _same_names("optimizers", state["optimizers"], self.system.optimizers, where)
        for name, network in self.networks.items():
            load_state(network, state["networks"][name], f"{where}, network {name!r},")
        for name, network in self.average.networks.items():
            load_state(network, state["average"][name], f"{where}, average of {name!r},")
        for name, optimizer in self.system.optimizers.items():
            try:
                optimizer.load_state_dict(state["optimizers"][name])
            except ValueError as error:
                raise CheckpointError(
                    f"{where}, optimizer {name!r}, does not fit: {error}"
                ) from None
        self.sampler.load_state_dict(state["sampler"])
        self.losses.load_state_dict(state["losses"], self.fabric.device)
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step = state["step"]
        self.writer = RunWriter(self.run, self.step)
        if len(state["rng"]) == self.fabric.world_size:
            set_rng_state(state["rng"][self.fabric.global_rank], self.fabric.device)
        else:  # another number of ranks: noise that was not drawn before
            words = (self.run.config.seed, _NOISE_STREAM, self.fabric.global_rank, self.step)
            seed_all(derive_seed(*words))

    def _must_stop(self, stop: StopRequest, logged: bool) -> bool:
        """Whether to stop after this step; several ranks agree where they wait for each other."""
        if self.fabric.world_size == 1:
            return stop.asked and self.step < self.run.config.steps
        if not logged or self.step == self.run.config.steps:
            return False
        asked = torch.tensor(float(stop.asked), device=self.fabric.device)
        return bool(cast("Tensor", self.fabric.all_reduce(asked, reduce_op="sum")).item())

    def interrupt(self) -> None:
        """Save, and end the run with a message that says how to go on."""
        self.save()
        phase = f" ({self._phase()})" if self._phase() else ""
        raise TrainingInterrupted(
            f"stopped after step {self.step} of {self.run.config.steps}{phase},"
            f" saved {self.run.checkpoint};"
            f" go on with --resume --out {self.run.path} (resume=True in Python)"
        )

    def finish(self) -> None:
        """Draw the loss curves and the system's own pictures."""
        if not self.fabric.is_global_zero:
            return
        self.writer.open()
        history = self.run.history
        columns = dict.fromkeys(key for row in history for key in row)
        names = [key for key in columns if key not in ("step", "images", *_RATES)]
        save_png(loss_picture(history, names), self.run.losses)
        with torch.no_grad(), own_rng(self.run.config.seed, self.fabric.device):
            self.system.pictures(self.average.current(), self.run.path)


def _check_new(run: Run) -> None:
    """Refuse a folder that holds a run or cannot be written, before any time is spent."""
    if found := run.existing():
        raise ValueError(
            f"{run.path} already holds a run ({', '.join(found)});"
            " go on with --resume (resume=True in Python) or choose another folder"
        )
    ground = run.path.absolute()
    while not ground.exists():
        ground = ground.parent
    if not ground.is_dir() or not os.access(ground, os.W_OK):
        raise ValueError(f"cannot make the run folder {run.path}: {ground} is no writable folder")


def _checkpoint_to_resume(run: Run) -> dict[str, Any]:
    """Read the checkpoint of a run, which must be one of the same model and configuration."""
    if not run.path.is_dir():
        raise ValueError(f"nothing to resume: there is no run folder {run.path}")
    state = load_checkpoint(run.checkpoint)
    if state["model"] != run.name:
        raise CheckpointError(
            f"cannot resume {run.path}: it is a run of {state['model']!r}, not of {run.name!r}"
        )
    old, new = state["config"], plain(to_dict(run.config))
    differing = [
        f"{key} was {old.get(key, 'absent')}, now {new.get(key, 'absent')}"
        for key in dict.fromkeys([*old, *new])
        if key not in RESUMABLE_KEYS and old.get(key) != new.get(key)
    ]
    if differing:
        raise CheckpointError(
            f"cannot resume {run.path} with another configuration: {'; '.join(differing)}"
        )
    if state["step"] > run.config.steps:
        raise ValueError(
            f"cannot resume {run.path} up to step {run.config.steps}: it is at step {state['step']}"
        )
    return state


def _unwrapped(network: Any) -> nn.Module:
    """The module inside Fabric's wrapper."""
    module: nn.Module = network.module
    return module


def _gathered(value: Any, fabric: Fabric) -> list[Any]:
    """The value of every rank, in order."""
    if fabric.world_size == 1:
        return [value]
    values = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def _same_names(kind: str, found: dict[str, Any], expected: dict[str, Any], where: Path) -> None:
    if found.keys() != expected.keys():
        raise CheckpointError(
            f"{where} holds the {kind} {sorted(found)}, expected {sorted(expected)}"
        )
