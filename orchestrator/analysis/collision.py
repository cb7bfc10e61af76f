"""How spread the representations of a class are, and those of different classes: collision entropy; Vegesna & Dahal 2025.

Shapes: N images; D values of a representation; C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.diversity import cosines, effective_number


@dataclass(frozen=True, kw_only=True)
class CollisionEntropy:
    """Collision entropies of labelled vectors, in nats.

    within: mean over classes of the entropy of the class's vectors, 0 .. log(vectors of a class).
    between: entropy of the class means, 0 .. log(classes).
    """

    within: float
    between: float


def collision_entropy(values_ND: NDArray[np.floating]) -> float:
    """Return H = -log(sum_ij c_ij^2 / (sum_i c_ii)^2), c the cosines of all pairs (i = j included): 0 for equal vectors, log N for
    orthogonal ones; nan where every vector is zero."""
    return float(np.log(effective_number(cosines(values_ND[None])))[0])


def class_entropies(values_ND: NDArray[np.floating], labels_N: NDArray[np.integer]) -> CollisionEntropy:
    """Return the entropies within and between the classes that are there; every class counts alike, whatever its size."""
    members = [values_ND[labels_N == label] for label in np.unique(labels_N)]
    means_CD = np.stack([values.mean(axis=0, dtype=np.float64) for values in members])
    within = float(np.mean([collision_entropy(values) for values in members]))
    return CollisionEntropy(within=within, between=collision_entropy(means_CD))


def centred(values_NX: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return each example's values (N, D) less their mean over all axes but the first, as searched targets are."""
    values_ND = values_NX.reshape(len(values_NX), -1)
    return np.asarray(values_ND - values_ND.mean(axis=1, keepdims=True))
