"""What a streamed round costs outside search and learning: rounds per second, and the share of each step in the overhead.

    python benchmarks/round_overhead.py [--rounds 300] [--set a.b=value] [--json FILE]

Runs `rounds` rounds of one batch of digits with local daemons over loopback gRPC and a local store, strictly alternating (max_staleness 0),
so that a round's wall time is search, learning and overhead, one after the other. The first rounds, in which libraries are loaded, are left
out. Steps of the overhead, per round: reading the network and writing the targets (searcher), reading the targets and writing network and
state (learner), messages (both ways, daemon and compute process included), and the rest, which is the orchestrator between two messages.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from orchestrator import execution
from orchestrator.progress import PlainDisplay
from orchestrator.segments import segments
from store import open_store

WARM_UP = 20
CONFIG = """
[dataset]
name = "digits"
[network]
name = "convnet"
width = 16
blocks = 2
convolutions = 4
[search]
layers = [1]
start = "network"
network = {convolutions = 2}
[search.strategy]
name = "evolution_strategy"
pairs = 16
generations = [1]
sigma = [0.3]
step = [0.3]
blur_passes = [0]
[learn]
start = "continue"
epochs = 1
batch_size = 64
[rounds]
examples_per_round = 64
policy = {name = "streaming", max_staleness = 0}
keep = {rounds = 50}
[tracking]
enabled = false
"""


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=v", help="set one value of the configuration; repeatable")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        entries = run(Path(folder), options.rounds, options.set)
    measured = figures(entries[WARM_UP:])
    print(
        f"rounds per second {measured['rounds_per_s']:.1f}; overhead per round: median {measured['median_ms']:.1f} ms, "
        f"95 % of rounds below {measured['p95_ms']:.1f} ms"
    )
    for name, ms in measured["steps_ms"].items():
        print(f"  {name:28} {ms:6.2f} ms  {ms / sum(measured['steps_ms'].values()):5.1%}")
    if options.json:
        rows = [{"name": "overhead", "median_ms": measured["median_ms"], "p95_ms": measured["p95_ms"]}]
        options.json.write_text(json.dumps({"rows": rows, "rounds": options.rounds, **measured}, indent=2) + "\n")


def run(folder: Path, rounds: int, settings: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the segments of a run say of its rounds."""
    path = folder / "overhead.toml"
    path.write_text(CONFIG)
    overrides = [f"run.root={folder / 'runs'}", f"rounds.count={rounds}", *settings]
    finished = execution.start(execution.prepare(path, overrides, "overhead"), PlainDisplay(Console(quiet=True)))
    return [entry for segment in segments(open_store(finished.run.folder)) for entry in segment["rounds"]]


def figures(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return rounds per second, the overhead of a round, and the mean of each of its steps."""
    rounds = [entry["report"]["metrics"] for entry in entries]
    overheads = [1000 * (m["seconds/round"] - m["seconds/search"] - m["seconds/learn"]) for m in rounds]
    named = {
        "read network": ("search", "read"),
        "write targets": ("search", "write"),
        "messages to the searcher": ("search", "messages"),
        "read targets": ("learn", "read"),
        "write network and state": ("learn", "write"),
        "messages to the learner": ("learn", "messages"),
        "rest of the searcher": ("search", "rest"),
        "rest of the learner": ("learn", "rest"),
    }
    steps = {name: 1000 * statistics.mean(entry["steps"][job][step] for entry in entries) for name, (job, step) in named.items()}
    steps["orchestrator"] = statistics.mean(overheads) - sum(steps.values())
    return {
        "rounds_per_s": len(rounds) / sum(m["seconds/round"] for m in rounds),
        "median_ms": statistics.median(overheads),
        "p95_ms": statistics.quantiles(overheads, n=20)[-1],
        "search_ms": 1000 * statistics.median(m["seconds/search"] for m in rounds),
        "learn_ms": 1000 * statistics.median(m["seconds/learn"] for m in rounds),
        "steps_ms": steps,
    }


if __name__ == "__main__":
    main()
