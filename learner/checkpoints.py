"""The learner's state after each epoch, and now and then within one, in the store: what a fit that was killed goes on from.

A round's attempts share one folder of checkpoints, each named by attempt and epoch. A checkpoint belongs to a fit if its `learn_digest`
(of everything that determines the result) is the fit's; which attempt wrote it does not matter, because equal digests give equal bits.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from repsearch.errors import StoreError
from repsearch.failpoints import reach
from repsearch.networks import load_arrays, to_arrays
from store import RepresentationStore
from store.layout import checkpoint_path, parse_step
from store.parameters import read_parameters, write_parameters
from store.verification import verify_group

NETWORK, OPTIMISER, RULE, BEST = "network/", "optimiser/", "rule/", "best/"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Partial:
    """How far an epoch is: steps done, the sums over them of what is averaged, examples seen, those that were right, and the cost."""

    step: int = 0
    sums: Mapping[str, float] = field(default_factory=dict)
    right: int = 0
    seen: int = 0
    forward: int = 0
    backward: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """State after `epoch` epochs and, of the next one, `partial`.

    arrays: parameters, buffers, optimiser state and the learning rule's by name, and the best epoch's network if it is to be kept and is
        another.
    history: one record per epoch. examples: forward/backward examples of whole epochs. seconds: time learning so far.
    """

    epoch: int
    arrays: Mapping[str, np.ndarray]
    history: list[dict[str, float]]
    examples: int
    seconds: float
    partial: Partial | None = None


class Checkpoints(Protocol):
    """Where a fit keeps its checkpoints."""

    def newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint of this fit, or None."""
        ...

    def save(self, checkpoint: Checkpoint) -> None:
        """Write `checkpoint`, then remove those it makes superfluous."""
        ...


class StoreCheckpoints:
    """Checkpoints of one attempt at a round, in the store.

    folder: the round's checkpoints, of all attempts. digest: of everything that determines the result. keep: how many stay.
    attributes: further facts to record with each.
    """

    def __init__(
        self,
        store: RepresentationStore,
        folder: str,
        *,
        round: int,
        attempt: int,
        digest: str,
        keep: int,
        attributes: Mapping[str, Any],
    ) -> None:
        self._store = store
        self._folder = folder
        self._round = round
        self._attempt = attempt
        self._digest = digest
        self._keep = keep
        self._attributes = dict(attributes)
        self._good: list[str] = []

    def newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint of any attempt at this fit; damaged ones and those of other digests are passed over."""
        for *_, name in sorted(self._names(), reverse=True):
            path = f"{self._folder}/{name}"
            try:
                checkpoint = self._read(path)
            except StoreError as error:
                log.warning("checkpoint %s is passed over: %s", path, error)
                continue
            if checkpoint is not None:
                self._good = [name]
                return checkpoint
        return None

    def save(self, checkpoint: Checkpoint) -> None:
        """Write `checkpoint`, then remove all but the newest `keep` whole ones; checkpoints of later attempts are left alone.

        One that cannot be read back counts for nothing, and removes nothing.
        """
        reach("learner.checkpoint.before")
        step = checkpoint.partial.step if checkpoint.partial is not None else 0
        name = PurePosixPath(checkpoint_path(self._round, self._attempt, checkpoint.epoch, step)).name
        path = f"{self._folder}/{name}"
        if name in self._store.committed(self._folder):
            self._store.delete(path)
        attributes = {
            **self._attributes,
            "kind": "checkpoint",
            "learn_digest": self._digest,
            "epoch": checkpoint.epoch,
            "epochs": checkpoint.history,
            "examples": checkpoint.examples,
            "seconds": checkpoint.seconds,
            **({"partial": asdict(checkpoint.partial)} if checkpoint.partial is not None else {}),
        }
        try:
            verify_group(self._store, write_parameters(self._store, path, checkpoint.arrays, attributes))
        except StoreError as error:
            log.warning("checkpoint %s is damaged as soon as it is written, and not counted: %s", path, error)
            return
        reach("learner.checkpoint.after")
        self._good = [*(good for good in self._good if good != name), name][-self._keep :]
        self._prune()
        reach("learner.checkpoint.pruned")

    def _read(self, path: str) -> Checkpoint | None:
        attributes = self._store.manifest(path).attributes
        if attributes.get("kind") != "checkpoint" or attributes.get("learn_digest") != self._digest:
            return None
        arrays = read_parameters(self._store, path)
        partial = Partial(**attributes["partial"]) if "partial" in attributes else None
        return Checkpoint(attributes["epoch"], arrays, list(attributes["epochs"]), attributes["examples"], attributes["seconds"], partial)

    def _prune(self) -> None:
        # A fenced learner may still be writing here: it must not remove what its successor goes on from.
        for _, _, attempt, name in self._names():
            if name not in self._good and attempt <= self._attempt:
                self._store.delete(f"{self._folder}/{name}")

    def _names(self) -> list[tuple[int, int, int, str]]:
        """Epoch, step, attempt and name of every committed checkpoint."""
        names = self._store.committed(self._folder)
        return [(epoch, step, attempt, name) for name in names for attempt, epoch, step in [parse_step(name)]]


class NoCheckpoints:
    """Keeps nothing: for fits too short to resume."""

    def newest(self) -> Checkpoint | None:
        """Return None."""
        return None

    def save(self, checkpoint: Checkpoint) -> None:
        """Drop `checkpoint`."""


def state_arrays(
    network: nn.Module, optimiser: torch.optim.Optimizer, rule: Mapping[str, torch.Tensor] | None = None
) -> dict[str, np.ndarray]:
    """Return copies of parameters, buffers, optimiser state and the state of the learning rule by name."""
    arrays = {f"{NETWORK}{name}": array for name, array in to_arrays(network).items()}
    for index, state in optimiser.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                arrays[f"{OPTIMISER}{index}/{key}"] = value.detach().cpu().numpy().copy()
    for name, tensor in (rule or {}).items():
        arrays[f"{RULE}{name}"] = tensor.detach().cpu().numpy().copy()
    return arrays


def rule_state(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the state of the learning rule from what `state_arrays` returned."""
    return {name.removeprefix(RULE): torch.from_numpy(np.array(array)) for name, array in arrays.items() if name.startswith(RULE)}


def load_state(network: nn.Module, optimiser: torch.optim.Optimizer, arrays: Mapping[str, np.ndarray]) -> None:
    """Set parameters, buffers and optimiser state from what `state_arrays` returned; raises `StoreError` if the network does not fit."""
    load_arrays(network, {name.removeprefix(NETWORK): array for name, array in arrays.items() if name.startswith(NETWORK)})
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, array in arrays.items():
        if name.startswith(OPTIMISER):
            index, _, key = name.removeprefix(OPTIMISER).partition("/")
            state.setdefault(int(index), {})[key] = _laid_out_as(parameters[int(index)], torch.from_numpy(np.array(array)))
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def _laid_out_as(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return `value` in the memory format of its parameter: fused steps walk through both in the order of memory."""
    return value if value.shape != parameter.shape else torch.empty_like(parameter, device="cpu", dtype=value.dtype).copy_(value)


def best_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the parameters and buffers of the best epoch: those of a checkpoint's network unless it holds others."""
    prefix = BEST if any(name.startswith(BEST) for name in arrays) else NETWORK
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
