"""How close rules come to the gradient, and what they hold: within blocks that have searched targets or classifiers of their own, and
through the whole network.

    python -m benchmarks.rules_local --data DIR [--dataset mnist|cifar10] [--examples 500] [--json FILE]

DIR as in `benchmarks.evidence`. The network and the search are those of its table `local`; targets are searched for one batch on the
network as it is, untrained and after `--epochs` epochs of backpropagation, and classifiers learn that batch for 100 steps. The rules have
8 draws. `cosine`: of an estimate with the true gradient of the same loss, mean and standard error over 10 estimates; of the blocks'
parameters, mean over blocks, and of the head's. `MB`: the most that an estimate holds beside parameters and images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.rules_memory import held
from learner.batches import Batch
from learner.objectives.base import LearningObjective
from learner.objectives.classifiers import classifiers_of, fit_classifiers
from learner.objectives.cross_entropy import CrossEntropy
from learner.objectives.local_cross_entropy import LocalCrossEntropy
from learner.objectives.regression import Regression
from learner.rules.base import LearningRule, Problem, problem_of
from orchestrator.evidence.rules import local_scale
from orchestrator.evidence.scales import find_scale
from repsearch.config import LearnConfig, parse_config
from repsearch.datasets import cached_data
from repsearch.datasets.base import Data
from repsearch.families import RULES, STRATEGIES
from repsearch.networks import SearchableNetwork, build_network
from searcher.search import SearchPlan, search_examples

ESTIMATES = 10
DRAWN = {"directions": "rademacher", "draws": 8}
RULE_TABLES: dict[str, dict[str, Any]] = {
    "backprop": {"name": "backprop"},
    "forward gradient, weights": {"name": "forward_gradient", **DRAWN},
    "forward gradient, activities": {"name": "forward_gradient", "perturb": "activities", **DRAWN},
    "node perturbation": {"name": "node_perturbation", "noise": "rademacher", "passes": 8},
}

LOSSES: dict[str, LearningObjective] = {
    "whole network": CrossEntropy(),
    "isolated blocks": Regression(isolate=True, head_weight=1.0),
    "classifiers": LocalCrossEntropy(),
    "classifiers, 16 groups": LocalCrossEntropy(groups=16),
}


def trained(network: SearchableNetwork, data: Data, epochs: int) -> None:
    """Learn cross-entropy by backpropagation."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    rng = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.train.labels), generator=rng).split(100):
            optimiser.zero_grad()
            F.cross_entropy(network(data.train.images[chosen]), data.train.labels[chosen]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()


def searched(network: SearchableNetwork, data: Data, search: dict[str, Any], examples: int) -> dict[str, Tensor]:
    """Return the targets of the first training examples."""
    layers = range(network.logits_layer + 1)
    plan = SearchPlan(
        strategy=STRATEGIES.build(search["strategy"]),
        layers=layers,
        seed=0,
        round=0,
        input_noise=0.1,
        from_network=True,
        micro_batch=100,
    )
    found = search_examples(plan, network.eval(), data.train, first=0, count=examples, device=torch.device("cpu"))
    names = [*(f"block{layer}" for layer in layers[:-1]), "logits"]
    return dict(zip(names, found.targets, strict=True))


def learned_classifiers(problem: Problem, batch: Batch, steps: int = 100) -> None:
    """Learn the blocks' classifiers, which start at 0, on the batch."""
    classifiers = [parameter for classifier in classifiers_of(problem.network) for parameter in classifier.parameters()]
    optimiser = torch.optim.Adam(classifiers, lr=1e-2)
    for _ in range(steps):
        for parameter, gradient in zip(classifiers, torch.autograd.grad(problem.loss_of(batch).total, classifiers), strict=True):
            parameter.grad = gradient
        optimiser.step()


def cosines(rule: LearningRule, problem: Problem, batch: Batch) -> dict[str, list[float]]:
    """Return the cosine of each estimate with the gradient, of the blocks (mean over them) and of the head."""
    network = problem.network
    parts = {f"blocks.{block}.": "blocks" for block in range(network.logits_layer)} | {"head.": "head"}
    names = [name for name, _ in network.named_parameters()]
    true = dict(zip(names, torch.autograd.grad(problem.loss_of(batch).total, list(network.parameters())), strict=True))
    found: dict[str, list[float]] = {"blocks": [], "head": []}
    for number in range(ESTIMATES):
        network.zero_grad(set_to_none=True)
        rule.estimate(problem, batch, {}, rng=torch.Generator().manual_seed(number))
        of: dict[str, list[float]] = {"blocks": [], "head": []}
        for start, part in parts.items():
            members = [name for name in names if name.startswith(start)]
            own = torch.cat([network.get_parameter(name).grad.flatten() for name in members])  # type: ignore[union-attr]
            exact = torch.cat([true[name].flatten() for name in members])
            of[part].append(float(F.cosine_similarity(own, exact, dim=0)))
        for part, values in of.items():
            found[part].append(sum(values) / len(values))
    return found


def run(dataset: str, data_folder: Path, images: int, examples: int, epochs: int) -> list[dict[str, Any]]:
    """Return a row per state of the network, objective and rule."""
    scale = local_scale(find_scale("cpu", dataset))
    config = parse_config(scale.table(images=images, data=data_folder.expanduser().absolute()))
    data = cached_data(config.dataset, seed=0)
    network = build_network(config.network, data, seed=0, purpose="learned")
    rows = []
    for state, more in (("untrained", 0), (f"after {epochs} epochs", epochs)):
        trained(network, data, more)
        targets = searched(network, data, scale.base["search"], examples)
        batch = Batch(data.train.images[:examples], data.train.labels[:examples], targets)
        for where, objective in LOSSES.items():
            problem = problem_of(network.train(), objective, LearnConfig())
            if objective.reading.classifiers:
                learned_classifiers(problem, batch)
            for name, table in RULE_TABLES.items():
                rule: LearningRule = RULES.build(table)
                row: dict[str, Any] = {"network": state, "loss": where, "rule": name, "mb": held(rule, problem, batch)}
                for part, values in cosines(rule, problem, batch).items():
                    spread = torch.tensor(values)
                    row[part], row[f"{part}_error"] = float(spread.mean()), float(spread.std() / len(values) ** 0.5)
                rows.append(row)
        fit_classifiers(network, wanted=False, groups=1)
    return rows


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dataset", choices=["mnist", "cifar10"], default="mnist")
    parser.add_argument("--images", type=int, default=2000, help="training images, of which --examples are the batch")
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = run(options.dataset, options.data, options.images, options.examples, options.epochs)
    print(f"{'network':16} {'loss':22} {'rule':30} {'cosine, blocks':>16} {'head':>16} {'MB':>6}")
    for row in rows:
        blocks, head = (f"{row[part]:.3f} +- {row[f'{part}_error']:.3f}" for part in ("blocks", "head"))
        print(f"{row['network']:16} {row['loss']:22} {row['rule']:30} {blocks:>16} {head:>16} {row['mb']:6.1f}")
    if options.json:
        facts = {"dataset": options.dataset, "images": options.images, "examples": options.examples, "epochs": options.epochs}
        options.json.write_text(json.dumps({"rows": rows, **facts, "torch": torch.__version__}, indent=2) + "\n")


if __name__ == "__main__":
    main()
