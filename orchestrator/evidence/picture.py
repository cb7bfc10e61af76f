"""A table as a picture: a panel per result file and group of rows, a line per method with its mean, spread and single seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from textwrap import wrap

from orchestrator.evidence.results import Record

Panel = tuple[str, list[Record]]
HEADING = 32
"""Letters of a heading that fit above a panel."""


def panels_of(heading: str, rows: Sequence[Record]) -> list[Panel]:
    """Return a panel per group of `rows`; those with an axis of their own are left to its plot, and one alone compares nothing."""
    groups = groupby((row for row in rows if not row["x"]), key=lambda row: row["group"])
    found = [(group, list(members)) for group, members in groups]
    return [(f"{heading}\n{group}" if group else heading, members) for group, members in found if len(members) > 1]


def draw(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Write the picture: the first row of a panel is the baseline, whose mean is a line through all."""
    from orchestrator.studies.figures import COLOURS, grid, save

    columns = min(3, len(panels))
    most = max(len(rows) for _, rows in panels)
    # A panel alone needs room for its heading beside the names of the rows.
    figure, axes = grid(-(-len(panels) // columns), columns, title, width=4.4 if columns > 1 else 6.4, height=0.28 * most + 0.8)
    for number, place in enumerate(axes[row][column] for row in range(len(axes)) for column in range(columns)):
        if number >= len(panels):
            place.set_axis_off()
            continue
        heading, rows = panels[number]
        place.set_title("\n".join(part for line in heading.splitlines() for part in wrap(line, HEADING)), fontsize="medium")
        place.axvline(100 * rows[0]["mean"], color="grey", linewidth=1, linestyle=":")
        floor = _floor(rows)
        for height, row in enumerate(reversed(rows)):
            # What needs no evaluation of a candidate is told apart from search.
            colour = COLOURS[1] if row["evaluations"] else COLOURS[0]
            if 100 * row["mean"] < floor:
                place.text(floor, height, f" < {100 * row['mean']:.1f}", color=colour, va="center", fontsize="small")
                continue
            place.errorbar(100 * row["mean"], height, xerr=100 * row["std"], color=colour, marker="o", markersize=5, capsize=3)
            place.plot([100 * value for value in row["test"]], [height] * len(row["test"]), "|", color=colour, alpha=0.6)
        place.set_xlim(left=floor if any(100 * row["mean"] < floor for row in rows) else None)
        place.set_ylim(-0.6, len(rows) - 0.4)
        place.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)], fontsize="small")
        place.set_xlabel("test %; orange: searched" if number == 0 else "test %")
    save(figure, path)


def draw_curves(path: Path, title: str, rows: Sequence[Record]) -> None:
    """Write a panel per curve that the records keep, a line per row: means over seeds, by epoch."""
    from orchestrator.studies.figures import COLOURS, MARKERS, grid, save

    names = list(rows[0]["curves"])
    figure, panels = grid(1, len(names), title, width=4.2, height=3.2)
    for axes, name in zip(panels[0], names, strict=True):
        share = name.endswith("accuracy")
        for place, row in enumerate(rows):
            values = [100 * value if share else value for value in row["curves"][name]]
            axes.plot(range(1, len(values) + 1), values, label=row["name"], color=COLOURS[place], marker=MARKERS[place], markersize=4)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{name.replace('_', ' ')}{' %' if share else ''}")
    # Names of rows are long: more beside one another would not fit.
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    save(figure, path)


def _floor(rows: Sequence[Record]) -> float:
    """Return the accuracy in % below which a row would squeeze the others: as far below the baseline as three times the best is above.

    Where that would leave out more than a third of the rows, nothing is.
    """
    base = 100 * rows[0]["mean"]
    floor = float(base - 3 * max(1.0, max(100 * (row["mean"] + row["std"]) for row in rows) - base))
    return floor if 3 * sum(100 * row["mean"] < floor for row in rows) <= len(rows) else 0.0
