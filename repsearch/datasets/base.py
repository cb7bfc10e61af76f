"""What every dataset gives: splits of uint8 images, and facts about them.

Images stay uint8 until a batch is formed. N examples; C, H, W of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Split:
    """images: uint8 (N, C, H, W); labels: int64 (N,), in 0..classes-1."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """A loaded dataset.

    mean, std: per channel, float32 (C,), of the training images scaled to 0..1.
    digest: hex digest of images and labels of every split and of the class names; equal only for equal data.
    fitness: training examples that are set apart to measure what a policy searches for; none are without `dataset.fitness`.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    mean: Tensor
    std: Tensor
    digest: str
    fitness: Split | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


class DatasetSpec(Protocol):
    """A member of the dataset family: where the data lie and how they are split."""

    def load(self, *, seed: int) -> Data:
        """Return the data, split by `seed`; raises `DatasetError` naming the folder, file or count at fault."""
        ...
