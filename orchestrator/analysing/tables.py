"""Rows of the tables of an analysis; a table's rows have the same keys, its columns.

Shapes: N images; K results of an image; D values of a representation; C classes; M models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.agreement import equal_errors, equal_predictions
from orchestrator.analysis.calibration import Calibration, calibration, cross_entropy
from orchestrator.analysis.collision import class_entropies
from orchestrator.analysis.diversity import cosine_to

Row = dict[str, Any]
Floats = NDArray[np.floating]
Labels = NDArray[np.integer]
TARGETS = "targets"
"""What tables call the searched targets, beside the names of runs."""
_NONE = float("nan")


def curve_row(run: str, epoch: int, layer: str, values_ND: Floats, labels_N: Labels, targets_NKD: Floats | None) -> Row:
    """Return the row of a network at an epoch and layer.

    target_distance: 1 - cosine of each image's representation to its target, mean over images (and over targets where it has
    several), with the standard deviation over images. within, between: `class_entropies`.
    """
    distance_N = 1 - cosine_to(targets_NKD, values_ND).mean(axis=1) if targets_NKD is not None else np.array([_NONE])
    entropies = class_entropies(values_ND, labels_N)
    return {
        "run": run,
        "epoch": epoch,
        "layer": layer,
        "images": len(labels_N),
        "target_distance": float(distance_N.mean()),
        "target_distance_sd": float(distance_N.std()),
        "within": entropies.within,
        "between": entropies.between,
    }


def targets_row(layer: str, targets_NKD: Floats, labels_N: Labels) -> Row:
    """Return the row of the targets themselves, of several those of the first search."""
    entropies = class_entropies(targets_NKD[:, 0], labels_N)
    row = {"run": TARGETS, "epoch": "", "layer": layer, "images": len(labels_N), "target_distance": _NONE, "target_distance_sd": _NONE}
    return {**row, "within": entropies.within, "between": entropies.between}


def score_row(model: str, split: str, probabilities_NC: Floats, labels_N: Labels) -> Row:
    """Return accuracy, cross-entropy (nats) and ECE of a model's probabilities."""
    return {
        "run": model,
        "split": split,
        "images": len(labels_N),
        "accuracy": float((probabilities_NC.argmax(axis=1) == labels_N).mean()),
        "cross_entropy": cross_entropy(probabilities_NC, labels_N),
        "ece": calibration(probabilities_NC, labels_N).ece,
    }


def reliability_rows(model: str, found: Calibration) -> list[Row]:
    """Return a row per bin of confidence: its edges, the images in it, their mean confidence and accuracy."""
    bins = len(found.images_B)
    return [
        {
            "run": model,
            "above": place / bins,
            "to": (place + 1) / bins,
            "images": int(images),
            "confidence": float(confidence),
            "accuracy": float(accuracy),
        }
        for place, (images, confidence, accuracy) in enumerate(
            zip(found.images_B, found.confidence_B, found.accuracy_B, strict=True)
        )
    ]  # fmt: skip


def class_rows(model: str, predictions_N: Labels, labels_N: Labels, classes: Sequence[str]) -> list[Row]:
    """Return a row per class: its images and the share that are classified right."""
    right_N = predictions_N == labels_N
    return [
        {
            "run": model,
            "class": name,
            "images": int((labels_N == number).sum()),
            "accuracy": float(right_N[labels_N == number].mean()) if (labels_N == number).any() else _NONE,
        }
        for number, name in enumerate(classes)
    ]


def agreement_rows(models: Sequence[str], predictions_MN: Labels, labels_N: Labels) -> list[Row]:
    """Return a row per pair of models: share of equal predictions, and of equal errors among the images that either gets wrong."""
    agree_MM, errors_MM = equal_predictions(predictions_MN), equal_errors(predictions_MN, labels_N)
    return [
        {
            "run": models[one],
            "other": models[other],
            "images": len(labels_N),
            "equal_predictions": float(agree_MM[one, other]),
            "equal_errors": float(errors_MM[one, other]),
        }
        for one in range(len(models))
        for other in range(one + 1, len(models))
    ]
