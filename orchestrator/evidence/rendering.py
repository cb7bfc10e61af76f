"""A table's results as a Markdown page, with a plot where rows are varied along an axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from orchestrator.evidence.picture import draw, draw_curves, panels_of
from orchestrator.evidence.results import Record, read
from orchestrator.evidence.rows import file_name
from orchestrator.evidence.tables import EvidenceTable
from orchestrator.sweeps.space import toml_value
from store.files import replace_file

NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10 (JPEG)"}


def write_page(name: str, table: EvidenceTable, out: Path) -> Path:
    """Write `<name>.md`, with a section per result file of the table in `out`, and the plots; return the page's path."""
    # `loop-*` are also those of `loop-augmented`.
    paths = sorted((path for path in out.glob(f"{name}-*.json") if read(path)["table"] == name), key=_place)
    documents = [read(path) for path in paths]
    panels = [panel for document in documents for panel in panels_of(_heading(document), document["rows"])]
    parts = [f"# {table.title}", PREAMBLE.format(name=name), *([table.notes] if table.notes else [])]
    if panels:
        draw(out / f"{name}.png", table.title, panels)
        parts.append(f"![test accuracy of every method, mean and standard deviation]({name}.png)")
    for path in paths:
        parts += _section(path)
    page = out / f"{name}.md"
    replace_file(page, ("\n\n".join(parts) + "\n").encode())
    return page


PREAMBLE = """Made by `orchestrator reproduce {name}`; how: [docs/evidence.md](../../docs/evidence.md). Test %: mean and sample standard
deviation over the seeds of runs with the settings of the last column, which were chosen on validation, of the same number of trials for
every row, of this table or, where a line below says so, of another. Evaluations: of candidates, per training image. Seconds: of a
processor core, searching and learning, of one run. Validation: of the best trial, on labels as noisy as the training labels."""


def _heading(document: Mapping[str, Any]) -> str:
    heading = f"{NAMES.get(document['dataset'], document['dataset'])}, {document['images']:,} training images"
    if document["scale"] != "cpu":
        heading += f", scale {document['scale']}"
    if document.get("equal_seconds"):
        heading += f", as many seconds as {document['equal_seconds']}"
    return heading + (f", {document['epochs']} epochs" if document.get("epochs") else "")


def _section(path: Path) -> list[str]:
    document = read(path)
    rows: list[Record] = document["rows"]
    heading = _heading(document)
    parts = [f"## {heading}"]
    if not rows:
        return [*parts, "No rows yet."]
    lines = ["| method | test % | difference | evaluations | seconds | validation % | chosen |", "|---|---|---|---|---|---|---|"]
    for group, members in groupby(rows, key=lambda row: row["group"]):
        found = list(members)
        if group:
            lines.append(f"| **{group}** | | | | | | |")
        lines += [_line(row, found[0]) for row in found]
    parts.append("\n".join(lines))
    if len(varied := [row for row in rows if row["x"]]) > 1:
        plot(path.with_suffix(".png"), heading, varied)
        parts.append(f"![test accuracy against evaluations]({path.with_suffix('.png').name})")
    for group, members in groupby((row for row in rows if row.get("curves")), key=lambda row: row["group"]):
        image = path.with_name(f"{path.stem}-{file_name(group)}-curves.png")
        draw_curves(image, f"{heading}, {group}" if group else heading, list(members))
        parts.append(f"![by epoch, means over seeds: {group or heading}]({image.name})")
    parts.append("\n".join(f"- {line}" for line in _made(rows)))
    return parts


def _line(row: Record, first: Record) -> str:
    test = f"{100 * row['mean']:.2f} ± {100 * row['std']:.2f}"
    difference = "" if row is first else f"{100 * (row['mean'] - first['mean']):+.2f}"
    chosen = ", ".join(f"{_short_key(key)} {_short(value)}" for key, value in row["chosen"].items())
    cost = f"{row['evaluations']:,.0f} | {row['core_s'] if row.get('core_s') else row['seconds']:.0f}"
    validation = "" if row["validation"] is None else f"{100 * row['validation']:.2f}"
    return f"| {row['name']} | {test} | {difference} | {cost} | {validation} | {chosen} |"


def _made(rows: Sequence[Record]) -> list[str]:
    """Return what made the rows: a line per seeds and trials, command, commit and hardware that some of them share."""
    made: dict[tuple[Any, ...], int] = {}
    for row in rows:
        chosen = f"values chosen for {row['chosen_from']}" if row.get("chosen_from") else f"{row['trials']} trials each"
        seconds = "" if row.get("core_s") else ", seconds of wall time"
        for seeds, part in _parts(row):
            facts = seeds, f"{chosen}, {part['jobs']} at a time{seconds}", part["command"], part["commit"], part["hardware"], part["date"]
            made[facts] = made.get(facts, 0) + 1
    return [
        f"{number} rows: {seeds}, {how}; `{command}`, commit {commit}, {hardware}, {date}"
        for (seeds, how, command, commit, hardware, date), number in made.items()
    ]


def _parts(row: Record) -> list[tuple[str, Record]]:
    """Return the seeds of each time that the row was made, as words, and what made them."""
    if not row.get("before"):
        return [(f"{row['seeds']} seeds", row)]
    parts = [*row["before"], row]
    firsts = [0, *(part["seeds"] for part in parts)]
    return [(f"seeds {first} to {part['seeds'] - 1}", part) for first, part in zip(firsts, parts, strict=False)]


def plot(path: Path, title: str, rows: Sequence[Record]) -> None:
    """Draw test accuracy against evaluations, a line per group, bars of one standard deviation."""
    from orchestrator.studies.figures import COLOURS, MARKERS, grid, save, ticks

    figure, panels = grid(1, 1, title, width=5.0, height=3.4)
    axes = panels[0][0]
    for place, group in enumerate(dict.fromkeys(row["group"] for row in rows)):
        found = sorted((row for row in rows if row["group"] == group), key=lambda row: row["evaluations"])
        axes.errorbar(
            [row["evaluations"] for row in found],
            [100 * row["mean"] for row in found],
            [100 * row["std"] for row in found],
            label=f"more {group}",
            color=COLOURS[place],
            marker=MARKERS[place],
            capsize=3,
        )
    places = sorted({round(row["evaluations"]) for row in rows})
    # Labels nearer to one another than a third would overlap.
    ticks(axes, [place for number, place in enumerate(places) if number == 0 or place > 1.3 * places[number - 1]])
    axes.set_xlabel("evaluations per image")
    axes.set_ylabel("test %")
    axes.legend(frameon=False)
    save(figure, path)


def _place(path: Path) -> tuple[bool, int, int, bool]:
    document = read(path)
    return document["scale"] != "cpu", list(NAMES).index(document["dataset"]), int(document["images"]), bool(document.get("equal_seconds"))


def _short_key(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else toml_value(value)
