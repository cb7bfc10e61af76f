"""What the tests of the learner share: small data, made-up targets, a context that records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learner.fit import FitPlan
from learner.objectives.cross_entropy import CrossEntropy
from learner.optimisers.adamw import AdamW
from repsearch.config import LearnConfig, RunConfig, parse_config
from repsearch.datasets.base import Data, Split
from repsearch.datasets.splitting import assemble
from repsearch.networks import SearchableNetwork, build_network
from repsearch.rpc.v1 import jobs_pb2
from store import Reference, RepresentationStore

NETWORK = {"name": "convnet", "width": 8, "blocks": 2, "convolutions": 2}


@dataclass
class Recorder:
    """A `JobContext` that keeps what it is told; `on_check` may raise."""

    store_root: Path = Path()
    device: str = "cpu"
    threads: int = 1
    on_check: Callable[[], None] = lambda: None
    reported: list[tuple[str, int, float]] = field(default_factory=list)
    progressed: list[tuple[int, int, str]] = field(default_factory=list)

    def progress(self, done: int, total: int, *, unit: str, text: str = "", search: jobs_pb2.SearchState | None = None) -> None:
        self.progressed.append((done, total, unit))

    def points(self, points: Sequence[tuple[str, int, float]]) -> None:
        self.reported.extend(points)

    def check(self) -> None:
        self.on_check()


def tiny_data(train: int = 48, rest: int = 20) -> Data:
    """Return three classes of 8x8 images: noise, brighter in a part of its own for each class."""
    rng = torch.Generator().manual_seed(7)

    def split(count: int) -> Split:
        labels = torch.arange(count) % 3
        images = torch.randint(0, 100, (count, 1, 8, 8), generator=rng)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[:, 2 * label : 2 * label + 3] += 100
        return Split(images.to(torch.uint8), labels)

    return assemble("tiny", ["a", "b", "c"], train=split(train), validation=split(rest), test=split(rest))


def network_for(data: Data, **fields: Any) -> SearchableNetwork:
    """Return a small learned network for `data`."""
    return build_network({**NETWORK, **fields}, data, seed=0, purpose="learned")


def plan_for(*, epochs: int = 3, objective: Any = None, optimiser: Any = None, **learn: Any) -> FitPlan:
    """Return a plan of cross-entropy and AdamW in batches of 16 unless told otherwise."""
    section = LearnConfig(**{"batch_size": 16, **learn})
    return FitPlan(objective or CrossEntropy(), optimiser or AdamW(), section, epochs, seed=3, round=1)


def made_up_targets(network: SearchableNetwork, data: Data) -> dict[str, np.ndarray]:
    """Return normalised float16 targets of every layer, fixed per class plus noise."""
    rng = np.random.default_rng(5)
    labels = data.train.labels.numpy()
    targets = {}
    for layer, shape in enumerate([*network.block_shapes, (network.classes,)]):
        values = rng.normal(size=(network.classes, *shape))[labels] + 0.3 * rng.normal(size=(len(labels), *shape))
        axes = tuple(range(1, values.ndim))
        values = (values - values.mean(axes, keepdims=True)) / values.std(axes, keepdims=True)
        targets["logits" if layer == network.logits_layer else f"block{layer}"] = values.astype(np.float16)
    return targets


def write_shards(
    store: RepresentationStore, targets: Mapping[str, np.ndarray], data: Data, bounds: Sequence[tuple[int, int]], **attributes: Any
) -> list[Reference]:
    """Write one shard per (first, end) of `bounds`, as a searcher does, and return their references."""
    references = []
    for shard, (first, end) in enumerate(bounds):
        facts = {"kind": "search", "first": first, "count": end - first, "dataset_digest": data.digest, **attributes}
        arrays = {name: values[first:end] for name, values in targets.items()}
        references.append(store.write(f"rounds/00001/search/{shard:05d}-a1", arrays, attributes=facts))
    return references


def digits_config(**sections: Mapping[str, Any]) -> RunConfig:
    """Return a configuration on few digits with a small network."""
    table: dict[str, Any] = {
        "dataset": {"name": "digits", "train": 200, "validation": 50, "test": 100},
        "network": NETWORK,
        "search": {"layers": [0, 1, "logits"], "calibration_examples": 100},
        "learn": {"batch_size": 50, "epochs": 4},
    }
    for name, section in sections.items():
        table[name] = {**table.get(name, {}), **section}
    return parse_config(table)


def request_for(config: RunConfig, **fields: Any) -> jobs_pb2.StartRequest:
    """Return a request of run `run` in folder `run` with `config`."""
    return jobs_pb2.StartRequest(request_id="request", run_id="run", term=2, run_path="run", config_json=config.model_dump_json(), **fields)
