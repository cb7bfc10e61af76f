"""How many distinct vectors a set holds, and how far vectors are from their image's own representation.

Shapes: N images; K vectors of an image; D values of a vector.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def cosines(values_NKD: NDArray[np.floating]) -> Floats:
    """Return the cosine similarity of every pair of an image's vectors (N, K, K); a zero vector is similar to none, itself included."""
    unit_NKD = _unit(values_NKD)
    # A batched product of one image at a time: float64 copies of all images at once would not fit memory for wide networks.
    return np.stack([np.asarray(unit_KD.astype(np.float64) @ unit_KD.astype(np.float64).T) for unit_KD in unit_NKD])


def effective_number(cosines_NKK: Floats, kept_NK: NDArray[np.bool_] | None = None) -> Floats:
    """Return N_eff of each image (N,): 1 for equal vectors, their number for orthogonal ones; nan where none is kept.

    N_eff = exp(H), H = -log(sum_ij c_ij^2 / (sum_i c_ii)^2), over the vectors that `kept_NK` marks. Vegesna & Dahal 2025.
    """
    kept_NK = np.ones(cosines_NKK.shape[:2], dtype=bool) if kept_NK is None else kept_NK
    pairs_NKK = kept_NK[:, :, None] & kept_NK[:, None, :]
    trace_N = (np.diagonal(cosines_NKK, axis1=1, axis2=2) * kept_NK).sum(axis=1)
    squares_N = (np.square(cosines_NKK) * pairs_NKK).sum(axis=(1, 2))
    numbers_N = np.full(len(cosines_NKK), np.nan)
    np.divide(np.square(trace_N), squares_N, out=numbers_N, where=squares_N > 0)
    return numbers_N


def cosine_to(values_NKD: NDArray[np.floating], own_ND: NDArray[np.floating]) -> Floats:
    """Return the cosine of each vector to its image's own (N, K)."""
    return np.asarray(np.einsum("nkd,nd->nk", _unit(values_NKD), _unit(own_ND)), dtype=np.float64)


def relative_size(values_NKD: NDArray[np.floating], own_ND: NDArray[np.floating]) -> Floats:
    """Return the length of each difference from the own vector, in lengths of the own vector (N, K)."""
    lengths_NK = np.linalg.norm(values_NKD - own_ND[:, None], axis=-1)
    return np.asarray(lengths_NK / np.linalg.norm(own_ND, axis=-1)[:, None], dtype=np.float64)


def noise_like(values_NKD: NDArray[np.floating], own_ND: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return vectors (N, K, D) with the lengths of `values_NKD` and their cosines to `own_ND`, in random directions otherwise.

    The difference from the own vector keeps its part along that vector; the rest, of the same length, points in a random direction
    orthogonal to it and to the constant vector, so that what had zero mean keeps it.
    """
    axis_ND = _unit(own_ND).astype(np.float64)
    result = np.empty(values_NKD.shape, dtype=np.float32)
    for n, values_KD in enumerate(values_NKD):
        along_K = values_KD @ axis_ND[n]
        across_K = np.sqrt(np.maximum(np.square(values_KD.astype(np.float64)).sum(axis=1) - np.square(along_K), 0))
        noise_KD = rng.standard_normal(values_KD.shape)
        noise_KD -= noise_KD.mean(axis=1, keepdims=True)
        noise_KD -= (noise_KD @ axis_ND[n])[:, None] * axis_ND[n]
        result[n] = along_K[:, None] * axis_ND[n] + across_K[:, None] * _unit(noise_KD)
    return result


def _unit(values: NDArray[np.floating]) -> NDArray[np.floating]:
    lengths = np.linalg.norm(values, axis=-1, keepdims=True)
    unit = np.zeros_like(values)
    np.divide(values, lengths, out=unit, where=lengths > 0)
    return unit
