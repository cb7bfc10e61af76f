"""A network run in parts, each with a loss of its own.

A part is a stretch of the network between two stop-gradients of the objective: the whole network under cross-entropy; blocks and head under
regression, and each block by itself where blocks are isolated. The loss of a part is what its parameters learn from. A disturbed pass
enters every part with the undisturbed input, which is to a disturbance what a stop-gradient is to a gradient.
Shapes: B examples; X the axes of a representation; Y those of a part's input; S parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from learner.batches import Batch
from learner.objectives.base import Loss, Outputs, Reading, target_name
from learner.rules.base import Problem
from learner.rules.layers import Layer
from repsearch.networks import SearchableNetwork


@dataclass(frozen=True)
class Parts:
    """of_block: number of each block's part, the stem's being that of block 0. of_head: number of the head's part."""

    of_block: tuple[int, ...]
    of_head: int

    def __len__(self) -> int:
        return self.of_head + 1

    def of(self, parameter: str) -> int:
        """Return the part of a parameter or module by its name in the network."""
        first, _, rest = parameter.partition(".")
        return self.of_head if first == "head" else self.of_block[int(rest.split(".")[0]) if first == "blocks" else 0]


def parts_of(network: SearchableNetwork, reading: Reading) -> Parts:
    """Return the parts of `network` for an objective that reads it as `reading` says."""
    blocks = network.logits_layer
    of_block = tuple(range(blocks)) if reading.isolate else (0,) * blocks
    return Parts(of_block, of_block[-1] + reading.isolate_head)


def layers_of(problem: Problem) -> list[Layer]:
    """Return the layers of the network in the order in which they run: stem, blocks, head, each in the order of its modules."""
    parts = parts_of(problem.network, problem.objective.reading)
    layers: list[Layer] = []
    stretches = [(name, getattr(problem.network, name)) for name in ("stem", "blocks", "head")]
    for name, module in itertools.chain.from_iterable(stretch.named_modules(prefix=name) for name, stretch in stretches):
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            part = parts.of(name)
            layers.append(Layer(name, module, part, sum(layer.part == part for layer in layers)))
    return layers


@dataclass(frozen=True)
class Pass:
    """blocks, compared: see `Outputs`; the last alone where the objective reads no other. logits: of the head. entering: what the block, or
    the head, that begins each part but the first read. stem: output of the stem."""

    blocks: Sequence[Tensor]
    compared: Sequence[Tensor]
    logits: Tensor
    entering: Sequence[Tensor]
    stem: Tensor


def run(problem: Problem, images_BCHW: Tensor, like: Pass | None = None) -> Pass:
    """Return a pass of `images_BCHW`.

    like: the undisturbed pass, which a disturbed one enters each part as; None: parts are entered without gradient.
    """
    network, reading = problem.network, problem.objective.reading
    entering = None if like is None else like.entering
    if like is not None and not any(parameter.requires_grad for parameter in network.stem.parameters()):
        # Nothing in the stem can be disturbed.
        stem = below = like.stem
    else:
        stem = below = network.stem(network.prepare(images_BCHW))
    blocks, compared, read = list[Tensor](), list[Tensor](), list[Tensor]()
    for layer in range(network.logits_layer):
        if reading.isolate and layer:
            below = below.detach() if entering is None else entering[len(read)]
            read.append(below)
        below, output = network.run_block(layer, below, reading.output)
        if reading.last_only:
            blocks.clear()
            compared.clear()
        blocks.append(below)
        compared.append(output)
    if reading.isolate_head:
        below = below.detach() if entering is None else entering[len(read)]
        read.append(below)
    return Pass(blocks, compared, network.head(below), read, stem)


def over_draws(call: Callable[[Any], Any], drawn: Any, out_dims: Any = 0) -> Any:
    """Return `call` of every draw, the first axis of each tensor in `drawn`, all in one batch; out_dims: as in `torch.func.vmap`."""
    tensors, structure = tree_flatten(drawn)
    if len(tensors[0]) > 1:
        return torch.func.vmap(call, out_dims=out_dims)(drawn)
    # Of one draw the batch would be an axis of length 1, through all of the network.
    found = call(tree_unflatten([tensor[0] for tensor in tensors], structure))
    if isinstance(out_dims, int):
        return _lifted(found)
    return tuple(value if axis is None else _lifted(value) for value, axis in zip(found, out_dims, strict=True))


def _lifted(tree: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.unsqueeze(0), tree)


def loss_of(problem: Problem, passed: Pass, batch: Batch) -> Loss:
    """Return the objective's loss of a pass, mean over examples."""
    return _loss(problem, passed.blocks, passed.compared, passed.logits, batch.targets, batch.labels)


def part_losses(problem: Problem, loss: Loss) -> Tensor:
    """Return the loss of each part (S,), mean over examples, whose sum is the total."""
    parts = parts_of(problem.network, problem.objective.reading)
    if len(parts) == 1:
        return loss.total.unsqueeze(0)
    blocks = {target_name(block): part for block, part in enumerate(parts.of_block)}
    sums: list[list[Tensor]] = [[] for _ in range(len(parts))]
    for name, share in loss.shares.items():
        sums[blocks.get(name, parts.of_head)].append(share)
    return torch.stack([torch.stack(shares).sum() if shares else torch.zeros_like(loss.total) for shares in sums])


def example_losses(problem: Problem, passed: Pass, batch: Batch) -> Tensor:
    """Return the loss of each part for each example (S, B): that of a batch of the example alone."""
    same = passed.compared[0] is passed.blocks[0]

    def of_one(
        blocks: Sequence[Tensor], compared: Sequence[Tensor], logits: Tensor, targets: Mapping[str, Tensor], label: Tensor
    ) -> Tensor:
        alone = [block.unsqueeze(0) for block in blocks]
        read = alone if same else [output.unsqueeze(0) for output in compared]
        wanted = {name: target.unsqueeze(0) for name, target in targets.items()}
        return part_losses(problem, _loss(problem, alone, read, logits.unsqueeze(0), wanted, label.unsqueeze(0)))

    of_all = torch.func.vmap(of_one, out_dims=1)
    losses_SB: Tensor = of_all(list(passed.blocks), list(passed.compared), passed.logits, dict(batch.targets), batch.labels)
    return losses_SB


def _loss(
    problem: Problem,
    blocks: Sequence[Tensor],
    compared: Sequence[Tensor],
    logits: Tensor,
    targets: Mapping[str, Tensor],
    labels: Tensor,
) -> Loss:
    outputs = Outputs(blocks, compared, lambda _: logits, problem.network.normalises, problem.relative)
    return problem.objective.loss(outputs, targets, labels)
