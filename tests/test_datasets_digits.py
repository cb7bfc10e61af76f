"""The embedded digits: exact values, the contract of `Data`, bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from repsearch.datasets import load_data
from repsearch.datasets.base import Data
from repsearch.errors import ConfigError, DatasetError


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data({"name": "digits"}, seed=3)


def test_shapes_types_and_sizes(data: Data) -> None:
    assert (len(data.train), len(data.validation), len(data.test)) == (1257, 180, 360)
    assert data.input_shape == (1, 8, 8) and data.classes == tuple("0123456789")
    for split in (data.train, data.validation, data.test):
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64


def test_every_image_is_there_once_with_values_scaled_exactly(data: Data) -> None:
    parts = (data.train, data.validation, data.test)
    loaded = torch.cat([torch.cat([part.images.flatten(1).long(), part.labels[:, None]], 1) for part in parts])
    digits = load_digits()
    expected = [[*(round(value * 255 / 16) for value in row), label] for row, label in zip(digits.data, digits.target, strict=True)]
    assert sorted(loaded.tolist()) == sorted(np.array(expected, dtype=np.int64).tolist())


def test_the_same_seed_gives_the_same_data_and_another_seed_other_data(data: Data) -> None:
    assert load_data({"name": "digits"}, seed=3).digest == data.digest
    assert load_data({"name": "digits"}, seed=4).digest != data.digest


def test_more_training_examples_than_there_are(data: Data) -> None:
    with pytest.raises(DatasetError, match=r"1258 training examples asked for, but there are 1257"):
        load_data({"name": "digits", "train": 1258}, seed=0)


def test_no_validation_examples_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.validation: should be greater than or equal to 1"):
        load_data({"name": "digits", "validation": 0}, seed=0)
