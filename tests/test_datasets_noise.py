"""Label noise: how many labels are wrong, which, and what stays right."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from repsearch.datasets import load_data
from repsearch.datasets.digits import Digits
from repsearch.datasets.noise import wrong_labels
from repsearch.errors import ConfigError
from repsearch.families import DATASETS

N, CLASSES = 60_000, 10


@pytest.fixture(scope="module")
def right() -> torch.Tensor:
    return torch.arange(N) % CLASSES


@pytest.mark.parametrize("share", [0.2, 0.4, 0.9])
def test_the_share_is_met_and_a_replaced_label_is_each_other_class_equally_often(right: torch.Tensor, share: float) -> None:
    noisy_N = wrong_labels(right, share, classes=CLASSES, seed=3)
    replaced_N = noisy_N != right
    # Five standard deviations; a label "replaced" by itself would lower the share by a tenth, 20 of them or more.
    assert abs(float(replaced_N.float().mean()) - share) < 5 * (share * (1 - share) / N) ** 0.5
    shift_N = (noisy_N - right)[replaced_N] % CLASSES
    counts = torch.bincount(shift_N, minlength=CLASSES)
    assert counts[0] == 0
    expected = float(replaced_N.sum()) / (CLASSES - 1)
    assert bool(((counts[1:] - expected).abs() < 5 * expected**0.5).all())
    for label in range(CLASSES):
        assert abs(float(replaced_N[right == label].float().mean()) - share) < 5 * (share * (1 - share) * CLASSES / N) ** 0.5


def test_which_labels_are_wrong_depends_on_seed_and_position_alone(right: torch.Tensor) -> None:
    noisy_N = wrong_labels(right, 0.4, classes=CLASSES, seed=3)
    assert torch.equal(wrong_labels(right, 0.4, classes=CLASSES, seed=3), noisy_N)
    assert torch.equal(wrong_labels(right[:100], 0.4, classes=CLASSES, seed=3), noisy_N[:100])
    assert not torch.equal(wrong_labels(right, 0.4, classes=CLASSES, seed=4), noisy_N)
    # The wrong labels of a smaller share are among those of a larger one.
    fewer_N = wrong_labels(right, 0.2, classes=CLASSES, seed=3)
    assert bool((fewer_N == noisy_N)[fewer_N != right].all())


def test_two_classes_swap() -> None:
    labels_N = torch.tensor([0, 1] * 50)
    noisy_N = wrong_labels(labels_N, 0.5, classes=2, seed=0)
    assert set(noisy_N.tolist()) == {0, 1} and 20 < int((noisy_N != labels_N).sum()) < 80


def test_training_and_validation_labels_are_noisy_and_everything_else_is_as_it_was() -> None:
    clean, noisy = Digits().load(seed=0), Digits(label_noise=0.4).load(seed=0)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(noisy, part).images, getattr(clean, part).images)
    assert torch.equal(noisy.test.labels, clean.test.labels)
    assert 0.33 < float((noisy.train.labels != clean.train.labels).float().mean()) < 0.47
    assert 0.28 < float((noisy.validation.labels != clean.validation.labels).float().mean()) < 0.52
    assert noisy.digest != clean.digest
    assert Digits(label_noise=0.4).load(seed=0).digest == noisy.digest


def test_validation_noise_is_a_field_of_its_own() -> None:
    clean, noisy = Digits().load(seed=0), Digits(label_noise=0.4, validation_noise=0.0).load(seed=0)
    assert torch.equal(noisy.validation.labels, clean.validation.labels)
    assert not torch.equal(noisy.train.labels, clean.train.labels)


@pytest.mark.parametrize("name", list(DATASETS.members))
def test_every_dataset_has_the_fields(name: str) -> None:
    names = [field.name for field in dataclasses.fields(DATASETS.member(name))]
    assert {"label_noise", "validation_noise"} <= set(names)


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, float("nan")])
@pytest.mark.parametrize("field", ["label_noise", "validation_noise"])
def test_a_share_outside_0_to_1_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"dataset\.{field}"):
        load_data({"name": "digits", field: value}, seed=0)
