"""Node perturbation: noise on every pre-activation, and how much the loss of each example changes by it.

Dalm et al. (arXiv 2310.00965). Layer l: a = W h + b; noise v ~ N(0, s^2) per example and unit, on every layer, that of the head included;
dL = the example's loss with noise less that without; d = the difference of pre-activations, which has noise from below in it.
Estimates of the gradient with respect to a, per example, averaged over K noisy passes:

    np     dL v / s^2                  all layers noisy at once             1 + K passes
    inp    N dL d / ||d||^2            one layer noisy at a time            1 + K * layers passes; N, d: of the layer
    anp    N dL d / ||d||^2            all layers noisy at once             1 + K passes; N, d: of all layers together

The weight's is their product with the layer's undisturbed input, mean over examples. np and inp are unbiased up to s^2. anp is not:
what reaches a layer from below is in its d, so that only the first layer's estimate points along the gradient. Where the objective isolates
blocks, each is a network by itself: noise stays within it, and dL and N are its own; so is a group of channels where blocks are in groups.
Shapes: B examples; X the axes of a pre-activation; Y those of a layer's input; K noisy passes; S losses of parts, or of their groups;
L examples, or examples times groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from learner.batches import Batch
from learner.objectives.base import Loss
from learner.rules.base import Estimate, Problem, State
from learner.rules.decorrelation import MATRIX, DecorrelatingRule, merged
from learner.rules.directions import NoiseLaw, noise
from learner.rules.layers import Layer, running
from learner.rules.passes import Pass, example_losses, layers_of, learn_read_outs, loss_of, over_draws, parts_of, run
from learner.rules.suitability import check_formulas, check_pairs, warn_of_rounding
from learner.rules.tangents import combined
from repsearch.errors import ConfigError


@dataclass(frozen=True)
class Reference:
    """The pass that noisy ones are compared with.

    losses_SB: of each part and example. loss: for the record. inputs: of each layer. bare: pre-activations
    before this pass's own noise. noise: that noise; None of a clean pass. weights: W R of each layer; None where R is the identity.
    """

    loss: Loss
    losses_SB: Tensor
    passed: Pass
    inputs: Sequence[Tensor]
    bare: Sequence[Tensor]
    noise: Sequence[Tensor] | None
    weights: Sequence[Tensor | None]

    def own(self, number: int, bare_BX: Tensor) -> Tensor:
        """Return `bare_BX` with the noise that this pass put on layer `number`."""
        return bare_BX if self.noise is None else bare_BX + self.noise[number]


@dataclass(frozen=True, kw_only=True)
class NodePerturbation(DecorrelatingRule):
    """Node perturbation.

    variant: `np`, noise on all layers at once; `inp`, on one at a time; `anp`, on all at once, read from activities alone.
    noise_std: standard deviation of the noise.
    noise: its law.
    passes: noisy passes that an estimate averages over (`inp`: per layer), computed together.
    clean_pass: compare with a pass without noise; false: with another noisy one, for a system that is never without noise.
    decorrelate: train a matrix that decorrelates each layer's inputs: `{rate = 1e-3, whiten = 0.0, share = 1.0}`, the rate, the share of it
        that brings variances to 1, and the share of a batch that correlations are taken of. The stored network has it in its weights.
    """

    variant: Literal["np", "inp", "anp"] = "np"
    noise_std: Annotated[float, Field(gt=0)] = 1e-3
    noise: NoiseLaw = "gaussian"
    passes: Annotated[int, Field(ge=1)] = 1
    clean_pass: bool = True

    def check(self, problem: Problem, examples: int) -> None:
        """Raise `ConfigError` for a network whose passes cannot be paired or which has other layers; warn of noise lost in rounding."""
        check_pairs(problem, "node_perturbation")
        check_formulas(problem, "node_perturbation")
        if self.variant == "anp" and problem.objective.reading.groups > 1:
            raise ConfigError(
                "learn.rule.variant: anp reads changes of activities of a block together, learn.objective.groups take them apart; "
                'set variant = "np" or "inp", or groups = 1'
            )
        if self.decorrelate is not None:
            self.decorrelate.check(layers_of(problem))
        plain = replace(self, decorrelate=None, clean_pass=True)

        def differences(problem: Problem, batch: Batch) -> Tensor:
            layers, rng = layers_of(problem), torch.Generator(problem.network.mean.device).manual_seed(0)
            reference = plain._reference(problem, batch, layers, {}, rng)
            changes_SB, _ = plain._noisy(problem, batch, layers, reference, plain._noise(reference, 1, rng), None)
            return changes_SB

        warn_of_rounding(problem, differences, "noise_std", self.noise_std)

    @torch.no_grad()
    def estimate(self, problem: Problem, batch: Batch, state: State, *, rng: torch.Generator) -> tuple[Estimate, State]:
        """Write the estimate; see `LearningRule.estimate`."""
        layers = layers_of(problem)
        reference = self._reference(problem, batch, layers, state, rng)
        rounds = range(1 + max(layer.position for layer in layers)) if self.variant == "inp" else [None]
        for only in rounds:
            drawn = self._noise(reference, self.passes, rng)
            changes_KSB, moved = self._noisy(problem, batch, layers, reference, drawn, only)
            for number, error_BX in self._errors(problem, layers, reference, changes_KSB, drawn, moved, only):
                layers[number].write(reference.inputs[number], error_BX, through=state.get(f"{MATRIX}{layers[number].name}"))
        if self.decorrelate is not None:
            state = self.decorrelate.updated(layers, reference.inputs, state)
        learn_read_outs(problem, reference.passed.blocks, reference.passed.compared, batch)
        forward = (1 + self.passes * len(rounds)) * len(batch.labels)
        return Estimate(reference.loss, forward=forward, backward=0), state

    def _noise(self, reference: Reference, passes: int, rng: torch.Generator) -> list[Tensor]:
        return [noise((passes, *bare.shape), self.noise, bare, rng).mul_(self.noise_std) for bare in reference.bare]

    def _reference(self, problem: Problem, batch: Batch, layers: Sequence[Layer], state: State, rng: torch.Generator) -> Reference:
        weights = [merged(layer, state) for layer in layers]
        inputs, bare, drawn = list[Tensor](), list[Tensor](), list[Tensor]()

        def forward(number: int, input_BY: Tensor) -> Tensor:
            inputs.append(input_BY)
            bare.append(layers[number].run(input_BY, weights[number]))
            if self.clean_pass:
                return bare[-1]
            drawn.append(noise(bare[-1].shape, self.noise, bare[-1], rng).mul_(self.noise_std))
            return bare[-1] + drawn[-1]

        with running(layers, forward):
            passed = run(problem, batch.images)
        losses_SB = example_losses(problem, passed, batch)
        return Reference(loss_of(problem, passed, batch), losses_SB, passed, inputs, bare, None if self.clean_pass else drawn, weights)

    def _noisy(
        self,
        problem: Problem,
        batch: Batch,
        layers: Sequence[Layer],
        reference: Reference,
        drawn: Sequence[Tensor],
        only: int | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return changes of loss (K, S, B) and, for `anp`, of each pre-activation (K, B, X), by the noise `drawn`.

        only: position in its part of the layer that is noisy, the others being as in the reference; None: all of them.
        """

        def one(drawn: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
            outputs: list[Tensor] = []

            def forward(number: int, input_BY: Tensor) -> Tensor:
                layer, bare_BX = layers[number], reference.bare[number]
                # No noise has come in below the part's first noisy layer: its undisturbed pre-activation is known.
                if layer.position > (only or 0):
                    bare_BX = layer.run(input_BY, reference.weights[number])
                noisy = only is None or layer.position == only
                output_BX = bare_BX + drawn[number] if noisy else reference.own(number, bare_BX)
                if self.variant == "anp":
                    outputs.append(output_BX)
                return output_BX

            with running(layers, forward):
                passed = run(problem, batch.images, reference.passed)
            changes_SB = example_losses(problem, passed, batch) - reference.losses_SB
            if self.variant != "anp":
                return changes_SB, []
            return changes_SB, [output - reference.own(number, reference.bare[number]) for number, output in enumerate(outputs)]

        found: tuple[Tensor, list[Tensor]] = over_draws(one, list(drawn))
        return found

    def _errors(
        self,
        problem: Problem,
        layers: Sequence[Layer],
        reference: Reference,
        changes_KSB: Tensor,
        drawn: Sequence[Tensor],
        moved: Sequence[Tensor],
        only: int | None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of each layer that was disturbed and the estimate of its pre-activation's gradient (B, X), over B."""
        if self.variant == "anp":
            units, squares = _per_part(layers, moved)
        parts = parts_of(problem.network, problem.objective.reading)
        count = len(changes_KSB) * changes_KSB.shape[2]
        for number, layer in enumerate(layers):
            if only is not None and layer.position != only:
                continue
            change_KL = parts.reached(changes_KSB, layer)
            if self.variant == "anp":
                change_KL = units[layer.part] * change_KL / squares[layer.part]
                yield number, combined(change_KL / count, moved[number])
                continue
            whole_KBX = drawn[number] if reference.noise is None else drawn[number] - reference.noise[number]
            way = layer.in_groups(whole_KBX)
            if self.variant == "inp":
                change_KL = way[0, 0].numel() * change_KL / way.flatten(2).square().sum(2)
            else:
                # The difference of two noises has twice the variance.
                change_KL = change_KL / (self.noise_std**2 * (1 if reference.noise is None else 2))
            yield number, layer.together(combined(change_KL / count, way), whole_KBX)


def _per_part(layers: Sequence[Layer], moved: Sequence[Tensor]) -> tuple[dict[int, int], dict[int, Tensor]]:
    """Return the units and the squared length (K, B) of the change of all pre-activations of each part."""
    units: dict[int, int] = {}
    squares: dict[int, Tensor] = {}
    for layer, change_KBX in zip(layers, moved, strict=True):
        units[layer.part] = units.get(layer.part, 0) + math.prod(change_KBX.shape[2:])
        square_KB = change_KBX.flatten(2).square().sum(2)
        squares[layer.part] = square_KB + squares[layer.part] if layer.part in squares else square_KB
    return units, squares
