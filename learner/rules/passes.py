"""A network run in parts, each with a loss of its own.

A part is a stretch of the network between two stop-gradients of the objective: the whole network under cross-entropy; blocks and head under
regression, and each block by itself where blocks are isolated. The loss of a part is what its parameters learn from. A disturbed pass
enters every part with the undisturbed input, which is to a disturbance what a stop-gradient is to a gradient. Where a block is in groups,
its part has a loss per group. Where blocks have classifiers, these and the head are in no rule's hands, see `learn_read_outs`.
Shapes: B examples; X the axes of a representation; Y those of a part's input; S losses of parts, or of their groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from learner.batches import Batch
from learner.objectives.base import Loss, Outputs, Reading, target_name
from learner.objectives.classifiers import CLASSIFIERS, classifiers_of
from learner.rules.base import Problem
from learner.rules.layers import Layer
from repsearch.networks import SearchableNetwork


@dataclass(frozen=True)
class Parts:
    """of_block: number of each block's part, the stem's being that of block 0. of_head: number of the head's part. groups: of a block.
    logits: of the head, that have a loss each; else 1."""

    of_block: tuple[int, ...]
    of_head: int
    groups: int = 1
    logits: int = 1

    def __len__(self) -> int:
        return self.of_head + 1

    def of(self, parameter: str) -> int:
        """Return the part of a parameter or module by its name in the network."""
        first, _, rest = parameter.partition(".")
        return self.of_head if first == "head" else self.of_block[int(rest.split(".")[0]) if first == "blocks" else 0]

    def losses(self, part: int) -> slice:
        """Return where the losses of a part are among those of all parts."""
        return slice(part * self.groups, part * self.groups + (self.logits if part == self.of_head else self.groups))

    def whole(self, values_KSL: Tensor, part: int) -> Tensor:
        """Return of changes or derivatives of all losses those of the whole loss of a part (K, L); L: any axes."""
        return values_KSL[:, part] if self.groups == 1 else values_KSL[:, self.losses(part)].sum(1)

    def reached(self, values_KSB: Tensor, layer: Layer) -> Tensor:
        """Return of changes or derivatives of all losses those of what a layer reaches: (K, B), or of each group (K, B * G)."""
        if layer.groups == 1:
            return self.whole(values_KSB, layer.part)
        return values_KSB[:, self.losses(layer.part)].transpose(1, 2).flatten(1)


def parts_of(network: SearchableNetwork, reading: Reading) -> Parts:
    """Return the parts of `network` for an objective that reads it as `reading` says."""
    blocks = network.logits_layer
    of_block = tuple(range(blocks)) if reading.isolate else (0,) * blocks
    return Parts(of_block, of_block[-1] + reading.isolate_head, reading.groups, network.classes if reading.by_logit else 1)


def layers_of(problem: Problem) -> list[Layer]:
    """Return the layers that a rule teaches, in the order in which they run: stem, blocks, head, each in the order of its modules."""
    reading = problem.objective.reading
    parts = parts_of(problem.network, reading)
    layers: list[Layer] = []
    taught = ("stem", "blocks") if reading.classifiers else ("stem", "blocks", "head")
    stretches = [(name, getattr(problem.network, name)) for name in taught]
    for name, module in itertools.chain.from_iterable(stretch.named_modules(prefix=name) for name, stretch in stretches):
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            part = parts.of(name)
            groups = (parts.logits if part == parts.of_head else parts.groups) if name in problem.grouped else 1
            layers.append(Layer(name, module, part, sum(layer.part == part for layer in layers), groups))
    return layers


def taught_parameters(problem: Problem) -> dict[str, Parameter]:
    """Return the parameters that learn and that a rule teaches, by name."""
    reads_out = ("head", CLASSIFIERS) if problem.objective.reading.classifiers else ()
    named = problem.network.named_parameters()
    return {name: value for name, value in named if value.requires_grad and name.split(".")[0] not in reads_out}


@dataclass(frozen=True)
class Pass:
    """blocks, compared: see `Outputs`; the last alone where the objective reads no other. logits: of the head. entering: what the block, or
    the head, that begins each part but the first read. stem: output of the stem. undisturbed: see `Outputs`."""

    blocks: Sequence[Tensor]
    compared: Sequence[Tensor]
    logits: Tensor
    entering: Sequence[Tensor]
    stem: Tensor
    undisturbed: Sequence[Tensor] = ()


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
    wanted = reading.classifiers or reading.groups > 1 or problem.relative
    logits = network.head(below)
    still = [] if not wanted else [output.detach() for output in (*compared, logits)] if like is None else like.undisturbed
    return Pass(blocks, compared, logits, read, stem, still)


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
    return _loss(problem, passed.blocks, passed.compared, passed.logits, batch.targets, batch.labels, passed.undisturbed)


@torch.enable_grad()
def learn_read_outs(problem: Problem, blocks: Sequence[Tensor], compared: Sequence[Tensor], batch: Batch) -> None:
    """Write the gradient of the head and of the blocks' classifiers, where blocks have these, from what an undisturbed pass gave.

    Both are linear and read what no gradient leaves: theirs is the product of an error and an input, and takes no pass backward.
    """
    if not problem.objective.reading.classifiers:
        return
    blocks, compared = [block.detach() for block in blocks], [output.detach() for output in compared]
    network = problem.network
    outputs = Outputs(blocks, compared, network.head, network.normalises, problem.relative, classifiers_of(network))
    loss = problem.objective.loss(outputs, batch.targets, batch.labels)
    taught = taught_parameters(problem)
    own = [parameter for name, parameter in network.named_parameters() if parameter.requires_grad and name not in taught]
    torch.autograd.backward(loss.total, inputs=own)


def part_losses(problem: Problem, loss: Loss) -> Tensor:
    """Return the loss of each part (S,), mean over examples, whose sum is the total; of a part in groups, the loss of each group."""
    parts = parts_of(problem.network, problem.objective.reading)
    if len(parts) == 1:
        return loss.total.unsqueeze(0)
    blocks = {target_name(block): part for block, part in enumerate(parts.of_block)}
    sums: list[list[Tensor]] = [[] for _ in range(len(parts))]
    for name, share in loss.shares.items():
        sums[blocks.get(name, parts.of_head)].append(share)
    found = [torch.stack(shares).sum(0) if shares else torch.zeros_like(loss.total) for shares in sums]
    return torch.stack(found) if parts.groups == 1 else torch.cat([losses.reshape(-1) for losses in found])


def example_losses(problem: Problem, passed: Pass, batch: Batch) -> Tensor:
    """Return the losses of the parts for each example (S, B): those of a batch of the example alone."""
    same = passed.compared[0] is passed.blocks[0]

    def of_one(
        blocks: Sequence[Tensor],
        compared: Sequence[Tensor],
        logits: Tensor,
        targets: Mapping[str, Tensor],
        label: Tensor,
        undisturbed: Sequence[Tensor],
    ) -> Tensor:
        alone = [block.unsqueeze(0) for block in blocks]
        read = alone if same else [output.unsqueeze(0) for output in compared]
        wanted = {name: target.unsqueeze(0) for name, target in targets.items()}
        still = [output.unsqueeze(0) for output in undisturbed]
        return part_losses(problem, _loss(problem, alone, read, logits.unsqueeze(0), wanted, label.unsqueeze(0), still))

    of_all = torch.func.vmap(of_one, out_dims=1)
    lists = list(passed.blocks), list(passed.compared), passed.logits
    losses_SB: Tensor = of_all(*lists, dict(batch.targets), batch.labels, list(passed.undisturbed))
    return losses_SB


def _loss(
    problem: Problem,
    blocks: Sequence[Tensor],
    compared: Sequence[Tensor],
    logits: Tensor,
    targets: Mapping[str, Tensor],
    labels: Tensor,
    undisturbed: Sequence[Tensor] = (),
) -> Loss:
    network = problem.network
    classifiers = classifiers_of(network)
    outputs = Outputs(blocks, compared, lambda _: logits, network.normalises, problem.relative, classifiers, undisturbed)
    return problem.objective.loss(outputs, targets, labels)
