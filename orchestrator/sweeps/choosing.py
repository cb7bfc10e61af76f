"""Trials of a sweep in Optuna's database: which values come next, what they gave, which are best.

The database is the truth: a trial that was asked for and has no result is tried again first, with the same values. What a trial draws
depends on the run's seed and its number (`random`, `sobol`), and on the results before it (`tpe`).
"""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from orchestrator.sweeps.settings import MOST_KEYS, Sweep
from orchestrator.sweeps.space import Choice, Space
from repsearch.seeding import seed_of

DATABASE = "optuna.db"
_ERROR = "error"


@dataclass(frozen=True)
class Trial:
    """number: from 0; values: of the keys of the space; accuracy: on validation, None without a result; error: why there is none."""

    number: int
    values: Mapping[str, Any]
    accuracy: float | None = None
    error: str = ""


class Trials:
    """The trials of the sweep in `folder`. Safe to use from several threads."""

    def __init__(self, folder: Path, sweep: Sweep, *, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sweep, self._seed = sweep, seed
        self._combinations = _combinations(sweep.space, seed) if sweep.settings.sampler == "grid" else []
        self._lock = threading.Lock()
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder / DATABASE}")
        self._study = optuna.create_study(storage=storage, study_name="sweep", direction="maximize", load_if_exists=True)
        self._storage = storage
        self._open: dict[int, optuna.trial.Trial] = {}
        self._unfinished = [trial for trial in self._frozen() if trial.state == TrialState.RUNNING]

    def next(self, most: int) -> Trial | None:
        """Return a trial to perform, or None when `most` of the sweep's have been given out."""
        with self._lock:
            if self._unfinished:
                frozen = self._unfinished.pop(0)
                return self._valued(optuna.trial.Trial(self._study, frozen._trial_id))
            number = len(self._frozen())
            if number >= min(most, self._sweep.trials):
                return None
            self._study.sampler = self._sampler(number)
            return self._valued(self._study.ask())

    def tell(self, trial: Trial, accuracy: float) -> None:
        """Record a trial's result."""
        with self._lock:
            self._study.tell(trial.number, accuracy)

    def fail(self, trial: Trial, error: str) -> None:
        """Record that a trial has no result, and why; it counts."""
        with self._lock:
            self._open[trial.number].set_user_attr(_ERROR, error)
            self._study.tell(trial.number, state=TrialState.FAIL)

    def all(self) -> list[Trial]:
        """Return every trial, in order of their numbers."""
        with self._lock:
            return [self._thawed(frozen) for frozen in self._frozen()]

    def best(self) -> Trial | None:
        """Return the trial of the highest accuracy, the first of equal ones; None if no trial has a result."""
        done = [trial for trial in self.all() if trial.accuracy is not None]
        return max(done, key=lambda trial: (trial.accuracy, -trial.number), default=None)

    def close(self) -> None:
        """Close the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _valued(self, trial: optuna.trial.Trial) -> Trial:
        self._open[trial.number] = trial
        return Trial(trial.number, {key: part.suggest(trial, key) for key, part in self._sweep.space.items()})

    def _thawed(self, frozen: FrozenTrial) -> Trial:
        space = self._sweep.space
        values = {key: json.loads(value) if isinstance(space[key], Choice) else value for key, value in frozen.params.items()}
        accuracy = frozen.value if frozen.state == TrialState.COMPLETE else None
        return Trial(frozen.number, values, accuracy, str(frozen.user_attrs.get(_ERROR, "")))

    def _frozen(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)  # type: ignore[no-any-return]

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        kind = self._sweep.settings.sampler
        # A sampler's own generator is not kept in the database; seeded by the trial, a continued sweep draws what it would have drawn.
        seed = seed_of(self._seed, "sweep", number) % 2**32
        if kind == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if kind == "tpe":
            # Optuna's default of 10 random trials first would leave nothing of a short sweep.
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(3, self._sweep.trials // 3)))
        if kind == "sobol":
            return Fixed(_spread(self._sweep.space, self._seed, number))
        return Fixed(self._combinations[number])


class Fixed(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """A sampler of given values: Optuna's own grid works inside `Study.optimize` only."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        """Return nothing: keys do not depend on one another."""
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        """Return the value of key `param_name`."""
        return self._values[param_name]


def _spread(space: Space, seed: int, number: int) -> dict[str, Any]:
    """Return point `number` of a scrambled Sobol sequence: of the first 2^n points, every half of a range and every value has its share.

    A key's values depend on its place among the keys and on nothing else of the space.
    """
    sequence = qmc.Sobol(MOST_KEYS, rng=np.random.default_rng(seed_of(seed, "sobol")))
    if number:
        sequence.fast_forward(number)
    return {key: part.at(float(share)) for (key, part), share in zip(space.items(), sequence.random()[0], strict=False)}


def _combinations(space: Space, seed: int) -> list[dict[str, str]]:
    """Return every combination of lists, as Optuna's choices, in an order drawn by the seed: the first few are spread over all."""
    lists = {key: part.texts() for key, part in space.items() if isinstance(part, Choice)}
    found = [dict(zip(lists, texts, strict=True)) for texts in itertools.product(*lists.values())]
    random.Random(seed_of(seed, "grid")).shuffle(found)
    return found
