"""Whether a classifier's confidence is its accuracy.

Shapes: N images; C classes; B bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Reliability by bin of confidence, the largest probability; bins of equal width over 0 .. 1, each with its upper edge.

    ece: sum over bins of (share of images) * |accuracy - mean confidence|; Guo et al. 2017, equation 3.
    images_B: images in the bin. confidence_B, accuracy_B: their means, nan in an empty bin.
    """

    ece: float
    images_B: NDArray[np.int64]
    confidence_B: Floats
    accuracy_B: Floats


def calibration(probabilities_NC: NDArray[np.floating], labels_N: NDArray[np.integer], bins: int = BINS) -> Calibration:
    """Return the calibration of `probabilities_NC`, rows that sum to 1, against the classes `labels_N`."""
    confidence_N = probabilities_NC.max(axis=1).astype(np.float64)
    right_N = probabilities_NC.argmax(axis=1) == labels_N
    # A confidence that rounding took above 1 belongs to the last bin.
    place_N = np.clip(np.ceil(confidence_N * bins).astype(int) - 1, 0, bins - 1)
    images_B = np.bincount(place_N, minlength=bins)
    sums = [np.bincount(place_N, weights, minlength=bins) for weights in (confidence_N, right_N.astype(np.float64))]
    confidence_B, accuracy_B = (np.divide(part, images_B, out=np.full(bins, np.nan), where=images_B > 0) for part in sums)
    ece = float(np.abs(sums[1] - sums[0]).sum() / len(labels_N))
    return Calibration(ece=ece, images_B=images_B, confidence_B=confidence_B, accuracy_B=accuracy_B)


def softmax(logits_NC: NDArray[np.floating]) -> Floats:
    """Return the probabilities of `logits_NC`."""
    powers_NC = np.exp(logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True))
    return np.asarray(powers_NC / powers_NC.sum(axis=1, keepdims=True))


def cross_entropy(probabilities_NC: NDArray[np.floating], labels_N: NDArray[np.integer]) -> float:
    """Return the mean of -log p(label), in nats; a probability of 0 counts as the smallest positive number."""
    chosen_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
    return float(-np.log(np.maximum(chosen_N, np.finfo(np.float64).tiny)).mean())
