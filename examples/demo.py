"""Train a DCGAN on real handwritten digits, look at its samples, and measure how good and how fast
it is.

    python examples/demo.py [--out FOLDER] [--steps N]

1,200 of scikit-learn's 1,797 digits train the networks, 597 are held out and judge the samples. The
features and the labels of the judgement come from a scikit-learn classifier. The last line is the
path of a picture of samples. The exit status is 1 if the samples are not at least three times
nearer to the held-out digits than those of the untrained generator, or if one of the ten digits is
missing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from lightning_fabric import Fabric

import pyfastgan as pf
from pyfastgan.gan import GAN, PRESETS, GANConfig
from pyfastgan.metrics import FID, digits_classifier, fid

SAMPLES = 1000
PATHS = {"fast": "auto", "reference": "reference"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, help="a new folder (default: runs/demo, runs/demo-2...)"
    )
    parser.add_argument("--steps", type=int, default=PRESETS["dcgan"].steps)
    arguments = parser.parse_args()
    out = arguments.out or new_folder(Path("runs/demo"))

    size = 16
    digits, training, held_out = (
        pf.data.load("digits", size=size, split=split) for split in ("all", "train", "test")
    )
    config = pf.training.resolve_config(
        GANConfig, PRESETS["dcgan"], steps=arguments.steps, image_size=size, channels=1
    )
    torch.manual_seed(config.seed)
    untrained = GAN(config).networks["generator"].eval()

    print(
        f"Measuring the speed of a training step ({torch.get_num_threads()} threads) ...",
        flush=True,
    )
    rates = images_per_second(config, training)
    for name, rate in rates.items():
        print(f"  {name + ' path':15} {rate:7,.0f} images/s")
    print(f"  the fast path is {rates['fast'] / rates['reference']:.2f} times as fast\n")

    print(f"Training on {len(training)} digits for {config.steps} steps ...", flush=True)
    start = time.perf_counter()
    run = pf.gan.train(config, data=training, out=out)
    seconds = time.perf_counter() - start
    print(f"  took {seconds:.0f} s, {config.steps * config.batch_size / seconds:,.0f} images/s\n")

    print(f"Judging {SAMPLES} samples against {len(held_out)} held-out digits ...")
    classifier = digits_classifier(size)
    samples = pf.gan.load(run).sample(SAMPLES, seed=config.seed + 1)
    real, unseen = digits.tensors[0], held_out.tensors[0]
    trained = fid(samples, unseen, classifier)
    before = fid(untrained.sample(SAMPLES, seed=config.seed + 1), unseen, classifier)
    show("FID of the trained generator", trained)
    show("FID of the untrained generator", before)
    show("FID between two halves of the real digits", fid(real[::2], real[1::2], classifier))
    print(f"  features: {trained.extractor}")
    counts = classifier.count(samples)
    shares = torch.tensor(classifier.count(unseen)) * (SAMPLES / len(unseen))
    print("\n  digit               " + "".join(f"{digit:5}" for digit in range(10)))
    print("  seen in the samples " + "".join(f"{count:5}" for count in counts))
    print("  share of held-out   " + "".join(f"{share:5.0f}" for share in shares) + "\n")

    failures = []
    if trained.value > before.value / 3:
        failures.append("the FID of the trained generator is above a third of the untrained one's")
    if missing := [str(digit) for digit, count in enumerate(counts) if count == 0]:
        failures.append(f"no sample looks like a {', '.join(missing)}")
    for failure in failures:
        print(f"FAILED: {failure}")
    print(f"Walks through the latent space: {run.path / 'interpolation.png'}")
    print(f"Samples: {run.samples}")
    return 1 if failures else 0


def images_per_second(
    config: GANConfig, dataset: pf.data.TensorData, *, rounds: int = 7, steps: int = 20
) -> dict[str, float]:
    """Images a second of a training step on each path: medians of interleaved rounds."""
    fabric = Fabric(accelerator=config.accelerator, devices=1, precision=config.precision)
    torch.manual_seed(config.seed)
    systems = {name: GAN(config) for name in PATHS}
    for system in systems.values():
        for name, network in system.networks.items():
            system.networks[name] = fabric.setup_module(network)
            system.optimizers[name] = fabric.setup_optimizers(system.optimizers[name])
    batch = (dataset.tensors[0][: config.batch_size].to(fabric.device),)
    seconds: dict[str, list[float]] = {name: [] for name in PATHS}
    for turn in range(rounds + 1):
        for name, backend in PATHS.items():
            with pf.use_backend(backend):
                start = time.perf_counter()
                for step in range(1, steps + 1):
                    losses = systems[name].training_step(fabric, batch, turn * steps + step)
                # Reading a loss waits for the device.
                losses["discriminator_loss"].item()
                if turn > 0:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
    return {
        name: steps * config.batch_size / statistics.median(times)
        for name, times in seconds.items()
    }


def show(what: str, distance: FID) -> None:
    print(
        f"  {what:43} {distance.value:8.1f}   ({distance.samples[0]} against {distance.samples[1]})"
    )


def new_folder(folder: Path) -> Path:
    """`folder`, or the first of `folder`-2, -3 ... that does not exist."""
    path, number = folder, 1
    while path.exists():
        number += 1
        path = folder.with_name(f"{folder.name}-{number}")
    return path


if __name__ == "__main__":
    sys.exit(main())
