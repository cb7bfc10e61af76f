"""Shares of the searcher's time per step: each step of the compiled loops, run by itself as often as a search runs it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch

from benchmarks.search_speed_loops import repsearch
from benchmarks.search_speed_problem import STRENGTH, Problem
from searcher.compiled import compiled_search, loops
from searcher.layer_search import layer_of

_STRENGTH = np.float32(STRENGTH)


@numba.njit(nogil=True)
def _draws(calls: Any, rows: Any) -> Any:
    total = 0
    for call in range(calls):
        total += loops.draw(call, 0, 12) + loops.draw(call, 1, 12) + loops.draw(call, 2, rows)
    return total


@numba.njit(nogil=True)
def _breeding(calls: Any, candidates_PGM: Any, forms_P2: Any, deviations_PG: Any, noise_RM: Any) -> None:
    P, G, _ = candidates_PGM.shape
    for call in range(calls):
        row = loops.draw(call, 2, noise_RM.shape[0] - G + 1)
        one, two = loops.draw(call, 0, 12), loops.draw(call, 1, 12)
        into = 12 + call % (P - 12)
        loops.breed(
            candidates_PGM[one],
            candidates_PGM[two],
            forms_P2[one],
            forms_P2[two],
            deviations_PG[one],
            deviations_PG[two],
            noise_RM[row : row + G],
            _STRENGTH,
            True,
            candidates_PGM[into],
            forms_P2[into],
            deviations_PG[into],
        )


@numba.njit(nogil=True)
def _evaluation(calls: Any, candidates_PGM: Any, forms_P2: Any, part: Any, room_X: Any, run_X: Any, logits_K: Any) -> Any:
    total = 0.0
    for call in range(calls):
        place = call % candidates_PGM.shape[0]
        total += loops.fitness(candidates_PGM[place].reshape(-1), forms_P2[place], 0, *part, room_X, run_X, logits_K)
    return total


def shares(problem: Problem) -> dict[str, float]:
    """Return each step's share of the time of one search on one thread; selection and the rest of the loop are what is left over."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        layer = layer_of(problem.plan, problem.searched, 0, torch.device("cpu"))
        search = compiled_search(problem.plan.strategy, problem.searched, 0, layer)
        assert search is not None
        total, evaluations = _seconds(lambda: repsearch(problem)), repsearch(problem)
        candidates_PGM = problem.starts_BPCHW[0].flatten(2).numpy().copy()
        deviations_PG = candidates_PGM.std(axis=2)
        keys_B = torch.zeros(1, dtype=torch.int64)
        state = search.strategy.init(problem.starts_BPCHW[:1].flatten(3), layer=layer, labels_B=problem.labels_B[:1], keys_B=keys_B)
        noise_RM = state.noise.steps.numpy()
        forms_P2 = np.tile(np.array([1, 0], np.float32), (len(candidates_PGM), 1))
        scratch = (*(np.empty(candidates_PGM[0].size, np.float32) for _ in range(2)), np.empty(10, np.float32))
        spent = {
            "draws": _seconds(lambda: _draws(evaluations, len(noise_RM))),
            "crossover, mutation, normalisation": _seconds(
                lambda: _breeding(evaluations, candidates_PGM, forms_P2, deviations_PG, noise_RM)
            ),
            "evaluation": _seconds(lambda: _evaluation(evaluations, candidates_PGM, forms_P2, search.part.arguments, *scratch)),
        }
    finally:
        torch.set_num_threads(threads)
    return {**{name: seconds / total for name, seconds in spent.items()}, "selection and the rest": 1 - sum(spent.values()) / total}


def _seconds(run: Callable[[], object]) -> float:
    """Return the CPU seconds of the second run; the first one compiles."""
    run()
    begin = time.process_time()
    run()
    return time.process_time() - begin
