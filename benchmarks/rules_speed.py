"""What a step of each learning rule costs, in forward passes of the same network on the same batch.

    python -m benchmarks.rules_speed [--json FILE]

One network (mlp 784-64-64-10 without BatchNorm), made-up images, cross-entropy, one thread. A step is the rule's estimate and an
optimiser's step (SGD). `passes` is what the rule counts itself, examples passed over those of the batch: a tangent counts as a pass
forward, and a pass backward as two. `over` is the step's time over that of one forward pass with its loss, and `per pass` is `over` over
`passes`. Rows and the forward pass run in turn, `--turns` times; figures are medians of the turns' ratios of CPU time.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from learner.batches import Batch
from learner.objectives.cross_entropy import CrossEntropy
from learner.rules.base import problem_of
from learner.rules.passes import loss_of
from learner.rules.passes import run as run_network
from repsearch.config import LearnConfig
from repsearch.datasets.base import Data, Split
from repsearch.datasets.splitting import assemble
from repsearch.families import RULES
from repsearch.networks import build_network

SGD = {"name": "sgd", "momentum": 0.0, "nesterov": False}
ROWS: dict[str, dict[str, Any]] = {
    "backprop": {"name": "backprop"},
    "backprop, decorrelated": {"name": "backprop", "decorrelate": {}},
    "feedback_alignment": {"name": "feedback_alignment"},
    "target_propagation": {"name": "target_propagation"},
    "forward_gradient": {"name": "forward_gradient"},
    "forward_gradient, K = 8": {"name": "forward_gradient", "draws": 8},
    "forward_gradient, activities": {"name": "forward_gradient", "perturb": "activities"},
    "forward_gradient, differences": {"name": "forward_gradient", "derivative": "forward"},
    "weight_perturbation": {"name": "weight_perturbation"},
    "node_perturbation np": {"name": "node_perturbation"},
    "node_perturbation np, K = 8": {"name": "node_perturbation", "passes": 8},
    "node_perturbation inp": {"name": "node_perturbation", "variant": "inp"},
    "node_perturbation anp": {"name": "node_perturbation", "variant": "anp"},
    "node_perturbation np, decorrelated": {"name": "node_perturbation", "decorrelate": {}},
    "alopex": {"name": "alopex"},
}


def made_up(images: int) -> Data:
    """Return random images of ten classes."""
    rng = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        return Split(torch.randint(0, 256, (count, 1, 28, 28), generator=rng, dtype=torch.uint8), torch.arange(count) % 10)

    return assemble("made_up", [str(number) for number in range(10)], train=split(images), validation=split(10), test=split(10))


def measured(rows: dict[str, Callable[[], int]], forward: Callable[[], None], turns: int) -> dict[str, tuple[float, int]]:
    """Return per row the median over `turns` of its time over that of `forward` beside it, and the passes that it counts."""
    ratios: dict[str, list[float]] = {name: [] for name in rows}
    passes: dict[str, int] = {}
    for turn in range(turns + 1):
        for name, row in rows.items():
            unit = min(timed(forward) for _ in range(3))
            begun = time.process_time()
            passes[name] = row()
            spent = time.process_time() - begun
            if turn:  # the first warms up
                ratios[name].append(spent / unit)
    return {name: (statistics.median(found), passes[name]) for name, found in ratios.items()}


def timed(call: Callable[[], object]) -> float:
    """Return the CPU time of `call`."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def run(widths: list[int], batch_size: int, turns: int, chosen: list[str]) -> list[dict[str, Any]]:
    """Return a row of figures for each rule."""
    data = made_up(batch_size)
    network = build_network({"name": "mlp", "widths": widths, "batchnorm": False}, data, seed=0, purpose="learned").train()
    problem = problem_of(network, CrossEntropy(), LearnConfig(optimiser=SGD))
    batch = Batch(data.train.images, data.train.labels, {})
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-6, fused=True)

    def forward() -> None:
        with torch.no_grad():
            loss_of(problem, run_network(problem, batch.images), batch)

    def step_of(table: dict[str, Any]) -> Callable[[], int]:
        rule, rng = RULES.build(table), torch.Generator().manual_seed(0)
        state = [rule.init(problem, rng=rng)]

        def step() -> int:
            optimiser.zero_grad(set_to_none=True)
            estimate, state[0] = rule.estimate(problem, batch, state[0], rng=rng)
            optimiser.step()
            return (int(estimate.forward) + 2 * int(estimate.backward)) // batch_size

        return step

    found = measured({name: step_of(ROWS[name]) for name in chosen}, forward, turns)
    return [{"name": name, "passes": passes, "over": over, "per_pass": over / passes} for name, (over, passes) in found.items()]


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to, one row per rule")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 64])
    parser.add_argument("--batch", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--rules", nargs="+", choices=list(ROWS), default=list(ROWS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = run(options.widths, options.batch, options.turns, options.rules)
    print(f"{'':36} {'passes':>6} {'over':>6} {'per pass':>8}")
    for row in rows:
        print(f"{row['name']:36} {row['passes']:6d} {row['over']:6.2f} {row['per_pass']:8.2f}")
    single, eight = ({row["name"]: row["over"] for row in rows}.get(f"node_perturbation np{more}") for more in ("", ", K = 8"))
    if single and eight:
        print(f"node_perturbation np, K = 8 over K = 1: {eight / single:.2f}")
    if options.json:
        facts = {"widths": options.widths, "batch": options.batch, "turns": options.turns, "threads": 1}
        machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        options.json.write_text(json.dumps({"rows": rows, **facts, **machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
