"""What an estimate of each learning rule holds in memory as the network grows deeper.

    python -m benchmarks.rules_memory [--json FILE] [--plot FILE]

Networks (mlp without BatchNorm, blocks of 64) on made-up 28x28 images, cross-entropy, batches of 2000. Every tensor that an estimate makes
is counted while it is there, beside parameters and images; the figure is the most bytes at once, which depends on shapes alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.rules_speed import made_up
from learner.batches import Batch
from learner.objectives.cross_entropy import CrossEntropy
from learner.rules.base import LearningRule, Problem, problem_of
from repsearch.config import LearnConfig
from repsearch.families import RULES
from repsearch.networks import build_network
from repsearch.networks.activations import _Live

DEPTHS = (2, 4, 8, 16, 32)
ROWS: dict[str, dict[str, Any]] = {
    "backprop": {"name": "backprop"},
    "forward_gradient, weights": {"name": "forward_gradient"},
    "forward_gradient, activities": {"name": "forward_gradient", "perturb": "activities"},
    "node_perturbation np": {"name": "node_perturbation"},
    "weight_perturbation": {"name": "weight_perturbation"},
}


def megabytes(table: dict[str, Any], depth: int, examples: int = 2000) -> float:
    """Return the most MB that an estimate holds for a network of `depth` blocks."""
    data = made_up(examples)
    network = build_network({"name": "mlp", "widths": [64] * depth, "batchnorm": False}, data, seed=0, purpose="learned").train()
    problem, batch = problem_of(network, CrossEntropy(), LearnConfig()), Batch(data.train.images, data.train.labels, {})
    return held(RULES.build(table), problem, batch)


def held(rule: LearningRule, problem: Problem, batch: Batch) -> float:
    """Return the most MB that an estimate holds beside parameters and the batch."""
    network, rng = problem.network, torch.Generator().manual_seed(0)
    network.zero_grad(set_to_none=True)
    with _Live(there=[*network.parameters(), *network.buffers(), batch.images, batch.labels, *batch.targets.values()]) as live:
        rule.estimate(problem, batch, rule.init(problem, rng=rng), rng=rng)
    return live.most / 1e6


def main() -> None:
    """Measure, print a table, and write JSON and a plot if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to, one row per rule")
    parser.add_argument("--plot", type=Path, help="file to write the plot to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [{"name": name, "mb": {depth: megabytes(table, depth) for depth in DEPTHS}} for name, table in ROWS.items()]
    print(f"{'MB at a depth of':32}" + "".join(f"{depth:8d}" for depth in DEPTHS))
    for row in rows:
        print(f"{row['name']:32}" + "".join(f"{value:8.1f}" for value in row["mb"].values()))
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "torch": torch.__version__}, indent=2) + "\n")
    if options.plot:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.subplots()
        for row in rows:
            axes.plot(list(row["mb"]), list(row["mb"].values()), marker="o", label=row["name"])
        axes.set(xlabel="blocks", ylabel="MB held by an estimate", ylim=(0, None))
        axes.legend()
        figure.savefig(options.plot, dpi=110)


if __name__ == "__main__":
    main()
