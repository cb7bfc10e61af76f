"""The learning rate and the batch order, as pure functions of step and epoch: a resumed fit needs no state of either."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repsearch.config import LearnConfig
from repsearch.seeding import generator


def rate_factor(learn: LearnConfig, step: int, steps: int) -> float:
    """Return the share of the peak learning rate at `step` (from 0) of a round of `steps`.

    `one_cycle` rises linearly over the first `learn.warmup` of the steps, is 1 at the last of them, then falls as a cosine; the last
    step still moves. `cosine` begins the fall at the first step.
    """
    if learn.schedule == "constant":
        return 1.0
    if learn.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / steps))
    rise = max(1, round(learn.warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step + 1 - rise) / (steps - rise + 1)))


def steps_per_epoch(learn: LearnConfig, examples: int) -> int:
    """Return the number of batches in an epoch: the last, smaller one counts only if it is the only one."""
    return max(1, examples // learn.batch_size)


def epoch_batches(learn: LearnConfig, examples: int, *, seed: int, round: int, epoch: int) -> list[Tensor]:
    """Return the example indices (int64) of each batch of `epoch` (from 1), in order.

    With `learn.fixed_batches` the batches are those of one permutation for the whole round (which leaves the same remainder out in
    every epoch) and only their order changes.
    """
    steps = steps_per_epoch(learn, examples)
    order = generator(seed, "learn", round, epoch)
    if not learn.fixed_batches:
        return _batches(torch.randperm(examples, generator=order), learn.batch_size, steps)
    composition = torch.randperm(examples, generator=generator(seed, "learn", round, "composition"))
    batches = _batches(composition, learn.batch_size, steps)
    return [batches[index] for index in torch.randperm(steps, generator=order).tolist()]


def _batches(permutation: Tensor, size: int, steps: int) -> list[Tensor]:
    return list(torch.split(permutation, size)[:steps])
