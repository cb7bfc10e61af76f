"""Which examples go where, and the assembled `Data`.

A dataset brings a pool of training examples, and perhaps a test set and a validation set of its own. Parts without a set of their
own are drawn from the pool, in the order test, validation, train, from one permutation by the run's seed: the test and validation
examples do not depend on how many are trained on, and a smaller training subset is the beginning of a larger one. Examples for fitness
come from the end of the permutation, so that a training subset is the same with and without them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from repsearch.datasets.base import Data, Split
from repsearch.errors import DatasetError
from repsearch.seeding import generator


@dataclass(frozen=True)
class Choice:
    """Example numbers of each part, int64, in random order: of the part's own set where there is one, else of the pool."""

    train: Tensor
    validation: Tensor
    test: Tensor
    fitness: Tensor


@dataclass(frozen=True, kw_only=True)
class FitnessPart:
    """The field of a dataset of which examples can be set apart for fitness.

    fitness: training examples set apart from training, by the run's seed, on which a policy measures what it searches for
        (`code_search`); they are part of no other split.
    """

    fitness: Annotated[int, Field(ge=0)] = 0


def choose(
    *,
    pool: int,
    train: int | None,
    validation: int | None,
    test: int | None,
    seed: int,
    own_validation: int | None = None,
    own_test: int | None = None,
    fitness: int = 0,
) -> Choice:
    """Return disjoint examples for the parts: `pool` examples, `own_*` in a set of its own; None takes all that is there.

    Raises `DatasetError` naming the part, the number asked for and the number there is.
    """
    left = torch.randperm(pool, generator=generator(seed, "split", "train"))
    if own_test is not None:
        test_N = _subset("test", own_test, test, seed)
    else:
        test_N, left = _take("test", left, test)
    if own_validation is not None:
        validation_N = _subset("validation", own_validation, validation, seed)
    else:
        validation_N, left = _take("validation", left, validation)
    if len(left) == 0:
        raise DatasetError(f"dataset: no training example is left of {pool}; lower `validation` or `test`")
    if fitness >= len(left):
        raise DatasetError(f"dataset.fitness: {fitness} examples asked for, but there are {len(left)}, and some must be left for training")
    left, fitness_N = left[: len(left) - fitness], left[len(left) - fitness :]
    if train is not None and train > len(left):
        taken = f" ({pool} less {pool - len(left)} for validation, test or fitness)" if len(left) < pool else ""
        raise DatasetError(
            f"dataset.train: {train} training examples asked for, but there are {len(left)}{taken}; set it to {len(left)} or less"
        )
    return Choice(train=left[:train], validation=validation_N, test=test_N, fitness=fitness_N)


def assemble(name: str, classes: Sequence[str], *, train: Split, validation: Split, test: Split, fitness: Split | None = None) -> Data:
    """Return the `Data` of the splits, with channel statistics and digest; raises `DatasetError` for data that cannot be learned."""
    if len(classes) < 2:
        raise DatasetError(f"dataset {name}: one class only ({', '.join(classes)}); classification needs two or more")
    fitness = fitness if fitness is not None and len(fitness) else None
    apart = () if fitness is None else (fitness,)
    parts = (("training", train), ("validation", validation), ("test", test), *(("fitness", split) for split in apart))
    for part, split in parts:
        check_labels(split.labels, len(classes), where=f"dataset {name}: {part} image")
    present = torch.bincount(train.labels).nonzero()
    if len(present) < 2:
        raise DatasetError(
            f"dataset {name}: the {len(train)} training examples are of one class only ({classes[int(present[0])]}); raise `dataset.train`"
        )
    mean, std = statistics(train.images)
    if not bool((std > 0).all()):
        channel = int((std <= 0).nonzero()[0])
        raise DatasetError(f"dataset {name}: channel {channel} has one value in all training images, so it cannot be normalised")
    digest = data_digest(classes, [split for _, split in parts])
    return Data(name, tuple(classes), train, validation, test, mean, std, digest, fitness)


def check_labels(labels_N: Tensor, classes: int, *, where: str, first: int = 0) -> None:
    """Raise `DatasetError` naming the first label out of 0..classes-1, at `where` and its index; `first` is that of the first label."""
    wrong = ((labels_N < 0) | (labels_N >= classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise DatasetError(
            f"{where} {first + row}: label {int(labels_N[row])} is not in 0..{classes - 1}; correct the label, or name a class for it"
        )


def statistics(images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel, float32 (C,), of uint8 images scaled to 0..1."""
    values = torch.arange(256, dtype=torch.float64) / 255
    # Through histograms: exact whatever the number of images or threads, and no float copy of the data.
    counts = torch.stack([torch.bincount(channel.reshape(-1), minlength=256) for channel in images_NCHW.unbind(1)])
    shares = counts.double() / counts.sum(1, keepdim=True)
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(1)
    return mean.float(), variance.sqrt().float()


def data_digest(classes: Sequence[str], splits: Sequence[Split]) -> str:
    """Return the hex SHA-256 of class names, shapes, labels and images; the same on every machine for equal data."""
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for split in splits:
        digest.update(f"{tuple(split.images.shape)}".encode())
        digest.update(split.labels.numpy().astype("<i8").tobytes())
        digest.update(split.images.contiguous().numpy().data)
    return digest.hexdigest()


def _take(part: str, left: Tensor, count: int | None) -> tuple[Tensor, Tensor]:
    if count is None:
        raise DatasetError(f"dataset.{part}: there is no {part} set to take whole; set the number of examples to split off")
    if count >= len(left):
        raise DatasetError(
            f"dataset.{part}: {count} {part} examples asked for, but there are {len(left)} to split off, and some must be left for training"
        )
    return left[:count], left[count:]


def _subset(part: str, there: int, count: int | None, seed: int) -> Tensor:
    if count is not None and count > there:
        raise DatasetError(f"dataset.{part}: {count} {part} examples asked for, but there are {there}; set it to {there} or less")
    return torch.randperm(there, generator=generator(seed, "split", part))[:count]
