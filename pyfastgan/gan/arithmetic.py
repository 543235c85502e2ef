"""Arithmetic in the latent space: 7 - 1 + 4, and what the generator makes of it.

Radford et al. 2015 (arXiv 1511.06434, section 6.3) average the latent vectors of three samples of a
kind ("smiling woman"), add and subtract the means ("smiling woman - neutral woman + neutral man"),
and draw the result. Here a classifier sorts the samples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyfastgan.gan.dcgan import Generator

# Samples of a class whose latent vectors are averaged, as in the paper.
EXEMPLARS = 3
_BATCH, _MOST = 256, 20_480


def parse_terms(text: str) -> list[tuple[int, int]]:
    """The terms of "7-1+4" as (sign, class): [(1, 7), (-1, 1), (1, 4)].

    Raises `ValueError` for anything but two or more classes with signs between them.
    """
    terms = re.findall(r"([+-]?)(\d+)", re.sub(r"\s", "", text))
    whole = "".join(sign + number for sign, number in terms)
    if len(terms) < 2 or whole != re.sub(r"\s", "", text) or not all(s for s, _ in terms[1:]):
        raise ValueError(f"arithmetic must be classes with + or - between, as 7-1+4, got {text!r}")
    return [(-1 if sign == "-" else 1, int(number)) for sign, number in terms]


def class_latents(
    generator: Generator,
    classify: Callable[[Tensor], Tensor],
    classes: Sequence[int],
    count: int,
    *,
    seed: int = 0,
) -> dict[int, Tensor]:
    """Latent vectors whose images look like the given classes.

    Args:
        generator: In evaluation mode.
        classify: Maps images to classes (N,).
        classes: Which.
        count: How many vectors of each.
        seed: Of the latent vectors that are tried, in order.

    Returns:
        (count, latent_dim) for each class.

    Raises `ValueError`, with the class, where 20,480 samples do not hold that many of it.
    """
    latents = generator.latents(_MOST, seed)
    found: dict[int, list[Tensor]] = {label: [] for label in classes}
    for part in latents.split(_BATCH):
        with torch.no_grad():
            seen = classify(generator(part)).to(part.device)
        for label, rows in found.items():
            rows.extend(part[seen == label])
        if all(len(rows) >= count for rows in found.values()):
            return {label: torch.stack(rows[:count]) for label, rows in found.items()}
    label, rows = min(found.items(), key=lambda item: len(item[1]))
    raise ValueError(
        f"only {len(rows)} of {_MOST} samples look like class {label}, {count} are needed"
    )


def arithmetic(
    generator: Generator,
    classify: Callable[[Tensor], Tensor],
    expression: str,
    *,
    columns: int = 10,
    seed: int = 0,
) -> Tensor:
    """Images of an expression over classes, drawn several times.

    In each column every class stands for the mean latent vector of three samples of it, another
    three in every column and for every term. Three terms add up to vectors about as long as the
    generator knows them.

    Args:
        generator: In evaluation mode.
        classify: Maps images to classes (N,).
        expression: As "7-1+4".
        columns: How often.
        seed: Of the latent vectors.

    Returns:
        Images (terms + 1, columns, C, H, W): a row of each term's means, and one of the results.

    Raises `ValueError` for what is no expression, columns below 1, and a class of which there are
    too few samples.
    """
    terms = parse_terms(expression)
    if columns < 1:
        raise ValueError(f"columns must be at least 1, not {columns}")
    labels = [label for _, label in terms]
    most = max(labels.count(label) for label in labels)
    needed = most * columns * EXEMPLARS
    found = class_latents(generator, classify, sorted(set(labels)), needed, seed=seed)
    means = {
        label: iter(rows.view(most, columns, EXEMPLARS, -1).mean(2))
        for label, rows in found.items()
    }
    rows = [next(means[label]) for label in labels]
    result = sum(sign * row for (sign, _), row in zip(terms, rows, strict=True))
    stacked = torch.stack([*rows, result])
    with torch.no_grad():
        images = generator(stacked.flatten(0, 1))
    return images.unflatten(0, stacked.shape[:2])
