"""Measures of networks against hand computation and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from orchestrator.analysis.agreement import equal_errors, equal_predictions, kernel_alignment, pairs_mean
from orchestrator.analysis.calibration import calibration, cross_entropy, softmax
from orchestrator.analysis.collision import centred, class_entropies, collision_entropy
from orchestrator.analysis.probes import COMPONENTS, probe_accuracy


def brute_entropy(vectors: np.ndarray) -> float:
    def cosine(one: np.ndarray, other: np.ndarray) -> float:
        return float(one @ other) / math.sqrt(float(one @ one) * float(other @ other))

    squares = sum(cosine(one, other) ** 2 for one in vectors for other in vectors)
    return -math.log(squares / sum(cosine(one, one) for one in vectors) ** 2)


def test_collision_entropy_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    values, labels = rng.normal(size=(12, 5)), np.array([0, 1, 2] * 4)
    assert collision_entropy(values) == pytest.approx(brute_entropy(values))
    found = class_entropies(values, labels)
    classes = [values[labels == label] for label in range(3)]
    assert found.within == pytest.approx(np.mean([brute_entropy(members) for members in classes]))
    assert found.between == pytest.approx(brute_entropy(np.stack([members.mean(axis=0) for members in classes])))


def test_collapsed_classes_have_no_entropy_within_and_the_most_between() -> None:
    values = np.repeat(np.eye(4), 5, axis=0)
    found = class_entropies(values, np.repeat(np.arange(4), 5))
    assert found.within == pytest.approx(0, abs=1e-12)
    assert found.between == pytest.approx(math.log(4))


def test_classes_count_alike_whatever_their_size() -> None:
    # Three orthogonal vectors of one class, one of the other: entropies log 3 and 0.
    found = class_entropies(np.eye(4), np.array([7, 7, 7, 9]))
    assert found.within == pytest.approx(math.log(3) / 2)


def test_centred_values_have_no_mean() -> None:
    values = np.arange(24.0).reshape(2, 3, 4)
    assert centred(values).shape == (2, 12)
    assert np.allclose(centred(values).mean(axis=1), 0)
    assert np.allclose(centred(values)[0], np.arange(12) - 5.5)


def test_calibration_by_hand() -> None:
    # Two bins: .4 right and .5 (an upper edge) wrong in the first; .9 right, .8 right, .7 wrong in the second.
    probabilities = np.array([[0.4, 0.3, 0.3], [0.5, 0.25, 0.25], [0.05, 0.9, 0.05], [0.1, 0.1, 0.8], [0.7, 0.2, 0.1]])
    found = calibration(probabilities, np.array([0, 1, 1, 2, 2]), bins=2)
    assert found.images_B.tolist() == [2, 3]
    assert found.confidence_B == pytest.approx([0.45, 0.8])
    assert found.accuracy_B == pytest.approx([0.5, 2 / 3])
    assert found.ece == pytest.approx((2 * 0.05 + 3 * (0.8 - 2 / 3)) / 5)


def test_a_sure_and_right_classifier_is_calibrated_and_empty_bins_have_no_accuracy() -> None:
    found = calibration(np.eye(3), np.arange(3))
    assert found.ece == 0
    assert found.images_B.tolist() == [0] * 14 + [3]
    assert np.isnan(found.accuracy_B[:14]).all()
    assert calibration(np.eye(3), np.array([1, 2, 0])).ece == 1


def test_probabilities_of_large_logits() -> None:
    assert softmax(np.array([[1000.0, 1000.0 + math.log(3)]]))[0] == pytest.approx([0.25, 0.75])
    assert cross_entropy(np.array([[0.25, 0.75], [0.5, 0.5]]), np.array([1, 0])) == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2)
    assert math.isfinite(cross_entropy(np.array([[1.0, 0.0]]), np.array([1])))


def test_agreement_by_hand() -> None:
    labels = np.array([0, 1, 2, 3])
    predictions = np.array([[0, 1, 2, 3], [0, 1, 3, 0], [0, 2, 3, 1]])
    assert equal_predictions(predictions) == pytest.approx(np.array([[1, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 1]]))
    errors = equal_errors(predictions, labels)
    assert np.isnan(errors[0, 0])
    assert errors[0, 1] == 0
    # One image to which both give the same wrong class, of three that either gets wrong.
    assert errors[1, 2] == errors[2, 1] == pytest.approx(1 / 3)
    assert errors[1, 1] == 1
    assert pairs_mean(errors) == pytest.approx((0 + 0 + 1 / 3) / 3)
    assert np.isnan(pairs_mean(np.full((2, 2), np.nan)))


def test_alignment_does_not_see_rotations_scales_and_shifts() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(200, 6))
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    found = kernel_alignment([values, 3 * values @ rotation + 1, rng.normal(size=(200, 6))])
    assert found[0, 1] == pytest.approx(1)
    assert found[0, 2] < 0.2
    assert np.diagonal(found) == pytest.approx(1)


@pytest.mark.parametrize("width", [3, 4 * COMPONENTS])
def test_a_probe_tells_separable_classes_and_no_others(width: int) -> None:
    rng = np.random.default_rng(2)
    labels = np.arange(600) % 3
    values = rng.normal(size=(600, width)) * 0.05
    noise = probe_accuracy(values[:300], labels[:300], values[300:], labels[300:], seed=0)
    values[np.arange(600), labels] += 1
    assert probe_accuracy(values[:300], labels[:300], values[300:], labels[300:], seed=0) == 1
    assert noise < 0.5
