"""How alike the predictions of models are, and how alike their representations.

Shapes: M models; N images; C classes; D values of a representation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def equal_predictions(predictions_MN: NDArray[np.integer]) -> Floats:
    """Return the share of images to which two models give the same class (M, M)."""
    return np.asarray((predictions_MN[:, None] == predictions_MN[None]).mean(axis=2), dtype=np.float64)


def equal_errors(predictions_MN: NDArray[np.integer], labels_N: NDArray[np.integer]) -> Floats:
    """Return, of the images that at least one of two models gets wrong, the share to which both give the same wrong class (M, M).

    1 for models with the same errors, 0 where no error is shared; nan where neither has any.
    """
    wrong_MN = predictions_MN != labels_N
    shared_MM = (wrong_MN[:, None] & (predictions_MN[:, None] == predictions_MN[None])).sum(axis=2)
    either_MM = (wrong_MN[:, None] | wrong_MN[None]).sum(axis=2)
    shares_MM = np.full(shared_MM.shape, np.nan)
    np.divide(shared_MM, either_MM, out=shares_MM, where=either_MM > 0)
    return shares_MM


def pairs_mean(values_MM: Floats) -> float:
    """Return the mean over pairs of different models; nan where no pair has a value."""
    pairs = values_MM[np.triu_indices(len(values_MM), 1)]
    return float(np.nanmean(pairs)) if np.isfinite(pairs).any() else float("nan")


def kernel_alignment(models: Sequence[NDArray[np.floating]]) -> Floats:
    """Return the linear CKA of each pair of models' representations (N, D) of the same images (M, M); Kornblith et al. 2019.

    1 for representations that a rotation and a factor turn into one another, so that the order of channels does not count.
    """
    grams = [_gram(values_ND) for values_ND in models]
    inner_MM = np.array([[float((one * other).sum()) for other in grams] for one in grams])
    lengths_M = np.sqrt(np.diagonal(inner_MM))
    return np.asarray(inner_MM / np.outer(lengths_M, lengths_M))


def _gram(values_ND: NDArray[np.floating]) -> Floats:
    centred_ND = values_ND - values_ND.mean(axis=0)
    gram_NN = np.asarray(centred_ND @ centred_ND.T, dtype=np.float64)
    # In units of its own length, so that products of large representations stay in range.
    return gram_NN / max(float(np.linalg.norm(gram_NN)), np.finfo(np.float64).tiny)
