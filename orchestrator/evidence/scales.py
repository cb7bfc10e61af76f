"""What all rows of a table share: data, network, search budget, epochs, and the learning rates to choose from.

`cpu`: narrow networks and few epochs, minutes per row on one core. `gpu`: the configuration of Vegesna & Dahal (2025), as in
configs/paper-*.toml; it has not been run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repsearch.errors import ConfigError
from repsearch.families import nearest

Table = Mapping[str, Any]
LR, WEIGHT_DECAY, DEPTH = "learn.optimiser.lr", "learn.optimiser.weight_decay", "network.convolutions"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """base: configuration of every row, without the data's folder and number. space: what is chosen for every row.

    root: the data's folder, below that of all data. images: training images unless told otherwise. augmentation: for table 2.
    sampler: how trials draw from the space; `sobol` is even with few trials, `random` is what the tables on MNIST were made with.
    """

    dataset: str
    base: Table
    space: Table
    root: str
    images: tuple[int, ...]
    augmentation: Table
    sampler: str = "sobol"

    def table(self, *, images: int, data: Path) -> dict[str, Any]:
        """Return the configuration on `images` training images of the data below folder `data`."""
        dataset = {**self.base["dataset"], "train": images}
        if self.root:
            dataset["root"] = str(data / self.root)
        return {**self.base, "dataset": dataset, "tracking": {"enabled": False}}


_CPU_SPACE = {LR: {"low": 1e-3, "high": 2e-2, "log": True}, WEIGHT_DECAY: [0.01, 0.1], DEPTH: [2, 4, 6]}
_CIFAR_SPACE = {**_CPU_SPACE, DEPTH: [2, 4]}
"""Cross-entropy on a few thousand images gets worse with depth: 51.7 % with 4 convolutions, 50.7 % with 6."""
_GPU_SPACE = {LR: {"low": 0.25, "high": 4.0, "log": True}, WEIGHT_DECAY: [0.0, 5e-4], DEPTH: [2, 4, 6]}


def _cpu(dataset: Table, *, width: int, epochs: int) -> Table:
    return {
        "dataset": dataset,
        "network": {"name": "convnet", "width": width, "blocks": 3, "convolutions": 4},
        "search": {
            "layers": [0, 1, 2, "logits"],
            "network": {"convolutions": 2},
            "strategy": {"name": "evolution", "population": 24, "parents": 4, "explorers": 8, "refiners": 12},
        },
        "learn": {"objective": "regression", "optimiser": {"name": "adamw", "lr": 4e-3}, "epochs": epochs, "batch_size": 125},
        "rounds": {"policy": "one_shot", "count": 1},
    }


def _gpu(dataset: Table, *, depth: int, epochs: int, strength: list[float]) -> Table:
    return {
        "dataset": dataset,
        "network": {"name": "convnet", "width": 256, "blocks": 3, "convolutions": depth, "batchnorm": "batch"},
        "search": {
            "layers": [0, 1, 2, "logits"],
            "network": {"convolutions": 2, "batchnorm": "running"},
            "calibration_examples": 2000,
            "micro_batch": 16,
            "memory_mb": 32768,
            "strategy": {
                "name": "evolution",
                "population": 240,
                "parents": 20,
                "explorers": 100,
                "refiners": 120,
                "generations": [300, 100, 100, 10],
                "strength": strength,
                "boost": [5.0, 3.0, 3.0, 1.0],
                "blur_passes": [5, 1, 1, 0],
                "noise_rows": 262144,
            },
        },
        "learn": {
            "objective": {"name": "regression", "head_weight": 0.03},
            "keep": "best",
            "optimiser": {"name": "sgd", "lr": 1.0, "momentum": 0.85, "nesterov": True},
            "epochs": epochs,
            "batch_size": 2000,
            "fixed_batches": True,
        },
        "rounds": {"policy": "one_shot", "count": 1},
        "searcher": {"device": "cuda:0", "shard_examples": 1024},
        "learner": {"device": "cuda:0"},
    }


_MNIST = {"name": "mnist", "validation": 1000}
_CIFAR10 = {"name": "image_folder", "size": 32, "channels": 3, "validation": 1000, "test": 5000}
_SHIFTS, _MIRRORS = {"learn.pad_crop": 2}, {"learn.pad_crop": 2, "learn.flip": True}

SCALES: dict[str, dict[str, Scale]] = {
    "cpu": {
        "mnist": Scale(
            dataset="mnist",
            base=_cpu(_MNIST, width=16, epochs=12),
            space=_CPU_SPACE,
            root=".",
            images=(3000, 10000),
            augmentation=_SHIFTS,
            sampler="random",
        ),
        "cifar10": Scale(
            dataset="cifar10",
            base=_cpu(_CIFAR10, width=24, epochs=15),
            space=_CIFAR_SPACE,
            root="cifar10",
            images=(4000, 10000),
            augmentation=_MIRRORS,
        ),
    },
    "gpu": {
        "mnist": Scale(
            dataset="mnist",
            base=_gpu({"name": "mnist", "validation": 4000}, depth=4, epochs=1000, strength=[0.1, 0.1, 0.1, 0.1]),
            space=_GPU_SPACE,
            root=".",
            images=(56000,),
            augmentation=_SHIFTS,
        ),
        "cifar10": Scale(
            dataset="cifar10",
            base=_gpu(
                {"name": "image_folder", "size": 32, "channels": 3, "validation": 4000}, depth=6, epochs=90, strength=[0.3, 0.2, 0.1, 0.1]
            ),
            space=_GPU_SPACE,
            root="cifar10",
            images=(46000,),
            augmentation=_MIRRORS,
        ),
    },
}


def find_scale(scale: str, dataset: str) -> Scale:
    """Return the scale of a dataset; raises `ConfigError` naming those there are."""
    if scale not in SCALES:
        raise ConfigError(f"--scale {scale!r}{nearest(scale, list(SCALES))}: give {' or '.join(SCALES)}")
    if dataset not in SCALES[scale]:
        known = ", ".join(SCALES[scale])
        raise ConfigError(f"--dataset {dataset!r}{nearest(dataset, list(SCALES[scale]))}: scale {scale} has {known}")
    return SCALES[scale][dataset]
