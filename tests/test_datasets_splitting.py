"""Splits are disjoint, whole, a function of the seed, and refuse counts that do not fit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repsearch.datasets.base import Split
from repsearch.datasets.splitting import assemble, choose, data_digest, statistics
from repsearch.errors import DatasetError


def split_of(count: int, *, classes: int = 3, seed: int = 0) -> Split:
    rng = torch.Generator().manual_seed(seed)
    return Split(torch.randint(0, 256, (count, 2, 4, 5), dtype=torch.uint8, generator=rng), torch.arange(count) % classes)


@settings(deadline=None)
@given(st.integers(3, 200), st.data())
def test_parts_of_a_pool_are_disjoint_and_in_range(pool: int, data: st.DataObject) -> None:
    test = data.draw(st.integers(1, pool - 2))
    validation = data.draw(st.integers(1, pool - test - 1))
    train = data.draw(st.none() | st.integers(1, pool - test - validation))
    choice = choose(pool=pool, train=train, validation=validation, test=test, seed=data.draw(st.integers(0, 2**31 - 1)))
    numbers = [*choice.train.tolist(), *choice.validation.tolist(), *choice.test.tolist()]
    assert len(set(numbers)) == len(numbers) and set(numbers) <= set(range(pool))
    assert len(choice.validation) == validation and len(choice.test) == test
    assert len(choice.train) == (train or pool - test - validation)


def test_held_out_examples_do_not_depend_on_the_training_subset() -> None:
    small = choose(pool=50, train=5, validation=10, test=10, seed=1)
    large = choose(pool=50, train=20, validation=10, test=10, seed=1)
    assert torch.equal(small.validation, large.validation) and torch.equal(small.test, large.test)
    assert torch.equal(small.train, large.train[:5])


def test_examples_for_fitness_are_apart_and_leave_a_training_subset_as_it_was() -> None:
    without = choose(pool=50, train=20, validation=10, test=10, seed=1)
    choice = choose(pool=50, train=20, validation=10, test=10, seed=1, fitness=7)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(choice, part), getattr(without, part))
    parts = [choice.train, choice.validation, choice.test, choice.fitness]
    assert len(choice.fitness) == 7 and len(set(torch.cat(parts).tolist())) == 47
    assert len(choose(pool=50, train=None, validation=10, test=10, seed=1, fitness=7).train) == 23
    with pytest.raises(DatasetError, match=r"dataset\.fitness: 30 examples asked for, but there are 30"):
        choose(pool=50, train=None, validation=10, test=10, seed=1, fitness=30)


def test_data_without_examples_for_fitness_keep_their_digest() -> None:
    parts = {"train": split_of(9), "validation": split_of(3), "test": split_of(3)}
    plain = assemble("x", ["a", "b", "c"], **parts)
    assert (
        plain.digest
        == data_digest(["a", "b", "c"], list(parts.values()))
        == assemble("x", ["a", "b", "c"], **parts, fitness=split_of(0)).digest
    )
    apart = assemble("x", ["a", "b", "c"], **parts, fitness=split_of(4))
    assert apart.digest != plain.digest and apart.fitness is not None and plain.fitness is None


def test_the_choice_is_a_function_of_the_seed() -> None:
    first, again, other = (choose(pool=50, train=None, validation=5, test=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.train, again.train)
    assert not torch.equal(first.train, other.train)


def test_parts_with_a_set_of_their_own_leave_the_pool_whole() -> None:
    choice = choose(pool=10, own_validation=4, own_test=6, train=None, validation=None, test=2, seed=0)
    assert sorted(choice.train.tolist()) == list(range(10))
    assert sorted(choice.validation.tolist()) == list(range(4))
    assert len(choice.test) == 2 and set(choice.test.tolist()) <= set(range(6))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"train": 31, "validation": 10, "test": 10}, ["dataset.train", "31", "there are 30", "50 less 20"]),
        ({"train": None, "validation": 10, "test": 50}, ["dataset.test", "50 test examples"]),
        ({"train": None, "validation": 40, "test": 10}, ["dataset.validation", "40 validation examples", "there are 40"]),
        ({"train": None, "validation": 1, "test": 7, "own_test": 6}, ["dataset.test", "7 test examples", "there are 6"]),
        ({"train": None, "validation": 1, "test": None}, ["dataset.test", "no test set"]),
    ],
)
def test_counts_that_do_not_fit_are_refused_with_both_numbers(sizes: dict[str, int | None], words: list[str]) -> None:
    with pytest.raises(DatasetError) as caught:
        choose(pool=50, seed=0, **sizes)  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words), caught.value


def test_statistics_are_those_of_the_images_scaled_to_one() -> None:
    images = split_of(20).images
    scaled = images.double() / 255
    mean, std = statistics(images)
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, scaled.mean((0, 2, 3)).float())
    torch.testing.assert_close(std, scaled.std((0, 2, 3), correction=0).float())


def test_the_digest_tells_pixels_labels_classes_and_splits_apart() -> None:
    train, test = split_of(6), split_of(4, seed=1)
    pixel = train.images.clone()
    pixel[0, 0, 0, 0] ^= 1
    variants = [
        (["a", "b"], (train, test)),
        (["a", "c"], (train, test)),
        (["a", "b"], (test, train)),
        (["a", "b"], (Split(pixel, train.labels), test)),
        (["a", "b"], (Split(train.images, train.labels.flip(0)), test)),
        (["a", "b"], (Split(train.images.reshape(6, 2, 5, 4), train.labels), test)),
    ]
    assert len({data_digest(*variant) for variant in variants}) == len(variants)


def test_the_digest_of_known_data_is_known() -> None:
    # The value is written down: a run's files name it, so it must not change from version to version.
    images = torch.arange(math.prod((2, 1, 2, 3)), dtype=torch.uint8).reshape(2, 1, 2, 3)
    digest = data_digest(["a", "b"], [Split(images, torch.tensor([0, 1]))])
    assert digest == "fd75f5793cccbe7766b231def7b514b07b5a6fa0acb5c08bbf8d0627b34a80c7"


def test_one_class_is_refused() -> None:
    one, two = split_of(4, classes=1), split_of(4, classes=2)
    with pytest.raises(DatasetError, match=r"one class only \(a\)"):
        assemble("x", ["a"], train=one, validation=one, test=one)
    with pytest.raises(DatasetError, match=r"4 training examples are of one class only \(a\)"):
        assemble("x", ["a", "b"], train=one, validation=two, test=two)


def test_a_constant_channel_is_refused() -> None:
    blank = split_of(4)
    blank.images[:, 1] = 7
    with pytest.raises(DatasetError, match="channel 1 has one value"):
        assemble("x", ["a", "b", "c"], train=blank, validation=blank, test=blank)
