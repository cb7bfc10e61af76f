"""What a step of each learning rule costs, in forward passes of the same network on the same batch.

    python -m benchmarks.rules_speed [--widths 64 64] [--batch 4000] [--json FILE]

One network (mlp 784-64-64-10 without BatchNorm unless said otherwise), made-up images, cross-entropy, one thread. A step is the rule's
estimate and an optimiser's step (SGD). Columns, and fields of the rows in the JSON file:

    passes          what the rule counts itself, examples passed over those of the batch: a tangent is a pass forward, a pass backward two.
    of              which passes these are
    over            the step's time over that of one forward pass with its loss
    per pass        over / passes: at most 1.2 is the goal
    products        multiplications of the step's matrix products over those of a forward pass: those of the passes, less what is known
                    (the first layer of a noisy pass), and those that are no pass: a weight's gradient from its layer's inputs, the second
                    product of a tangent (x dW + dx W), a decorrelation's update
    per product     over / products

The decorrelations' own rows are their updates and W R alone. Rows and the forward pass run in turn, `--turns` times, each of them three
times, of which the fastest counts; figures are medians of the turns' ratios of CPU time.
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
from torch.utils.flop_counter import FlopCounterMode

from learner.batches import Batch
from learner.objectives.cross_entropy import CrossEntropy
from learner.rules.base import problem_of
from learner.rules.decorrelation import Decorrelation, merged
from learner.rules.passes import layers_of, loss_of
from learner.rules.passes import run as run_network
from repsearch.config import LearnConfig
from repsearch.datasets.base import Data, Split
from repsearch.datasets.splitting import assemble
from repsearch.families import RULES
from repsearch.networks import build_network

SGD = {"name": "sgd", "momentum": 0.0, "nesterov": False}
NP, FG = {"name": "node_perturbation"}, {"name": "forward_gradient"}
TENTH = {"share": 0.1}
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "backprop": ({"name": "backprop"}, "forward, backward as 2"),
    "backprop, decorrelated": ({"name": "backprop", "decorrelate": {}}, "forward, backward as 2"),
    "backprop, decorrelated by a tenth": ({"name": "backprop", "decorrelate": TENTH}, "forward, backward as 2"),
    "feedback_alignment": ({"name": "feedback_alignment"}, "forward, backward as 2"),
    "target_propagation": ({"name": "target_propagation"}, "forward, decoders' noisy pass, backward as 2"),
    "forward_gradient": (FG, "value, tangent"),
    "forward_gradient, rademacher": ({**FG, "directions": "rademacher"}, "value, tangent"),
    "forward_gradient, K = 8": ({**FG, "draws": 8}, "value, 8 tangents"),
    "forward_gradient, activities": ({**FG, "perturb": "activities"}, "value, tangent"),
    "forward_gradient, differences": ({**FG, "derivative": "forward"}, "clean, disturbed"),
    "weight_perturbation": ({"name": "weight_perturbation"}, "clean, noisy"),
    "node_perturbation np": (NP, "clean, noisy"),
    "node_perturbation np, rademacher": ({**NP, "noise": "rademacher"}, "clean, noisy"),
    "node_perturbation np, K = 8": ({**NP, "passes": 8}, "clean, 8 noisy"),
    "node_perturbation inp": ({**NP, "variant": "inp"}, "clean, 1 noisy per layer"),
    "node_perturbation anp": ({**NP, "variant": "anp"}, "clean, noisy"),
    "node_perturbation np, decorrelated": ({**NP, "decorrelate": {}}, "clean, noisy"),
    "node_perturbation np, decorrelated by a tenth": ({**NP, "decorrelate": TENTH}, "clean, noisy"),
    "alopex": ({"name": "alopex"}, "forward"),
}
"""Rules, and what their passes are."""
UPDATES = {"decorrelation alone": Decorrelation(), "decorrelation by a tenth, alone": Decorrelation(**TENTH)}


def made_up(images: int) -> Data:
    """Return random images of ten classes."""
    rng = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        return Split(torch.randint(0, 256, (count, 1, 28, 28), generator=rng, dtype=torch.uint8), torch.arange(count) % 10)

    return assemble("made_up", [str(number) for number in range(10)], train=split(images), validation=split(10), test=split(10))


def measured(rows: dict[str, Callable[[], object]], forward: Callable[[], object], turns: int) -> dict[str, float]:
    """Return per row the median over `turns` of its time over that of `forward` beside it."""
    ratios: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(turns + 1):
        for name, row in rows.items():
            unit = min(timed(forward) for _ in range(3))
            spent = min(timed(row) for _ in range(3))
            if turn:  # the first warms up
                ratios[name].append(spent / unit)
    return {name: statistics.median(found) for name, found in ratios.items()}


def timed(call: Callable[[], object]) -> float:
    """Return the CPU time of `call`."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def multiplications(call: Callable[[], object]) -> int:
    """Return the multiplications of the matrix products and convolutions in `call`."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def run(widths: list[int], batch_size: int, turns: int, chosen: list[str]) -> list[dict[str, Any]]:
    """Return a row of figures for each rule."""
    data = made_up(batch_size)
    network = build_network({"name": "mlp", "widths": widths, "batchnorm": False}, data, seed=0, purpose="learned").train()
    problem = problem_of(network, CrossEntropy(), LearnConfig(optimiser=SGD))
    batch = Batch(data.train.images, data.train.labels, {})
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-6, fused=True)
    passes: dict[str, int] = {}

    def forward() -> None:
        with torch.no_grad():
            loss_of(problem, run_network(problem, batch.images), batch)

    def step_of(name: str) -> Callable[[], object]:
        if name in UPDATES:
            return update_of(UPDATES[name])
        rule, rng = RULES.build(ROWS[name][0]), torch.Generator().manual_seed(0)
        state = [rule.init(problem, rng=rng)]

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            estimate, state[0] = rule.estimate(problem, batch, state[0], rng=rng)
            optimiser.step()
            passes[name] = (int(estimate.forward) + 2 * int(estimate.backward)) // batch_size

        return step

    def update_of(rule: Decorrelation) -> Callable[[], object]:
        layers = layers_of(problem)
        inputs = [torch.randn(batch_size, layer.module.weight.shape[1]) for layer in layers]
        state = [rule.init(layers)]

        @torch.no_grad()
        def update() -> None:
            for layer in layers:
                merged(layer, state[0])
            state[0] = rule.updated(layers, inputs, state[0])

        return update

    steps = {name: step_of(name) for name in chosen}
    once = multiplications(forward)
    products = {name: multiplications(step) / once for name, step in steps.items()}
    rows = []
    for name, over in measured(steps, forward, turns).items():
        row = {"name": name, "passes": passes.get(name, 0), "of": ROWS[name][1] if name in ROWS else "none"}
        per_pass = over / passes[name] if name in passes else None
        rows.append({**row, "over": over, "per_pass": per_pass, "products": products[name], "per_product": over / products[name]})
    return rows


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to, one row per rule")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 64])
    parser.add_argument("--batch", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--rules", nargs="+", choices=[*ROWS, *UPDATES], default=[*ROWS, *UPDATES])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = run(options.widths, options.batch, options.turns, options.rules)
    print(f"{'':46} {'passes':>6} {'over':>6} {'per pass':>8} {'products':>8} {'per product':>11}   of")
    for row in rows:
        passes, each = (row["passes"], f"{row['per_pass']:.2f}") if row["passes"] else ("", "")
        print(f"{row['name']:46} {passes:>6} {row['over']:6.2f} {each:>8} {row['products']:8.2f} {row['per_product']:11.2f}   {row['of']}")
    single, eight = ({row["name"]: row["over"] for row in rows}.get(f"node_perturbation np{more}") for more in ("", ", K = 8"))
    if single and eight:
        print(f"node_perturbation np, K = 8 over K = 1: {eight / single:.2f}")
    if options.json:
        facts = {"widths": options.widths, "batch": options.batch, "turns": options.turns, "threads": 1}
        machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        options.json.write_text(json.dumps({"rows": rows, **facts, **machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
