"""Search loops that Numba compiles: one candidate at a time, from breeding to fitness, within a core's cache.

All of them are in one file, because Numba's cache of compiled code looks at the file of the function it is asked for and no other.
Constants are float32 on purpose: a float64 would halve the width of the vector instructions, as would a double `max` or an index that
might be negative (hence parts of arrays, and unsigned tables of places).

Shapes: `searcher.strategies.base`; T images; S starting candidates, K parents, P population; C channels of H x W positions; V steps of
scale and shift of all blocks above the layer, in order, each at every position; F features of the head; N generations, the initial
population included.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.polynomial import chebyshev

from repsearch.networks.convnet import NORMALISE_EPS
from searcher.noise import NOISE_STEP

MATH = {"reassoc", "contract", "nsz", "arcp"}
"""Sums in any order, fused multiply-add; not `nnan` or `ninf`: values that are not finite must stay so, to be found."""

_LIMIT = 5.0  # beyond it Phi is 0 or 1 to 3e-7
_DEGREE = 12


def _coefficients() -> list[np.float32]:
    """Return the polynomial of u = 2 (x / 5)^2 - 1 that interpolates (Phi(x) - 1/2) / x at Chebyshev points; GELU errs by 2e-6 at most."""
    square = (chebyshev.chebpts1(_DEGREE + 1) + 1) * _LIMIT**2 / 2
    values = [0.5 * math.erf(math.sqrt(t / 2)) / math.sqrt(t) for t in square]
    fitted = chebyshev.chebfit(chebyshev.chebpts1(_DEGREE + 1), values, _DEGREE)
    return [np.float32(value) for value in chebyshev.cheb2poly(fitted)]


_C0, _C1, _C2, _C3, _C4, _C5, _C6, _C7, _C8, _C9, _C10, _C11, _C12 = _coefficients()
_UPPER, _LOWER, _SCALE = np.float32(_LIMIT), np.float32(-_LIMIT), np.float32(2 / _LIMIT**2)
_ZERO, _HALF, _ONE, _EPS = np.float32(0), np.float32(0.5), np.float32(1), np.float32(NORMALISE_EPS)
_STEP = np.float32(NOISE_STEP)
_COUNTERS_PER_CHILD = 3  # two pool members and one noise offset

_GAMMA, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


@numba.njit(fastmath=MATH, nogil=True)
def gelu(x: Any) -> Any:
    """Return x Phi(x) of a float32, Phi the standard normal distribution function."""
    clipped = min(max(x, _LOWER), _UPPER)
    u = clipped * clipped * _SCALE - _ONE
    ratio = _C12 * u + _C11
    ratio = ratio * u + _C10
    ratio = ratio * u + _C9
    ratio = ratio * u + _C8
    ratio = ratio * u + _C7
    ratio = ratio * u + _C6
    ratio = ratio * u + _C5
    ratio = ratio * u + _C4
    ratio = ratio * u + _C3
    ratio = ratio * u + _C2
    ratio = ratio * u + _C1
    ratio = ratio * u + _C0
    return x * (_HALF + clipped * ratio)


@numba.njit(nogil=True)
def draw(key: Any, counter: Any, bound: Any) -> Any:
    """Return the integer in [0, bound) that `repsearch.seeding.draw` gives for a key and a counter, all int64."""
    value = np.uint64(key) + np.uint64(counter) * _GAMMA
    value = (value ^ (value >> _30)) * _MIX_1
    value = (value ^ (value >> _27)) * _MIX_2
    value = value ^ (value >> _31)
    return np.int64(value >> _31) % np.int64(bound)


@numba.njit(fastmath=MATH, nogil=True)
def measure(candidate_GM: Any, deviation_G: Any) -> None:
    """Write the standard deviation over positions of each group."""
    G, M = candidate_GM.shape
    over = _ONE / np.float32(M)
    for g in range(G):
        total, square = _ZERO, _ZERO
        for m in range(M):
            value = candidate_GM[g, m]
            total += value
            square += value * value
        mean = total * over
        deviation_G[g] = np.sqrt(max(square * over - mean * mean, _ZERO))


@numba.njit(fastmath=MATH, nogil=True)
def breed(
    one_GM: Any,
    two_GM: Any,
    one_form: Any,
    two_form: Any,
    one_deviation_G: Any,
    two_deviation_G: Any,
    noise_GM: Any,
    strength: Any,
    unit: Any,
    child_GM: Any,
    child_form: Any,
    child_deviation_G: Any,
) -> None:
    """Write the mean of two members plus noise of strength times the mean of their deviations per group, and its deviations.

    noise_GM: in multiples of `NOISE_STEP`. A candidate is `values * form[0] + form[1]`, so that normalising it takes no pass over them.
    unit: to zero mean and unit variance over all groups (blocks); else to zero mean (logits).
    """
    G, M = child_GM.shape
    one_factor, two_factor = _HALF * one_form[0], _HALF * two_form[0]
    middle = _HALF * (one_form[1] + two_form[1])
    total, square = _ZERO, _ZERO
    over = _ONE / np.float32(M)
    for g in range(G):
        scale = strength * _STEP * _HALF * (one_deviation_G[g] + two_deviation_G[g])
        group_total, group_square = _ZERO, _ZERO
        for m in range(M):
            value = one_factor * one_GM[g, m] + two_factor * two_GM[g, m] + scale * np.float32(noise_GM[g, m]) + middle
            child_GM[g, m] = value
            group_total += value
            group_square += value * value
        group_mean = group_total * over
        child_deviation_G[g] = np.sqrt(max(group_square * over - group_mean * group_mean, _ZERO))
        total += group_total
        square += group_square
    over /= np.float32(G)
    mean = total * over
    factor = _ONE
    if unit:
        factor = _ONE / np.sqrt(max(square * over - mean * mean, _ZERO) + _EPS)
    for g in range(G):
        child_deviation_G[g] *= factor
    child_form[0], child_form[1] = factor, -mean * factor


@numba.njit(fastmath=MATH, nogil=True)
def fitness(
    candidate_X: Any,
    form: Any,
    label: Any,
    widths_B: Any,
    features_B: Any,
    steps_B: Any,
    corners_V: Any,
    scale_V: Any,
    shift_V: Any,
    weight_KF: Any,
    bias_K: Any,
    room_X: Any,
    run_X: Any,
    logits_K: Any,
) -> Any:
    """Return log p(label) of a candidate, its values flat, of form `form` (see `breed`); `room_X`, `run_X`: scratch of as many values."""
    K = bias_K.shape[0]
    factor, offset = form[0], form[1]
    if weight_KF.shape[0] == 0:
        return log_probability(candidate_X, label)
    values_X, run = candidate_X, candidate_X.shape[0]
    first_corner = place = 0
    for block in range(steps_B.shape[0]):
        # The maximum of every position with its neighbours, also where it is not wanted, from map to map: one long run of memory.
        width, features = widths_B[block], features_B[block]
        run -= width + 1
        below_X = values_X[width:]
        for x in range(run):
            run_X[x] = max(max(values_X[x], values_X[x + 1]), max(below_X[x], below_X[x + 1]))
        corner_X = corners_V[first_corner : first_corner + features]
        for x in range(features):
            room_X[x] = run_X[corner_X[x]] * factor + offset
        first_corner += features
        run = features
        for _ in range(steps_B[block]):
            scale_X, shift_X = scale_V[place : place + features], shift_V[place : place + features]
            for x in range(features):
                room_X[x] = gelu(room_X[x] * scale_X[x] + shift_X[x])
            place += features
        total, square = _ZERO, _ZERO
        for x in range(features):
            total += room_X[x]
            square += room_X[x] * room_X[x]
        over = _ONE / np.float32(features)
        mean = total * over
        factor = _ONE / np.sqrt(max(square * over - mean * mean, _ZERO) + _EPS)
        # Taken into account by what reads the block's output.
        offset = -mean * factor
        values_X = room_X
    for k in range(K):
        logit = _ZERO
        for f in range(weight_KF.shape[1]):
            logit += weight_KF[k, f] * (values_X[f] * factor + offset)
        logits_K[k] = logit + bias_K[k]
    return log_probability(logits_K, label)


@numba.njit(nogil=True)
def log_probability(logits_K: Any, label: Any) -> Any:
    """Return log softmax(logits)[label]."""
    highest = logits_K[0]
    for k in range(1, logits_K.shape[0]):
        highest = max(highest, logits_K[k])
    total = 0.0
    for k in range(logits_K.shape[0]):
        total += math.exp(logits_K[k] - highest)
    return np.float32(logits_K[label] - highest - math.log(total))


@numba.njit(nogil=True)
def _rank(places_P: Any, fitness_P: Any, K: Any) -> Any:
    """Bring the K fittest to the front, fittest first, of equal ones the earlier; return whether every fitness is finite."""
    P = places_P.shape[0]
    for p in range(P):
        if not np.isfinite(fitness_P[places_P[p]]):
            return False
    for k in range(K):
        best = k
        for p in range(k + 1, P):
            if fitness_P[places_P[p]] > fitness_P[places_P[best]]:
                best = p
        chosen = places_P[best]
        # Those before it move up: their order is kept.
        for p in range(best, k, -1):
            places_P[p] = places_P[p - 1]
        places_P[k] = chosen
    return True


def _evolve(
    noise_RM: Any,
    part: Any,
    counts: Any,
    strengths_N: Any,
    boost: Any,
    unit: Any,
    stop_fitness: Any,
    starts_TSGM: Any,
    labels_T: Any,
    keys_T: Any,
    parents_TKGM: Any,
    fitness_TK: Any,
    history_TN: Any,
    lived_T: Any,
) -> None:
    """Write each image's final parents, fittest first, and their fitness; the best fitness after each generation; and how many
    generations the image lived, the initial population included: its last one is where it passed `stop_fitness` or was not finite.

    counts: explorers, refiners. strengths_N: of the refiners, per generation. unit: see `breed`.
    """
    T, S, G, M = starts_TSGM.shape
    K = parents_TKGM.shape[1]
    explorers, refiners = counts
    population = K + explorers + refiners
    draws = noise_RM.shape[0] - G + 1
    candidates_PGM = np.empty((population, G, M), np.float32)
    deviations_PG = np.empty((population, G), np.float32)
    fitness_P = np.empty(population, np.float32)
    places_P = np.empty(population, np.int64)
    forms_P2 = np.empty((population, 2), np.float32)
    room_X, run_X, logits_K = np.empty(G * M, np.float32), np.empty(G * M, np.float32), np.empty(part[7].shape[0], np.float32)
    for t in range(T):
        # Places of the candidates in rank: the parents first, then children in the order of their making.
        for p in range(population):
            places_P[p] = p
        lived_T[t] = 0
        for generation in range(strengths_N.shape[0]):
            kept, first = K, explorers
            if generation == 0:
                kept, first = min(S, population), population - min(S, population)
                for p in range(kept):
                    candidates_PGM[p] = starts_TSGM[t, p]
                    measure(candidates_PGM[p], deviations_PG[p])
                    forms_P2[p, 0], forms_P2[p, 1] = _ONE, _ZERO
                    fitness_P[p] = fitness(candidates_PGM[p].reshape(-1), forms_P2[p], labels_T[t], *part, room_X, run_X, logits_K)
            for p in range(kept, population):
                child = p - kept
                explores = child < first
                pool = kept if explores else kept + first
                counter = (child + generation * population) * _COUNTERS_PER_CHILD
                one = places_P[draw(keys_T[t], counter, pool)]
                two = places_P[draw(keys_T[t], counter + 1, pool)]
                row = draw(keys_T[t], counter + 2, draws)
                strength = strengths_N[generation] * (boost if explores else _ONE)
                place = places_P[p]
                breed(
                    candidates_PGM[one],
                    candidates_PGM[two],
                    forms_P2[one],
                    forms_P2[two],
                    deviations_PG[one],
                    deviations_PG[two],
                    noise_RM[row : row + G],
                    strength,
                    unit,
                    candidates_PGM[place],
                    forms_P2[place],
                    deviations_PG[place],
                )
                fitness_P[place] = fitness(candidates_PGM[place].reshape(-1), forms_P2[place], labels_T[t], *part, room_X, run_X, logits_K)
            finite = _rank(places_P, fitness_P, K)
            best = fitness_P[places_P[0]]
            for later in range(generation, strengths_N.shape[0]):
                history_TN[t, later] = best
            lived_T[t] += 1
            if not finite:
                history_TN[t, generation] = np.nan
                break
            if best > stop_fitness:
                break
        for k in range(K):
            place = places_P[k]
            parents_TKGM[t, k] = candidates_PGM[place] * forms_P2[place, 0] + forms_P2[place, 1]
            fitness_TK[t, k] = fitness_P[place]


def _breed_tile(
    noise_RM: Any,
    kept: Any,
    counts: Any,
    strengths_T2: Any,
    absolute: Any,
    unit: Any,
    generation: Any,
    last: Any,
    keys_T: Any,
    places_TP: Any,
    candidates_TPGM: Any,
    forms_TP2: Any,
    deviations_TPG: Any,
    evaluated_TEX: Any,
) -> None:
    """Make the children of a generation of every image, and write what is to be evaluated, in the form of a layer, into `evaluated_TEX`.

    kept: candidates that stay, the parents or in generation 0 the starting ones, which are evaluated before the children then. counts:
    explorers, refiners. strengths_T2: of explorers, of refiners, in deviations of the members or `absolute`. last: values have the
    channels last, as (M, G).
    """
    T, P, G = candidates_TPGM.shape[:3]
    explorers = counts[0]
    draws = noise_RM.shape[0] - G + 1
    ones_G = np.ones(G, np.float32)
    for t in range(T):
        first = 0 if generation == 0 else kept
        for p in range(kept, P):
            child = p - kept
            explores = child < explorers
            pool = kept if explores else kept + explorers
            counter = (child + generation * P) * _COUNTERS_PER_CHILD
            one = places_TP[t, draw(keys_T[t], counter, pool)]
            two = places_TP[t, draw(keys_T[t], counter + 1, pool)]
            row = draw(keys_T[t], counter + 2, draws)
            place = places_TP[t, p]
            breed(
                candidates_TPGM[t, one],
                candidates_TPGM[t, two],
                forms_TP2[t, one],
                forms_TP2[t, two],
                ones_G if absolute else deviations_TPG[t, one],
                ones_G if absolute else deviations_TPG[t, two],
                noise_RM[row : row + G],
                strengths_T2[t, 0] if explores else strengths_T2[t, 1],
                unit,
                candidates_TPGM[t, place],
                forms_TP2[t, place],
                deviations_TPG[t, place],
            )
        for p in range(first, P):
            place = places_TP[t, p]
            lay_out(candidates_TPGM[t, place], forms_TP2[t, place], last, evaluated_TEX[t, p - first])


@numba.njit(fastmath=MATH, nogil=True)
def lay_out(candidate_GM: Any, form: Any, last: Any, values_X: Any) -> None:
    """Write a candidate of form `form` (see `breed`), as (M, G) if `last`, else as (G, M)."""
    G, M = candidate_GM.shape
    factor, offset = form[0], form[1]
    if last:
        for g in range(G):
            column = values_X[g:]
            for m in range(M):
                column[m * G] = candidate_GM[g, m] * factor + offset
    else:
        for g in range(G):
            row = values_X[g * M : g * M + M]
            for m in range(M):
                row[m] = candidate_GM[g, m] * factor + offset


def _measure_tile(candidates_TSGM: Any, deviations_TSG: Any) -> None:
    """Write the standard deviation over positions of each group."""
    T, S = candidates_TSGM.shape[:2]
    for t in range(T):
        for s in range(S):
            measure(candidates_TSGM[t, s], deviations_TSG[t, s])


def _select_tile(logits_TEK: Any, labels_T: Any, K: Any, fitness_TP: Any, places_TP: Any, better_T: Any) -> None:
    """Write the fitness of the candidates evaluated, the last ones in rank, and how many of them are fitter than the first in rank was;
    bring the `K` fittest to the front, where every fitness is finite."""
    T, E = logits_TEK.shape[:2]
    P = places_TP.shape[1]
    for t in range(T):
        elite = fitness_TP[t, places_TP[t, 0]]
        better_T[t] = 0
        for e in range(E):
            value = log_probability(logits_TEK[t, e], labels_T[t])
            fitness_TP[t, places_TP[t, P - E + e]] = value
            better_T[t] += int(value > elite)
        _rank(places_TP[t], fitness_TP[t], K)


def _measure_logits(logits_TEK: Any, labels_T: Any, fitness_TE: Any) -> None:
    """Write log p(label) of every row of logits."""
    T, E = fitness_TE.shape
    for t in range(T):
        for e in range(E):
            fitness_TE[t, e] = log_probability(logits_TEK[t, e], labels_T[t])


def _compiled(function: Any) -> Any:
    """Return `function` compiled at its first call, and kept on disk for the next process where there is a place to keep it."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(nogil=True)(function)


evolve = _compiled(_evolve)
breed_tile = _compiled(_breed_tile)
measure_tile = _compiled(_measure_tile)
select_tile = _compiled(_select_tile)
measure_logits = _compiled(_measure_logits)
