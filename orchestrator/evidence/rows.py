"""Rows of a table: a method as overrides of the scale's configuration, and what is chosen for it on validation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.evidence.scales import Scale
from orchestrator.sweeps.settings import Sweep, parse_sweep
from orchestrator.sweeps.space import overrides
from repsearch.config import with_overrides

SEED = 1000
"""Seed of the trials: no final run has it, so that the runs reported were not chosen from."""

EVALUATE_EVERY = "rounds.evaluate_every"


def file_name(title: str) -> str:
    """Return `title`, of a row or a group of rows, as part of a file's name."""
    return re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method.

    settings: values of the configuration, by dotted key, in the order in which they are set.
    space: what is chosen for it besides the scale's space; of keys in both, this one counts.
    fixed: keys of the scale's space that are not chosen for it.
    group: rows compared with one another, such as those of one label noise; the baseline is the first of its group.
    x: for a plot, what the row is varied by.
    method: name of the row of another table whose chosen values fit this one; its own name if empty.
    curves: what learning recorded of each epoch that is kept with the result, and drawn for the row's group.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Any] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    group: str = ""
    x: str = ""
    method: str = ""
    curves: tuple[str, ...] = ()

    def within(self, group: str, settings: Mapping[str, Any]) -> Row:
        """Return the row in `group`, with more settings."""
        return replace(self, group=group, settings={**self.settings, **settings})

    @property
    def title(self) -> str:
        """Group and name."""
        return f"{self.group}: {self.name}" if self.group else self.name

    def table(self, base: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Return the configuration of the row, before anything is chosen."""
        return with_overrides(base, [*overrides(self.settings), *overrides(self._measuring()), f"run.seed={seed}"])

    def _measuring(self) -> Mapping[str, Any]:
        """Return how often rounds are measured: the last one alone, which is all that a table tells.

        Measuring every pass took 29 to 55 % of the learner's time where rounds are windows of 4,000 images.
        """
        rounds = self.settings.get("rounds", {})
        return {EVALUATE_EVERY: rounds["count"]} if "count" in rounds else {}

    def sweep(self, scale: Scale, base: Mapping[str, Any], trials: int) -> Sweep:
        """Return what is chosen for the row: of the same number of trials, drawn alike for every row."""
        shared = {key: part for key, part in scale.space.items() if key not in self.fixed}
        table = {"trials": trials, "sampler": scale.sampler, "prune": True, "space": {**shared, **self.space}}
        return parse_sweep({**self.table(base, SEED), "sweep": table}, self.title)


CROSS_ENTROPY = {"learn.objective.name": "cross_entropy", "rounds.policy": "learn_only"}
LEARN_ONCE = {"policy": "learn_only", "count": 1}
"""Section `rounds` of rows without search, where that of the scale has more rounds or none."""
BLOCKS = {"learn.objective.layers": [[0, 1, 2], [1, 2]]}
"""All blocks, or block 0 unsupervised."""
_BLUR = [5, 1, 1, 0]

BASELINE = Row(name="cross-entropy", settings=CROSS_ENTROPY)
EVOLUTION = Row(name="evolution", settings={"search.strategy.name": "evolution"}, space=BLOCKS)
EVOLUTION_STRATEGY = Row(
    name="evolution strategy",
    settings={"search.strategy.name": "evolution_strategy", "search.strategy.generations": [8, 8, 8, 2]},
    space=BLOCKS,
)
# The logits of an untrained network say nothing of the class, so here the head learns labels.
NONE = Row(
    name="own representation",
    settings={"search.strategy.name": "none", "learn.objective.head": "labels"},
    space=BLOCKS,
)
CLASS_CODE = Row(name="class code", settings={"search.strategy.name": "class_code"}, space=BLOCKS)
MIXED_CODE = Row(
    name="class code, mixed",
    settings={"search.strategy.name": "class_code"},
    space={"search.strategy.mix": [0.25, 0.5, 0.75], **BLOCKS},
)
_STEPS = {"search.strategy.step": [[0.3, 0.3, 0.3, 0.3], [1.0, 1.0, 1.0, 1.0]]}
GRADIENT = Row(name="gradient", settings={"search.strategy.name": "gradient"}, space={**_STEPS, **BLOCKS})
BLURRED_GRADIENT = Row(
    name="gradient, blurred",
    settings={"search.strategy.name": "gradient", "search.strategy.blur_passes": _BLUR},
    space={**_STEPS, **BLOCKS},
)
LABEL_SMOOTHING = Row(name="label smoothing", settings=CROSS_ENTROPY, space={"learn.objective.label_smoothing": [0.1, 0.3]})
GENERALISED = Row(
    name="generalised cross-entropy",
    settings={"learn.objective.name": "generalised_cross_entropy", "rounds.policy": "learn_only"},
    space={"learn.objective.q": [0.3, 0.5, 0.7]},
)
EARLY_STOPPING = Row(
    name="early stopping",
    settings={**CROSS_ENTROPY, "learn.keep": "best", "learn.patience": 4},
    space={"learn.schedule": ["one_cycle", "constant"]},
)
