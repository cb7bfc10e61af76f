"""What every dataset member keeps; a new member adds a line to `SAMPLES` that makes a small sample of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from repsearch.datasets.base import Data, DatasetSpec
from repsearch.datasets.digits import Digits
from repsearch.datasets.image_folder import ImageFolder
from repsearch.datasets.splitting import data_digest, statistics
from repsearch.datasets.torchvision import Cifar10, Cifar100, FashionMnist, Mnist
from repsearch.errors import DatasetError
from repsearch.families import DATASETS
from tests.test_datasets_image_folder import write_classes
from tests.test_datasets_torchvision import write_cifar10, write_cifar100, write_idx


def mnist(root: Path) -> DatasetSpec:
    write_idx(root / "MNIST" / "raw")
    return Mnist(root=str(root), validation=10)


def fashion_mnist(root: Path) -> DatasetSpec:
    write_idx(root / "FashionMNIST" / "raw")
    return FashionMnist(root=str(root), validation=10)


def cifar10(root: Path) -> DatasetSpec:
    return with_source(Cifar10, root, write_cifar10(root))


def cifar100(root: Path) -> DatasetSpec:
    return with_source(Cifar100, root, write_cifar100(root))


def with_source(member: type[Any], root: Path, source: type[Any]) -> DatasetSpec:
    made_up = type(member.__name__, (member,), {"source": lambda _: source})
    spec: DatasetSpec = dataclasses.dataclass(frozen=True, kw_only=True)(made_up)(root=str(root), validation=10)
    return spec


def image_folder(root: Path) -> DatasetSpec:
    write_classes(root)
    return ImageFolder(root=str(root), size=8)


SAMPLES: dict[str, Callable[[Path], DatasetSpec]] = {
    "digits": lambda _: Digits(),
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "image_folder": image_folder,
}


@pytest.fixture(scope="module", params=list(DATASETS.members))
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DatasetSpec:
    return SAMPLES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def data(spec: DatasetSpec) -> Data:
    return spec.load(seed=0)


def test_images_are_uint8_in_memory_order_and_labels_are_classes(data: Data) -> None:
    for split in (data.train, data.validation, data.test):
        assert len(split) == len(split.images) == len(split.labels) > 0
        assert split.images.dtype == torch.uint8 and split.images.shape[1:] == data.input_shape and split.images.is_contiguous()
        assert split.labels.dtype == torch.int64 and split.labels.shape == (len(split),)
        assert int(split.labels.min()) >= 0 and int(split.labels.max()) < len(data.classes)


def test_statistics_and_digest_are_those_of_the_data(data: Data) -> None:
    mean, std = statistics(data.train.images)
    assert torch.equal(data.mean, mean) and torch.equal(data.std, std) and mean.shape == (data.input_shape[0],)
    assert data.digest == data_digest(data.classes, (data.train, data.validation, data.test))


def test_the_split_is_a_function_of_the_seed(spec: DatasetSpec, data: Data) -> None:
    assert spec.load(seed=0).digest == data.digest
    assert spec.load(seed=1).digest != data.digest


def test_a_smaller_training_set_is_the_beginning_of_a_larger_one(spec: Any, data: Data) -> None:
    small = dataclasses.replace(spec, train=10).load(seed=0)
    assert torch.equal(small.train.images, data.train.images[:10]) and torch.equal(small.train.labels, data.train.labels[:10])
    assert torch.equal(small.validation.images, data.validation.images) and torch.equal(small.test.images, data.test.images)


def test_more_training_examples_than_there_are_are_refused_with_both_numbers(spec: Any, data: Data) -> None:
    there = len(data.train)
    with pytest.raises(DatasetError, match=rf"dataset\.train: {there + 1} training examples asked for, but there are {there}"):
        dataclasses.replace(spec, train=there + 1).load(seed=0)
