"""The page of `benchmarks/code_search.py`: what searched codes are worth beside random ones, and the curve of their fitness.

    python benchmarks/code_search_page.py benchmarks/evidence/code_search.json

The page and its picture are written beside the file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import mean_and_spread
from orchestrator.studies.figures import COLOURS, MARKERS, grid, save
from store.files import replace_file

HEAD = """# Searched class codes against random ones

Policy `code_search` ([docs/policies.md](../../docs/policies.md)): every candidate is a code per class, learned for a few epochs
from a shared warm start; its fitness is measured on images of their own, apart from validation and test. `random` draws as many codes and
learns the best as `search` and `genetic` do; `one code` spends all of that learning on a single random code, and `more images` also learns
from the images that fitness takes; `plain` is one code for the last round's epochs alone. Test %: mean and sample standard deviation over
the seeds."""
Row = Mapping[str, Any]


def page(document: Mapping[str, Any], picture: str) -> str:
    """Return the page of what the benchmark wrote; differences are from `search`, seed by seed."""
    rows: Sequence[Row] = document["rows"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    searched = {row["seed"]: row["test_accuracy"] for row in rows if row["name"] == "search"}
    lines = ["| row | seeds | test % | search is above it by | images learned | seconds |", "|---|---|---|---|---|---|"]
    for name in names:
        found = [row for row in rows if row["name"] == name]
        both = [searched[row["seed"]] - row["test_accuracy"] for row in found if row["seed"] in searched]
        above = mean_and_spread(both) if both and name != "search" else ""
        test = mean_and_spread([row["test_accuracy"] for row in found])
        images, seconds = (statistics.mean(row[key] for row in found) for key in ("learn_examples", "seconds"))
        lines.append(f"| {name} | {len(found)} | {test} | {above} | {images:,.0f} | {seconds:.0f} |")
    machine = document["machine"]
    made = f"`{document['command']}`, commit {document['commit']}, {machine['processor']}, {machine['cores']} cores"
    return "\n\n".join([HEAD, f"![fitness by generation]({picture})", "\n".join(lines), f"Made by {made}."]) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the fitness of the candidates over generations, means over seeds: of all, and the best so far."""
    figure, panels = grid(1, 2, "fitness of class codes by generation", width=4.0, height=3.0)
    for axes, key, title in zip(panels[0], ("mean", "best_so_far"), ("mean of the generation", "best so far"), strict=True):
        for place, name in enumerate(dict.fromkeys(row["name"] for row in rows if row["curve"])):
            curves = [[point[key] for point in row["curve"]] for row in rows if row["name"] == name]
            means = [statistics.mean(values) for values in zip(*curves, strict=True)]
            axes.plot(range(1, len(means) + 1), means, label=name, color=COLOURS[place], marker=MARKERS[place])
        axes.set_title(title, fontsize="medium")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("generation")
    panels[0][0].set_ylabel("fitness")
    panels[0][1].legend(frameon=False)
    save(figure, path)


def main() -> None:
    """Write page and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="what code_search.py --json wrote")
    results = parser.parse_args().results
    document = json.loads(results.read_text())
    draw(document["rows"], results.with_suffix(".png"))
    replace_file(results.with_suffix(".md"), page(document, results.with_suffix(".png").name).encode())


if __name__ == "__main__":
    main()
