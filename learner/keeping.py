"""Which epoch's network is kept, and when learning stops early: functions of the history alone, so that a resumed fit decides the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from repsearch.config import LearnConfig

ACCURACY = "validation_accuracy"


def chooses_epochs(learn: LearnConfig) -> bool:
    """Return whether the validation accuracy of epochs decides anything."""
    return learn.keep == "best" or learn.patience is not None


def best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """Return the epoch (from 1) of the highest validation accuracy, of equal ones the earliest; 0 for no history."""
    best, reached = 0, -1.0
    for epoch, record in enumerate(history, start=1):
        if record[ACCURACY] > reached:
            best, reached = epoch, record[ACCURACY]
    return best


def plateaued(history: Sequence[Mapping[str, float]], patience: int | None) -> bool:
    """Return whether the last `patience` epochs brought no better validation accuracy; never without `patience`."""
    return patience is not None and len(history) - best_epoch(history) >= patience and bool(history)
