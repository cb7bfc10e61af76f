"""scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels, part of the library, no download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from repsearch.datasets.base import Data, Split
from repsearch.datasets.noise import LabelNoise
from repsearch.datasets.splitting import FitnessPart, assemble, choose


@dataclass(frozen=True, kw_only=True)
class Digits(LabelNoise, FitnessPart):
    """scikit-learn's digits, 1x8x8, ten classes; values 0..16 become 0..255.

    train: training examples, drawn by the run's seed; all that are left if not given.
    validation: examples split off for validation, by the run's seed.
    test: examples split off for testing, by the run's seed.
    """

    train: Annotated[int, Field(ge=1)] | None = None
    validation: Annotated[int, Field(ge=1)] = 180
    test: Annotated[int, Field(ge=1)] = 360

    def load(self, *, seed: int) -> Data:
        """Return the data, split by `seed`; raises `DatasetError` if it has fewer examples than asked for."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(np.round(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
        labels = torch.from_numpy(digits.target.astype(np.int64))
        choice = choose(pool=len(labels), train=self.train, validation=self.validation, test=self.test, fitness=self.fitness, seed=seed)
        parts = (choice.train, choice.validation, choice.test, choice.fitness)
        train, validation, test, fitness = (Split(images[part], labels[part]) for part in parts)
        classes = [str(name) for name in digits.target_names]
        train, validation = self.disturbed(train, validation, classes=len(classes), seed=seed)
        fitness = self.disturbed_fitness(fitness, classes=len(classes), seed=seed)
        return assemble("digits", classes, train=train, validation=validation, test=test, fitness=fitness)
