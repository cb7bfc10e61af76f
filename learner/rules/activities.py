"""Derivatives of each example's loss along directions over pre-activations: carried along one pass, or from passes beside it.

Ren et al. (arXiv 2210.03310) leave units out whose ReLU is off: their gradient is 0, so that a direction there adds variance alone.
Shapes: B examples; X the axes of a pre-activation; K directions; S parts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learner.batches import Batch
from learner.objectives.base import Loss
from learner.rules.base import Problem
from learner.rules.carrying import carried
from learner.rules.layers import Layer, running
from learner.rules.passes import Pass, example_losses, loss_of, run
from learner.rules.suitability import made_up_batch

Directions = Callable[[Mapping[str, Sequence[int]]], dict[str, Tensor]]
"""From the shape of each layer's pre-activation, (B, X), to directions (K, B, X)."""
Derivatives = Callable[..., tuple[Tensor, Any]]
"""From a function of displacements, where they are, and directions, to derivatives (K, ...) and what else the function gives."""


@dataclass(frozen=True)
class Measured:
    """loss: for the record. inputs: of each layer. drawn: directions of each (K, B, X). derivatives: (K, S, B). blocks, compared: see
    `Outputs`."""

    loss: Loss
    inputs: Sequence[Tensor]
    drawn: Mapping[str, Tensor]
    derivatives_KSB: Tensor
    blocks: Sequence[Tensor]
    compared: Sequence[Tensor]


def along(
    problem: Problem, batch: Batch, layers: Sequence[Layer], masked: Collection[str], directions: Directions, derivatives: Derivatives
) -> Measured:
    """Return what one pass with its tangents gives; masked: layers of which units at or below 0 are left out."""
    shapes = zip(layers, unit_shapes(problem, layers), strict=True)
    drawn = directions({layer.name: (len(batch.labels), *shape) for layer, shape in shapes})

    def losses(moves: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        inputs, on = list[Tensor](), dict[str, Tensor]()

        def forward(number: int, input_BY: Tensor) -> Tensor:
            inputs.append(input_BY)
            layer, move_BX = layers[number], moves[layers[number].name]
            output_BX = carried(layer, input_BY, move_BX, masked=layer.name in masked)
            if layer.name in masked:
                on[layer.name] = output_BX > 0
            return output_BX

        with running(layers, forward):
            passed = run(problem, batch.images)
        return example_losses(problem, passed, batch), (inputs, on, passed.blocks, passed.compared, passed.logits)

    still = {name: torch.zeros_like(value[0]) for name, value in drawn.items()}
    derivatives_KSB, (inputs, on, blocks, compared, logits) = derivatives(losses, still, drawn)
    for name, on_BX in on.items():
        drawn[name].mul_(on_BX)
    # The loss for the record needs no tangent.
    loss = loss_of(problem, Pass(blocks, compared, logits, (), logits), batch)
    return Measured(loss, inputs, drawn, derivatives_KSB, blocks, compared)


def beside(
    problem: Problem, batch: Batch, layers: Sequence[Layer], masked: Collection[str], directions: Directions, derivatives: Derivatives
) -> Measured:
    """Return the same by differences from an undisturbed pass."""
    inputs: list[Tensor] = []
    bare: dict[str, Tensor] = {}

    def look(number: int, input_BY: Tensor) -> Tensor:
        inputs.append(input_BY)
        output_BX = layers[number].run(input_BY)
        bare[layers[number].name] = output_BX
        return output_BX

    with running(layers, look):
        passed = run(problem, batch.images)
    drawn = directions({name: value.shape for name, value in bare.items()})
    for name in masked:
        drawn[name].mul_(bare[name] > 0)
    first = {layer.part: number for number, layer in reversed(list(enumerate(layers)))}

    def losses(moves: Mapping[str, Tensor], _: Pass | None = None) -> tuple[Tensor, Any]:
        def forward(number: int, input_BY: Tensor) -> Tensor:
            name = layers[number].name
            known = number == first[layers[number].part]
            return (bare[name] if known else layers[number].run(input_BY)) + moves[name]

        with running(layers, forward):
            disturbed = run(problem, batch.images, passed)
        return example_losses(problem, disturbed, batch), (passed,)

    still = {name: torch.zeros_like(value) for name, value in bare.items()}
    derivatives_KSB, _ = derivatives(losses, still, drawn)
    return Measured(loss_of(problem, passed, batch), inputs, drawn, derivatives_KSB, passed.blocks, passed.compared)


def unit_shapes(problem: Problem, layers: Sequence[Layer]) -> list[tuple[int, ...]]:
    """Return the shape of each layer's pre-activation, without the example axis."""
    found: list[tuple[int, ...]] = []

    def forward(number: int, input_BY: Tensor) -> Tensor:
        output_BX = layers[number].run(input_BY)
        found.append(tuple(output_BX.shape[1:]))
        return output_BX

    with torch.no_grad(), running(layers, forward):
        run(problem, made_up_batch(problem, 1).images)
    return found


@torch.enable_grad()
def switched(problem: Problem, layers: Sequence[Layer]) -> set[str]:
    """Return the layers whose units have no gradient at or below 0, on made-up examples: those that a ReLU follows."""
    outputs: list[Tensor] = []

    def forward(number: int, input_BY: Tensor) -> Tensor:
        outputs.append(layers[number].run(input_BY))
        return outputs[-1]

    with running(layers, forward):
        if problem.objective.reading.classifiers:
            # They are 0 at first, and pass no gradient on.
            rng = torch.Generator().manual_seed(0)
            passed = run(problem, made_up_batch(problem, 16).images)
            total = torch.stack([(torch.randn(output.shape, generator=rng).to(output) * output).sum() for output in passed.compared]).sum()
        else:
            total = problem.loss_of(made_up_batch(problem, 16)).total
    gradients = torch.autograd.grad(total, outputs, allow_unused=True)
    return {
        layer.name
        for layer, output, gradient in zip(layers, outputs, gradients, strict=True)
        if gradient is not None and bool(gradient.any()) and bool((output <= 0).any()) and not bool(gradient[output <= 0].any())
    }
