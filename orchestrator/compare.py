"""Runs side by side: the figures of their last rounds, and the settings in which they differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.remote import store_of
from orchestrator.report import PASS_METRICS, RoundReport, measured
from orchestrator.rounds import load_reports
from orchestrator.runs import open_run
from orchestrator.status import state_of
from repsearch.errors import ConfigError

_PLACEMENT = ("run.root", "store.root", "run.baseline", "searcher.", "learner.", "tracking.", "learn.keep_checkpoints", "learn.snapshots")
"""Settings that do not change what a run computes."""
_MISSING = None


def compare_runs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return per run: name, state, rounds done, metrics of the last one, totals over all rounds, and the settings that differ."""
    runs = [open_run(folder) for folder in folders]
    for run in runs:
        if run.study:
            raise ConfigError(
                f"{run.folder}: a study ({run.study['name']}), which has no rounds to compare; its tables are in {run.folder}/analysis"
            )
    settings = differing([flat(run.config.model_dump(mode="json")) for run in runs])
    return [
        {
            "name": run.name,
            "folder": str(run.folder),
            "state": state_of(run.folder),
            **_figures(load_reports(store_of(run.folder)), run.dataset["train"]),
            "settings": differs,
        }
        for run, differs in zip(runs, settings, strict=True)
    ]


def _figures(reports: Sequence[RoundReport], examples: int) -> dict[str, Any]:
    newest = measured(reports)[-1:]
    return {
        "rounds": len(reports),
        "metrics": dict(newest[0].metrics) if newest else {},
        "evaluations_per_example": _total(reports, "search/evaluations") / examples,
        "learn_examples": _total(reports, "learn/examples"),
        **{name.replace("/", "_"): _total(reports, name) for name in PASS_METRICS if all(name in report.metrics for report in reports)},
        "seconds_search": _total(reports, "seconds/search"),
        "seconds_learn": _total(reports, "seconds/learn"),
    }


def _total(reports: Sequence[RoundReport], name: str) -> float:
    return sum(report.metrics[name] for report in reports)


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, keys joined by dots."""
    result: dict[str, Any] = {}
    for key, value in table.items():
        result.update(flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return result


def differing(tables: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return of each flat table the settings that are not the same in all of them, those of placement left out."""
    paths = list(dict.fromkeys(path for table in tables for path in table))
    wanted = [
        path
        for path in paths
        if not path.startswith(_PLACEMENT) and len({json.dumps(table.get(path, _MISSING), sort_keys=True) for table in tables}) > 1
    ]
    return [{path: table.get(path, _MISSING) for path in wanted} for table in tables]
