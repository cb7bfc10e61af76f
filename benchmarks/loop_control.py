"""Control of the closed loop: from round 1 on, learn the network's own representations instead of searched ones.

    python benchmarks/loop_control.py RUN... [--json FILE]

Takes the network that each closed-loop RUN learned in round 0 and goes on for as many rounds, with the run's own learning settings. Where
this rises as the run does, the rise comes from learning again, not from search.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.runs import mean_and_spread, write_json
from learner.batches import TrainingSet
from learner.checkpoints import NoCheckpoints
from learner.evaluation import evaluate
from learner.fit import FitPlan, fit
from orchestrator.rounds import load_reports
from repsearch.config import RunConfig
from repsearch.datasets import load_data
from repsearch.datasets.base import Data
from repsearch.families import OBJECTIVES, OPTIMISERS
from repsearch.networks import SearchableNetwork, build_network, layer_name, layer_number, load_arrays
from store import Reference, open_store
from store.layout import RUN_DOCUMENT
from store.parameters import read_parameters


class Silent:
    """A reporter that takes no note and never stops the fit."""

    def progress(self, done: int, total: int, *, unit: str, text: str = "") -> None:
        """Take no note."""

    def points(self, points: Sequence[tuple[str, int, float]]) -> None:
        """Take no note."""

    def check(self) -> None:
        """Never stop."""


def main() -> None:
    """Print one line per run: its accuracies by round, and the control's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="finished closed-loop runs")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for folder in options.runs:
        row = control(folder)
        rows.append(row)
        print(f"{folder.name:28} searched {text(row['searched'])}   own representation {text(row['own'])}", flush=True)
    for number in range(len(rows[0]["searched"])):
        searched, own = (mean_and_spread([row[kind][number] for row in rows]) for kind in ("searched", "own"))
        print(f"round {number}: searched {searched} %, own representation {own} % over {len(rows)} runs")
    write_json(options.json, rows)


def control(folder: Path) -> dict[str, list[float]]:
    """Return test accuracy by round of the run in `folder`, and of its control."""
    store = open_store(folder)
    config = RunConfig.model_validate(store.read_document(RUN_DOCUMENT)["config"])
    data = load_data(config.dataset, seed=config.run.seed)
    reports = load_reports(store)
    network = build_network(config.network, data, seed=config.run.seed, purpose="learned")
    learned = reports[0].learned
    assert learned is not None
    load_arrays(network, read_parameters(store, Reference(learned["path"], learned["digest"])))
    own = [reports[0].metrics["test/accuracy"]]
    for number in range(1, len(reports)):
        network = learn_own(config, data, network, number)
        own.append(evaluate(network, data.test).accuracy)
    return {"searched": [report.metrics["test/accuracy"] for report in reports], "own": own}


def learn_own(config: RunConfig, data: Data, network: SearchableNetwork, number: int) -> SearchableNetwork:
    """Return a network learned from initial parameters on the representations of `network`, as round `number` would."""
    with torch.no_grad():
        parts = [network.representations(images) for images in data.train.images.split(500)]
    blocks = network.logits_layer
    targets = {
        layer_name(layer, blocks): torch.cat([part[layer_number(layer, blocks)] for part in parts]).half() for layer in config.search.layers
    }
    fresh = build_network(config.network, data, seed=config.run.seed, purpose="learned")
    objective, optimiser = OBJECTIVES.build(config.learn.objective), OPTIMISERS.build(config.learn.optimiser)
    plan = FitPlan(objective, optimiser, config.learn, config.learn.epochs, config.run.seed, number)
    fit(fresh, TrainingSet.on("cpu", data.train, targets), data.validation, plan, NoCheckpoints(), Silent())
    return fresh


def text(accuracies: Sequence[float]) -> str:
    """Return percentages with two decimals."""
    return "  ".join(f"{100 * value:.2f}" for value in accuracies)


if __name__ == "__main__":
    main()
