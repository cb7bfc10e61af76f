"""What an epoch of learning costs: regression beside cross-entropy and beside a plain PyTorch loop, with the share of waiting for data.

    python benchmarks/learning_speed.py [--json FILE]

One network (convnet, 28x28 grey images, 3 blocks), made-up images and float16 targets, AdamW, one thread. Rows run in turn, one epoch each,
`--turns` times, each from the same initial parameters; figures are medians over the turns, ratios the medians of the turns' ratios.
`regression` and `cross_entropy` are the learner's own epoch as a job runs it (with 10 validation images, so that an epoch is learning);
`plain_loop` is the shortest loop over the same arrays in memory for the same loss, without records or checks. `streamed` is regression with
`learn.memory_mb` set to half the targets, read from a store on disk. Waiting is the time without a batch: forming one counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from learner.batches import Batch, Batches, TrainingSet
from learner.checkpoints import NoCheckpoints
from learner.fit import FitPlan, fit
from learner.objectives.base import LearningObjective
from learner.objectives.cross_entropy import CrossEntropy
from learner.objectives.regression import Regression
from learner.optimisers.adamw import AdamW
from learner.streaming import StreamedSet, open_batches
from learner.targets import find_targets
from repsearch.config import LearnConfig
from repsearch.datasets.base import Data, Split
from repsearch.datasets.splitting import assemble
from repsearch.networks import SearchableNetwork, build_network
from store import ZarrStore

BATCH = 50
NAMES = ("block0", "block1", "block2", "logits")


class Silent:
    """A reporter that nobody reads."""

    def progress(self, done: int, total: int, *, unit: str, text: str = "") -> None:
        """Do nothing."""

    def points(self, points: Any) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Go on."""


class Timed:
    """A source of batches that adds up the time until each batch is there."""

    def __init__(self, source: Batches) -> None:
        self._source = source
        self.waited = 0.0

    def __len__(self) -> int:
        return len(self._source)

    def epoch(self, learn: LearnConfig, *, seed: int, round: int, epoch: int) -> Iterator[Batch]:
        """Yield the source's batches."""
        batches = self._source.epoch(learn, seed=seed, round=round, epoch=epoch)
        while True:
            begun = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - begun
            if batch is None:
                return
            yield batch


def made_up(images: int) -> Data:
    """Return random images of ten classes."""
    rng = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        return Split(torch.randint(0, 256, (count, 1, 28, 28), generator=rng, dtype=torch.uint8), torch.arange(count) % 10)

    return assemble("made_up", [str(number) for number in range(10)], train=split(images), validation=split(10), test=split(10))


def targets_for(network: SearchableNetwork, images: int) -> dict[str, torch.Tensor]:
    """Return random float16 targets of every layer."""
    rng = torch.Generator().manual_seed(1)
    shapes = [*network.block_shapes, (network.classes,)]
    return {name: torch.randn((images, *shape), generator=rng).half() for name, shape in zip(NAMES, shapes, strict=True)}


def epoch_of_fit(network: SearchableNetwork, source: Batches, data: Data, objective: LearningObjective, learn: LearnConfig) -> None:
    """Run one epoch of the learner."""
    fit(network, source, data.validation, FitPlan(objective, AdamW(), learn, 1, seed=0, round=0), NoCheckpoints(), Silent())


def epoch_of_plain_loop(network: SearchableNetwork, data: Data, targets: dict[str, torch.Tensor]) -> float:
    """Run one epoch of regression as one would write it by hand; return the time spent on forming batches."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    network.train()
    waited = 0.0
    for index_B in torch.randperm(len(data.train)).split(BATCH):
        begun = time.perf_counter()
        images, chosen = data.train.images[index_B], [targets[name][index_B] for name in NAMES]
        waited += time.perf_counter() - begun
        below = network.stem(network.prepare(images))
        errors = []
        for block, target in zip(network.blocks, chosen, strict=False):
            below = block(below)
            errors.append(F.mse_loss(below, target.float()))
        logits = network.head(below.detach())
        head = F.kl_div(F.log_softmax(logits, 1), F.log_softmax(chosen[-1].float(), 1), reduction="batchmean", log_target=True)
        loss = torch.stack(errors).mean() + 0.03 * head
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        loss.item()
    return waited


@contextmanager
def streamed(
    data: Data, network: SearchableNetwork, targets: dict[str, torch.Tensor], folder: Path
) -> Iterator[tuple[Batches, LearnConfig]]:
    """Give the source for targets on disk under a limit of half of them."""
    store, facts = ZarrStore(folder, chunk_mb=0.5), {"kind": "search", "dataset_digest": data.digest}
    size = len(data.train) // 4
    shards = [
        store.write(
            f"shard{first}",
            {name: values[first : first + size].numpy() for name, values in targets.items()},
            attributes={**facts, "first": first, "count": min(size, len(data.train) - first)},
        )
        for first in range(0, len(data.train), size)
    ]
    found = find_targets(store, shards, NAMES, network, data)
    learn = LearnConfig(batch_size=BATCH, memory_mb=sum(values.nbytes for values in targets.values()) / 2e6)
    with open_batches("cpu", data.train, found, learn) as source:
        assert isinstance(source, StreamedSet)
        yield source, learn


def measure(row: Callable[[], float]) -> tuple[float, float, float]:
    """Return wall time, CPU time of the process, and the time waited, as `row` says, of one epoch."""
    cpu, begun = time.process_time(), time.perf_counter()
    waited = row()
    return time.perf_counter() - begun, time.process_time() - cpu, waited


def run(images: int, width: int, turns: int) -> dict[str, list[tuple[float, float, float]]]:
    """Return what `measure` found for each row in each turn."""
    data = made_up(images)
    table = {"name": "convnet", "width": width, "convolutions": 4}

    def network() -> SearchableNetwork:
        return build_network(table, data, seed=0, purpose="learned")

    targets, learn = targets_for(network(), images), LearnConfig(batch_size=BATCH)

    def learned(objective: LearningObjective, source: Batches, learn: LearnConfig) -> float:
        timed = Timed(source)
        epoch_of_fit(networks.pop(), timed, data, objective, learn)
        return timed.waited

    with tempfile.TemporaryDirectory() as folder, streamed(data, network(), targets, Path(folder)) as (source, limited):
        whole, labels = TrainingSet.on("cpu", data.train, targets), TrainingSet.on("cpu", data.train, {})
        rows: dict[str, Callable[[], float]] = {
            "regression": lambda: learned(Regression(), whole, learn),
            "cross_entropy": lambda: learned(CrossEntropy(), labels, learn),
            "plain_loop": lambda: epoch_of_plain_loop(networks.pop(), data, targets),
            "streamed": lambda: learned(Regression(), source, limited),
        }
        measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in rows}
        networks: list[SearchableNetwork] = []
        for turn in range(turns + 1):
            for name, row in rows.items():
                networks.append(network())
                result = measure(row)
                if turn:  # the first warms up
                    measured[name].append(result)
    return measured


def _row(name: str, results: list[tuple[float, float, float]]) -> dict[str, Any]:
    return {
        "name": name,
        "epoch_s": statistics.median(wall for wall, _, _ in results),
        "cpu_s": statistics.median(cpu for _, cpu, _ in results),
        "data_wait_share": statistics.median(waited / wall for wall, _, waited in results),
    }


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--turns", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = run(options.images, options.width, options.turns)
    rows = [_row(name, results) for name, results in measured.items()]
    print(f"{'':14} {'epoch s':>8} {'CPU s':>8} {'waiting':>8}")
    for row in rows:
        print(f"{row['name']:14} {row['epoch_s']:8.3f} {row['cpu_s']:8.3f} {row['data_wait_share']:8.1%}")
    ratios = {}
    for other in ("cross_entropy", "plain_loop"):
        pairs = list(zip(measured["regression"], measured[other], strict=True))
        wall, cpu = (statistics.median(own[column] / theirs[column] for own, theirs in pairs) for column in (0, 1))
        ratios[f"regression / {other}"] = {"wall": wall, "cpu": cpu}
        print(f"regression / {other}: {wall:.3f} (CPU time {cpu:.3f})")
    if options.json:
        facts = {"images": options.images, "width": options.width, "batch": BATCH, "turns": options.turns, "threads": 1}
        machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        options.json.write_text(json.dumps({"rows": rows, "ratios": ratios, **facts, **machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
