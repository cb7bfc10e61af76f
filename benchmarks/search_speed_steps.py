"""Shares of the searcher's time per step, by timing the functions that do them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from benchmarks.search_speed_loops import repsearch
from benchmarks.search_speed_problem import Problem
from searcher import layer_search
from searcher.noise import NoiseTable
from searcher.strategies import evolution

STEPS: dict[str, tuple[Any, str]] = {
    "draws": (evolution.Evolution, "_draws"),
    "crossover and mutation": (NoiseTable, "sum_rows"),
    "children": (evolution, "breed"),
    "evaluation": (layer_search, "evaluate"),
    "selection": (evolution.Evolution, "tell"),
}
"""Name of a step: the object and the attribute of it that does the step. What `breed` does besides `sum_rows` is normalisation."""


def shares(problem: Problem) -> dict[str, float]:
    """Return each step's share of the time of one search."""
    spent = dict.fromkeys(STEPS, 0.0)
    with ExitStack() as stack:
        for name, (owner, attribute) in STEPS.items():
            stack.enter_context(_timed(owner, attribute, name, spent))
        begin = time.perf_counter()
        repsearch(problem)
        total = time.perf_counter() - begin
    spent["normalisation"] = spent.pop("children") - spent["crossover and mutation"]
    return {**{name: seconds / total for name, seconds in spent.items()}, "rest": 1 - sum(spent.values()) / total}


@contextmanager
def _timed(owner: Any, attribute: str, name: str, spent: dict[str, float]) -> Iterator[None]:
    original: Callable[..., Any] = getattr(owner, attribute)

    def timed(*arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        result = original(*arguments, **named)
        spent[name] += time.perf_counter() - begin
        return result

    with patch.object(owner, attribute, timed):
        yield
