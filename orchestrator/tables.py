"""Tables for people: the rounds of a run, and runs side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from orchestrator.report import RoundReport, layers_of, search_metric

NOTHING = "-"
_WIDE = 400


def rounds_table(reports: Sequence[RoundReport], baseline: Sequence[RoundReport]) -> Table:
    """Return one line per round that was measured, on test or on fitness alone, and the baseline's last round as the last line."""
    reports = [report for report in reports if report.accuracy is not None]
    layers = list(dict.fromkeys(layer for report in reports for layer in report.layers()))
    fitness = any("fitness/accuracy" in report.metrics for report in reports)
    table = _table("round", "test accuracy", *(["fitness"] if fitness else []))
    for layer in layers:
        table.add_column(f"{layer}\ncross-entropy", justify="right")
    for heading in ("candidate\nevaluations", "search\ns", "learning\ns", "overhead\ns"):
        table.add_column(heading, justify="right")
    for report in reports:
        table.add_row(str(report.round), *_cells(report.metrics, layers, fitness=fitness))
    if baseline:
        table.add_section()
        table.add_row("baseline", *_cells(baseline[-1].metrics, layers, fitness=fitness))
    return table


def _cells(metrics: Mapping[str, float], layers: Sequence[str], *, fitness: bool) -> list[str]:
    return [
        *(f"{metrics[name]:.2%}" if name in metrics else NOTHING for name in ("test/accuracy", *(["fitness/accuracy"] if fitness else []))),
        *(_fall(metrics, layer) for layer in layers),
        f"{metrics['search/evaluations']:,.0f}" if metrics["search/evaluations"] else NOTHING,
        *(f"{metrics[f'seconds/{part}']:.1f}" for part in ("search", "learn")),
        f"{metrics['seconds/overhead']:.2f}",
    ]


def _fall(metrics: Mapping[str, float], layer: str) -> str:
    if layer not in layers_of(metrics):
        return NOTHING
    before, after = (metrics[search_metric(layer, when)] for when in ("before", "after"))
    return f"{before:.3f} -> {after:.3f}"


def compare_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return one line per run of `compare.compare_runs`: figures of the last round, then the settings that differ."""
    settings = list(rows[0]["settings"]) if rows else []
    table = _table("run", "state", "rounds", "test accuracy", "validation", "evaluations\nper image", "search s", "learning s")
    for path in settings:
        table.add_column(path)
    for row in rows:
        metrics = row["metrics"]
        table.add_row(
            row["name"],
            row["state"],
            str(row["rounds"]),
            *(f"{metrics[name]:.2%}" if metrics else NOTHING for name in ("test/accuracy", "validation/accuracy")),
            f"{row['evaluations_per_example']:,.0f}" if metrics else NOTHING,
            *(f"{row[name]:.1f}" if metrics else NOTHING for name in ("seconds_search", "seconds_learn")),
            *(_value(row["settings"][path]) for path in settings),
        )
    return table


def rows_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return rows with the same keys as a table; fractions to four digits, what was not measured as a dash."""
    table = _table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        table.add_row(*(_number(value) for value in row.values()))
    return table


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if math.isfinite(value) else NOTHING
    return str(value)


def fields_table(fields: Mapping[str, Any]) -> Table:
    """Return names and values, one line each, without a frame."""
    table = Table.grid(padding=(0, 2))
    for name, value in fields.items():
        table.add_row(name, str(value))
    return table


def print_table(console: Console, table: Table) -> None:
    """Print `table` whole: off a terminal, where there is no width to respect, no cell is cut."""
    wide = console if console.is_terminal else Console(file=console.file, width=_WIDE, highlight=False)
    wide.print(table)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table
