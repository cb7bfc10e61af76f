"""What overlap is worth: the same streamed run with search and learning alternating, and with both at once on a core each.

    python benchmarks/overlap.py [--data DIR] [--seeds 2] [--rounds 160] [--max-staleness 2] [--json FILE]

MNIST (`configs/mnist-streaming.toml`) if the data are there (`--data`, or REPSEARCH_DATA), else digits. Searcher and learner have one
thread each. First the search effort (candidates per image) is chosen so that searching a window takes as long as learning it, from short
runs. Then every seed runs `alternating` (max_staleness 0) and `streaming`, one after the other on the same daemons. Seconds are from the
end of the first round, in which libraries are loaded, to the end of the last; the network is measured once, at the end, for which they
count nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from orchestrator import execution
from orchestrator.local import LocalDaemons, local_specs
from orchestrator.progress import PlainDisplay
from orchestrator.report import RoundReport
from repsearch.config import load_config

ROOT = Path(__file__).resolve().parents[1]
FIRST_PAIRS, PROBES, PROBE_ROUNDS = 100, 4, 32
"""Antithetic pairs of the first run from which the effort is chosen, and how many runs of how many rounds there are."""
DIGITS = ("dataset={name='digits'}", "search.layers=[2]", "search.micro_batch=64", "learn.batch_size=64", "rounds.examples_per_round=64")


@dataclass(frozen=True)
class Place:
    """Where runs go: folder, daemons, and the settings that all runs share."""

    folder: Path
    settings: tuple[str, ...]

    def run(self, name: str, *settings: str) -> list[RoundReport]:
        """Run to the end; return the reports."""
        prepared = execution.prepare(ROOT / "configs/mnist-streaming.toml", [*self.settings, *settings], name)
        return execution.start(prepared, PlainDisplay(Console(quiet=True))).reports


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("REPSEARCH_DATA"), help="folder with MNIST/raw")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=160)
    parser.add_argument("--max-staleness", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "runs"
        folder.mkdir()
        settings = settings_for(options.data, folder)
        config = load_config(ROOT / "configs/mnist-streaming.toml", settings)
        with LocalDaemons(local_specs(config), folder) as daemons:
            addresses = [
                f"searcher.addresses={json.dumps(daemons.addresses('searcher'))}",
                f"learner.address={daemons.addresses('learner')[0]}",
            ]
            place = Place(folder, (*settings, *addresses))
            pairs = calibrated(place)
            rows, phases = measure(place, pairs, options.seeds, options.rounds, options.max_staleness)
    show(rows, phases, pairs)
    if options.json:
        facts = {"pairs": pairs, "rounds": options.rounds, "max_staleness": options.max_staleness, "phases_s": phases}
        options.json.write_text(json.dumps({"rows": rows, "dataset": config.dataset["name"], **facts}, indent=2) + "\n")


def settings_for(data: Path | None, folder: Path) -> list[str]:
    """Return what all runs set: the data, and nothing that takes time beside rounds."""
    shared = [f"run.root={folder}", "tracking.enabled=false", "rounds.evaluate_every=1000000"]
    if data is not None and (Path(data) / "MNIST/raw").is_dir():
        return [*shared, f"dataset.root={data}", "dataset.train=3000", "dataset.validation=1000"]
    return [*shared, *DIGITS]


def calibrated(place: Place) -> int:
    """Return the pairs with which searching a window takes as long as learning it: tried, corrected by the ratio, tried again."""
    pairs = FIRST_PAIRS
    for probe in range(PROBES):
        reports = place.run(f"probe-{probe}", *effort(pairs, PROBE_ROUNDS, 0))[PROBE_ROUNDS // 4 : -1]
        search, learn = (statistics.median(report.metrics[f"seconds/{part}"] for report in reports) for part in ("search", "learn"))
        pairs = max(1, min(4000, round(pairs * learn / search)))
    return pairs


def effort(pairs: int, rounds: int, max_staleness: int) -> list[str]:
    """Return the settings of a run of `rounds` rounds."""
    policy = f"rounds.policy={{name='streaming', max_staleness={max_staleness}}}"
    return [f"search.strategy.pairs={pairs}", f"rounds.count={rounds}", policy]


def measure(place: Place, pairs: int, seeds: int, rounds: int, max_staleness: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return a row for each way of running, means over the seeds, and the median length of the phases when they alternate."""
    found: dict[str, list[list[RoundReport]]] = {"alternating": [], "streaming": []}
    for seed in range(seeds):
        for name, staleness in (("alternating", 0), ("streaming", max_staleness)):
            found[name].append(place.run(f"{name}-{seed}", f"run.seed={seed}", *effort(pairs, rounds, staleness)))
    rows = [row(name, runs) for name, runs in found.items()]
    alternating = [report for reports in found["alternating"] for report in reports[1:-1]]
    phases = {
        part: statistics.median(report.metrics[f"seconds/{part}"] for report in alternating) for part in ("search", "learn", "overhead")
    }
    return rows, phases


def row(name: str, runs: Sequence[Sequence[RoundReport]]) -> dict[str, Any]:
    """Return seconds and test accuracy of a way of running."""
    seconds = [sum(report.metrics["seconds/round"] for report in reports[1:-1]) for reports in runs]
    accuracies = [reports[-1].metrics["test/accuracy"] for reports in runs]
    return {
        "name": name,
        "seconds": statistics.mean(seconds),
        "test_accuracy": statistics.mean(accuracies),
        "seconds_by_seed": seconds,
        "test_accuracy_by_seed": accuracies,
        "test_accuracy_spread": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "staleness": statistics.mean(report.metrics["stream/staleness"] for reports in runs for report in reports),
    }


def show(rows: Sequence[dict[str, Any]], phases: dict[str, float], pairs: int) -> None:
    """Print the table."""
    print(f"{pairs} pairs; alternating: " + ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in phases.items()))
    print(f"{'':12} {'seconds':>8}  test accuracy")
    for each in rows:
        by_seed = "  ".join(f"{accuracy:.2%}" for accuracy in each["test_accuracy_by_seed"])
        print(f"{each['name']:12} {each['seconds']:8.1f}  {each['test_accuracy']:.2%} +- {each['test_accuracy_spread']:.2%}  ({by_seed})")
    ratios = [slow / fast for slow, fast in zip(rows[0]["seconds_by_seed"], rows[1]["seconds_by_seed"], strict=True)]
    print("streaming is " + ", ".join(f"{ratio:.2f}" for ratio in ratios) + " times as fast")


if __name__ == "__main__":
    main()
