"""What a round did and what it cost, in the same terms for every policy, strategy and objective."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from repsearch.errors import StoreError

EVALUATION_METRICS = ("test/accuracy", "test/cross_entropy", "validation/accuracy", "validation/cross_entropy")
"""The metrics of a round whose network was measured (`rounds.evaluate_every`)."""
FITNESS_METRICS = ("fitness/accuracy", "fitness/cross_entropy")
"""The metrics that such a round has as well where examples are set apart for fitness (`dataset.fitness`), or that a round has instead."""
COST_METRICS = (
    "search/evaluations",
    "search/evaluations_per_example",
    "learn/examples",
    "seconds/search",
    "seconds/learn",
    "seconds/overhead",
    "seconds/round",
)
"""The metrics of every round."""
PASS_METRICS = ("learn/forward_examples", "learn/backward_examples")
"""Examples that learning passed through the network either way, as the learning rule counts them; reports of older runs lack them."""
ROUND_METRICS = (*EVALUATION_METRICS, *COST_METRICS)
"""The metrics of a round that was measured. One that searches has those of each search layer as well: `search_metric`, `solved_metric`."""

STREAM_METRICS = ("stream/staleness", "seconds/searcher_waited", "seconds/learner_waited")
"""What streamed rounds have besides: rounds that the network searched lagged behind, idle time before search and before learning."""
_SEARCH_METRIC = re.compile(r"search/(?P<layer>[^/]+)/cross_entropy_(?P<when>before|after)")
_SOLVED_METRIC = re.compile(r"search/[^/]+/solved")


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """The outcome of one round.

    policy, strategy, objective: names of the plug-ins.
    metrics: `COST_METRICS`, all or none of `EVALUATION_METRICS` and of `FITNESS_METRICS`, and, per search layer, cross-entropy before and
        after and the share solved; accuracies and shares are fractions, times are in seconds.
    searched, learned: references ({"path", "digest"}) of the network searched (None without search) and of the one learned.
    shards: references of the committed shards, in order of their examples.
    attempts: how often each piece of work was started, for example {"search": 4, "learn": 1}.
    changes: what the round changed of the section `search`; see `RoundPlan`.
    share: of the training set that the round covered.
    ended: why no round follows; "" if one does.
    """

    round: int
    policy: str
    strategy: str
    objective: str
    metrics: Mapping[str, float]
    searched: Mapping[str, str] | None = None
    learned: Mapping[str, str] | None = None
    shards: tuple[Mapping[str, str], ...] = ()
    attempts: Mapping[str, int] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0
    ended: str = ""

    def __post_init__(self) -> None:
        wanted = ROUND_METRICS if any(name in self.metrics for name in EVALUATION_METRICS) else COST_METRICS
        missing = [name for name in wanted if name not in self.metrics]
        known = (
            *ROUND_METRICS,
            *FITNESS_METRICS,
            *PASS_METRICS,
            *STREAM_METRICS,
            *(name for name in self.metrics if _SEARCH_METRIC.fullmatch(name) or _SOLVED_METRIC.fullmatch(name)),
        )
        unknown = [name for name in self.metrics if name not in known]
        wrong = [name for name, value in self.metrics.items() if not math.isfinite(value)]
        if missing or unknown or wrong:
            raise StoreError(f"report of round {self.round}: missing {missing}, unknown {unknown}, not finite {wrong}")

    @property
    def accuracy(self) -> float | None:
        """What policies go by: accuracy on validation, or on fitness where the round was measured on that alone; None without either."""
        return self.metrics.get("validation/accuracy", self.metrics.get("fitness/accuracy"))

    @property
    def evaluated(self) -> bool:
        """Whether the round's network was measured on validation and test."""
        return "test/accuracy" in self.metrics

    def layers(self) -> list[str]:
        """Names of the search layers, in order of search; [] for a round without search."""
        return layers_of(self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        document = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        for name in ("metrics", "searched", "learned", "attempts", "changes"):
            document[name] = None if document[name] is None else dict(document[name])
        document["shards"] = [dict(shard) for shard in self.shards]
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> RoundReport:
        """Return the report that `to_dict` gave; raises `StoreError` if a field is missing or unknown."""
        fields = dict(document)
        try:
            return cls(**{**fields, "shards": tuple(fields.get("shards", ()))})
        except TypeError as error:
            raise StoreError(f"not a report of a round: {error}") from None


def imagined(round: int, evaluations: int, *, share: float = 1.0, measured: bool = True) -> RoundReport:
    """Return the report of a round that is not done, for a look ahead: better than the round before, in no time."""
    metrics = dict.fromkeys((*ROUND_METRICS, *FITNESS_METRICS) if measured else COST_METRICS, 0.0)
    metrics |= {"search/evaluations_per_example": float(evaluations)}
    if measured:
        metrics |= dict.fromkeys(("validation/accuracy", "fitness/accuracy"), 1 - 1 / (round + 2))
        metrics |= {"fitness/cross_entropy": 1 / (round + 2)}
    return RoundReport(round=round, policy="", strategy="", objective="", metrics=metrics, share=share)


def measured(reports: Sequence[RoundReport]) -> list[RoundReport]:
    """Return the reports of the rounds that were measured on validation and test."""
    return [report for report in reports if report.evaluated]


def search_metric(layer: str, when: str) -> str:
    """Return the name of a layer's cross-entropy, `when` "before" or "after" its search."""
    return f"search/{layer}/cross_entropy_{when}"


def solved_metric(layer: str) -> str:
    """Return the name of the share of a layer's results with p(correct) > 0.5."""
    return f"search/{layer}/solved"


def is_search_metric(name: str) -> bool:
    """Return whether `name` is one of `search_metric`'s."""
    return _SEARCH_METRIC.fullmatch(name) is not None


def layers_of(metrics: Mapping[str, float]) -> list[str]:
    """Return the search layers that `metrics` names, in order."""
    matches = (_SEARCH_METRIC.fullmatch(name) for name in metrics)
    return list(dict.fromkeys(match["layer"] for match in matches if match))
