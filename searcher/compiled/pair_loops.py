"""Loops of the evolution strategy that Numba compiles: antithetic pairs around a mean, and the mean's move.

Mean and variance of both ends of a pair follow from the sums of mean, noise and their product, so that noise is read once for them and
once to write the ends. Self-contained, for Numba's cache (see `searcher.compiled.loops`).

Shapes: T images; I pairs; R rows of noise; G x M a representation, X its values.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from repsearch.networks.convnet import NORMALISE_EPS

MATH = {"reassoc", "contract", "nsz", "arcp"}
_ZERO, _HALF, _ONE, _EPS, _TINY = np.float32(0), np.float32(0.5), np.float32(1), np.float32(NORMALISE_EPS), np.float32(1e-12)


@numba.njit(fastmath=MATH, nogil=True)
def _spread_one(
    mean_X: Any, noise_X: Any, sigma: Any, unit: Any, last: Any, groups: Any, plus_X: Any, minus_X: Any, ahead_X: Any, behind_X: Any
) -> None:
    """Write mean + sigma * noise and mean - sigma * noise in the form of the layer; `ahead_X`, `behind_X`: scratch."""
    X = mean_X.shape[0]
    total, square, noise_total, noise_square, product = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    for x in range(X):
        value, noise = mean_X[x], sigma * np.float32(noise_X[x])
        total += value
        square += value * value
        noise_total += noise
        noise_square += noise * noise
        product += value * noise
    over = _ONE / np.float32(X)
    centre_plus, centre_minus = (total + noise_total) * over, (total - noise_total) * over
    factor_plus, factor_minus = _ONE, _ONE
    if unit:
        both = square + noise_square
        factor_plus = _ONE / np.sqrt(max((both + product + product) * over - centre_plus * centre_plus, _ZERO) + _EPS)
        factor_minus = _ONE / np.sqrt(max((both - product - product) * over - centre_minus * centre_minus, _ZERO) + _EPS)
    if not last:
        for x in range(X):
            value, noise = mean_X[x], sigma * np.float32(noise_X[x])
            plus_X[x] = (value + noise - centre_plus) * factor_plus
            minus_X[x] = (value - noise - centre_minus) * factor_minus
        return
    for x in range(X):
        value, noise = mean_X[x], sigma * np.float32(noise_X[x])
        ahead_X[x] = (value + noise - centre_plus) * factor_plus
        behind_X[x] = (value - noise - centre_minus) * factor_minus
    M = X // groups
    for g in range(groups):
        ahead_M, behind_M = ahead_X[g * M : g * M + M], behind_X[g * M : g * M + M]
        plus_column, minus_column = plus_X[g:], minus_X[g:]
        for m in range(M):
            plus_column[m * groups] = ahead_M[m]
            minus_column[m * groups] = behind_M[m]


def _spread_pairs(noise_RM: Any, rows_TI: Any, means_TGM: Any, sigma_T: Any, unit: Any, last: Any, evaluated_TPX: Any) -> None:
    """Write mean, the ends ahead and the ends behind, P = 1 + 2 I, of every image.

    sigma_T: in multiples of the noise's step. last: values have the channels last, as (M, G).
    """
    T, G, M = means_TGM.shape
    pairs = rows_TI.shape[1]
    ahead_X, behind_X = np.empty(G * M, np.float32), np.empty(G * M, np.float32)
    for t in range(T):
        mean_X = means_TGM[t].reshape(-1)
        if last:
            for g in range(G):
                for m in range(M):
                    evaluated_TPX[t, 0, m * G + g] = means_TGM[t, g, m]
        else:
            evaluated_TPX[t, 0] = mean_X
        for i in range(pairs):
            noise_X = noise_RM[rows_TI[t, i] : rows_TI[t, i] + G].reshape(-1)
            _spread_one(
                mean_X, noise_X, sigma_T[t], unit, last, G, evaluated_TPX[t, 1 + i], evaluated_TPX[t, 1 + pairs + i], ahead_X, behind_X
            )


def _move_means(
    noise_RM: Any, rows_TI: Any, fitness_TP: Any, momentum: Any, length_T: Any, unit: Any, velocity_TGM: Any, means_TGM: Any
) -> None:
    """Move every mean a root mean square of `length_T` along its velocity, which takes the direction of the ranked pairs, of unit root
    mean square; see `searcher.strategies.evolution_strategy`. fitness_TP: of the mean, the ends ahead, the ends behind."""
    T, G, M = means_TGM.shape
    pairs = rows_TI.shape[1]
    X = G * M
    over = _ONE / np.float32(X)
    direction_X = np.empty(X, np.float32)
    for t in range(T):
        ends = fitness_TP[t, 1:]
        direction_X[:] = _ZERO
        for i in range(pairs):
            # Twice the centred ranks' difference, up to the factor that bringing to unit length takes off.
            wins = 0
            for p in range(2 * pairs):
                wins += int(ends[i] > ends[p]) - int(ends[i] < ends[p]) - int(ends[pairs + i] > ends[p]) + int(ends[pairs + i] < ends[p])
            if wins != 0:
                weight = np.float32(wins)
                noise_X = noise_RM[rows_TI[t, i] : rows_TI[t, i] + G].reshape(-1)
                for x in range(X):
                    direction_X[x] += weight * np.float32(noise_X[x])
        mean_X, velocity_X = means_TGM[t].reshape(-1), velocity_TGM[t].reshape(-1)
        square = _ZERO
        for x in range(X):
            square += direction_X[x] * direction_X[x]
        factor = _ONE / max(np.sqrt(square * over), _TINY)
        square = _ZERO
        for x in range(X):
            value = momentum * velocity_X[x] + factor * direction_X[x]
            velocity_X[x] = value
            square += value * value
        factor = length_T[t] / max(np.sqrt(square * over), _TINY)
        total, square = _ZERO, _ZERO
        for x in range(X):
            value = mean_X[x] + factor * velocity_X[x]
            mean_X[x] = value
            total += value
            square += value * value
        centre, factor = total * over, _ONE
        if unit:
            factor = _ONE / np.sqrt(max(square * over - centre * centre, _ZERO) + _EPS)
        for x in range(X):
            mean_X[x] = (mean_X[x] - centre) * factor


def _compiled(function: Any) -> Any:
    """Return `function` compiled at its first call, and kept on disk where there is a place to keep it."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


spread_pairs = _compiled(_spread_pairs)
move_means = _compiled(_move_means)
