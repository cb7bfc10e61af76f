"""The network of every so many epochs, kept in the store for analysis: parameters and buffers alone, never read by a fit.

Attempts share a round's folder, as checkpoints do: the snapshots of a fit are those of its `learn_digest`, whichever attempt wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from learner.checkpoints import NETWORK, Checkpoint, Checkpoints
from learner.keeping import plateaued
from learner.objectives.classifiers import without_classifiers
from repsearch.failpoints import reach
from store import RepresentationStore, layout, reference_at
from store.parameters import write_parameters


@dataclass(frozen=True)
class Snapshots:
    """Snapshots of the fit of `epochs` epochs whose result is to be the group `learned`.

    every: epochs between two; 0: none are written. patience: `learn.patience`, by which the fit may end before `epochs`.
    digest: of everything that determines the result. attributes: further facts to record with each.
    """

    store: RepresentationStore
    learned: str
    attempt: int
    digest: str
    every: int
    epochs: int
    attributes: Mapping[str, Any]
    patience: int | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the network of `checkpoint` if its epoch is one to keep: a multiple of `every`, or the last."""
        if checkpoint.partial is not None:
            return
        epoch = checkpoint.epoch
        last = epoch == self.epochs or plateaued(checkpoint.history, self.patience)
        if self.every == 0 or (epoch % self.every and not last):
            return
        whole = {name.removeprefix(NETWORK): array for name, array in checkpoint.arrays.items() if name.startswith(NETWORK)}
        arrays = without_classifiers(whole)
        path = layout.snapshot_path(self.learned, self.attempt, epoch)
        # This attempt may have come so far before, and died before its checkpoint.
        reach("learner.snapshot.before")
        self.store.delete(path)
        write_parameters(self.store, path, arrays, {**self.attributes, "kind": "snapshot", "learn_digest": self.digest, "epoch": epoch})
        reach("learner.snapshot.after")

    def listed(self) -> list[dict[str, Any]]:
        """Return epoch, path and digest of each snapshot of this fit, by epoch; of several attempts at one, the newest."""
        folder, found = layout.snapshot_folder(self.learned), dict[int, str]()
        if self.every == 0:
            return []
        for attempt, epoch, name in sorted((*layout.parse_checkpoint_name(name), name) for name in self.store.committed(folder)):
            path = f"{folder}/{name}"
            if attempt <= self.attempt and self.store.manifest(path).attributes.get("learn_digest") == self.digest:
                found[epoch] = path
        return [{"epoch": epoch, "path": path, "digest": reference_at(self.store, path).digest} for epoch, path in sorted(found.items())]


class WithSnapshots:
    """Checkpoints of which some are kept as snapshots too."""

    def __init__(self, checkpoints: Checkpoints, snapshots: Snapshots) -> None:
        self._checkpoints = checkpoints
        self._snapshots = snapshots

    def newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint; see `Checkpoints`."""
        return self._checkpoints.newest()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the snapshot, then the checkpoint: what goes on from a checkpoint lacks no snapshot before it."""
        self._snapshots.save(checkpoint)
        self._checkpoints.save(checkpoint)
