"""The page about searched class codes says what its file says, seed by seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.code_search_page import draw, page
from benchmarks.runs import ROOT, command


def row(name: str, seed: int, accuracy: float, *best: float) -> dict[str, Any]:
    curve = [{"generation": number, "mean": value - 0.1, "best": value, "best_so_far": value} for number, value in enumerate(best)]
    return {"name": name, "seed": seed, "test_accuracy": accuracy, "learn_examples": 2000.0, "seconds": 10.0, "curve": curve}


ROWS = [row("search", 0, 0.96, 0.8, 0.9), row("search", 1, 0.98, 0.7, 0.9), row("random", 0, 0.95, 0.8, 0.8), row("plain", 1, 0.99)]
DOCUMENT = {"rows": ROWS, "command": "python code_search.py", "commit": "abc", "machine": {"processor": "x86", "cores": 2}}


def test_differences_are_of_the_same_seeds() -> None:
    lines = page(DOCUMENT, "codes.png").splitlines()
    assert "| search | 2 | 97.00 +- 1.41 |  | 2,000 | 10 |" in lines
    assert "| random | 1 | 95.00 +- 0.00 | 1.00 +- 0.00 | 2,000 | 10 |" in lines
    assert "| plain | 1 | 99.00 +- 0.00 | -1.00 +- 0.00 | 2,000 | 10 |" in lines
    assert lines[-1] == "Made by `python code_search.py`, commit abc, x86, 2 cores."


def test_only_rows_with_candidates_have_curves(tmp_path: Path) -> None:
    draw(ROWS, tmp_path / "codes.png")
    assert (tmp_path / "codes.png").read_bytes().startswith(b"\x89PNG")


def test_a_command_names_no_place_on_a_machine() -> None:
    given = [
        "--seeds",
        "3",
        "--data",
        "/home/me/data",
        "--root=/home/me/runs",
        "--row",
        "one code",
        "--json",
        "/home/me/x.json",
        "--set",
        "a.b=1",
    ]
    assert command([str(ROOT / "benchmarks/mnist.py"), *given]) == "python benchmarks/mnist.py --seeds 3 --row 'one code' --set a.b=1"
    assert command(["/home/me/bench.py"]) == "python bench.py"
