"""Accuracy and cross-entropy of a network on a split, the same bits whenever and wherever they are computed on one device type."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from learner.forward import MEMORY_FORMAT
from repsearch.datasets.base import Split
from repsearch.networks import SearchableNetwork

EVALUATION_BATCH = 500
"""Most examples per forward pass. Fixed, because matrix products change bits with their shape."""


@dataclass(frozen=True)
class Evaluation:
    """accuracy: share of right answers, 0..1. cross_entropy: mean over examples, in nats."""

    accuracy: float
    cross_entropy: float


@torch.no_grad()
def evaluate(network: SearchableNetwork, split: Split) -> Evaluation:
    """Return the evaluation of `network` in evaluation mode on `split`, which lies on any device; the network's mode is kept."""
    device, training = network.mean.device, network.training
    network.eval().to(memory_format=MEMORY_FORMAT)
    right, total = 0, 0.0
    for images, labels in _batches(split):
        logits, labels = network(images.to(device)), labels.to(device)
        right += int((logits.argmax(1) == labels).sum())
        total += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
    network.train(training)
    return Evaluation(right / len(split), total / len(split))


def _batches(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    # Of equal size: a network that normalises by the batch's own statistics gets no small one at the end.
    parts = math.ceil(len(split) / EVALUATION_BATCH)
    return zip(torch.tensor_split(split.images, parts), torch.tensor_split(split.labels, parts), strict=True)
