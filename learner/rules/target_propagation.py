"""Difference target propagation: every block is given a target by a learned inverse of the block above, and learns it by itself.

Lee et al. 2015 (arXiv 1412.7525). The last block's target is a step down the loss; of the others, t_below = h_below + g(t) - g(h), with
g a decoder from a block's representation h to its input h_below, trained beside the network to undo the block:
|g(f(h + noise)) - (h + noise)|^2. A block's gradient is that of the distance of its output to its target, scaled so that the step cancels.
Where the objective gives a block a loss of its own, as regression does, that adds to its target; where blocks are isolated, nothing else
does. Decoders are linear maps of flattened representations, without bias, so that g(t) - g(h) is g(t - h); of large maps they would be
larger than any network, and are refused.
Shapes: B examples; X the axes of a representation; N its components, M those of the one below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from learner.batches import Batch
from learner.objectives.base import Loss, Outputs
from learner.rules.base import Estimate, PlainRule, Problem, State
from learner.rules.directions import noise
from learner.rules.suitability import check_no_classifiers, check_pairs
from repsearch.errors import ConfigError

DECODER = "decoder/"
MOST_WEIGHTS = 2**24
"""Of a decoder, that it and its place in every checkpoint stay below 64 MiB."""


@dataclass(frozen=True, kw_only=True)
class TargetPropagation(PlainRule):
    """Difference target propagation.

    step: of the targets, down the gradient of each example's loss.
    decoder_rate: learning rate of the decoders, in units of the inverse of their input's mean square length.
    decoder_noise: standard deviation of the noise under which decoders learn to undo their block.
    """

    step: Annotated[float, Field(gt=0)] = 0.1
    decoder_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    decoder_noise: Annotated[float, Field(gt=0)] = 0.1

    def check(self, problem: Problem, examples: int) -> None:
        """Raise `ConfigError` for a network whose passes cannot be repeated, or with maps too large for a linear decoder."""
        check_no_classifiers(problem, "target_propagation")
        check_pairs(problem, "target_propagation")
        shapes = problem.network.block_shapes
        for block in range(1, len(shapes)):
            below, above = shapes[block - 1], shapes[block]
            if (size := math.prod(below) * math.prod(above)) > MOST_WEIGHTS:
                raise ConfigError(
                    f"learn.rule: target_propagation undoes blocks.{block} by a linear map from {above} to {below}, which would have "
                    f"{size:,} weights, more than {MOST_WEIGHTS:,}; take a network of smaller maps, or rule feedback_alignment"
                )

    def init(self, problem: Problem, *, rng: torch.Generator) -> State:
        """Return a decoder of every block but the first: (components of its input, of its output)."""
        sizes = [math.prod(shape) for shape in problem.network.block_shapes]
        like = problem.network.mean.cpu()
        return {
            f"{DECODER}{block}": noise((sizes[block - 1], sizes[block]), "gaussian", like, rng) / math.sqrt(sizes[block])
            for block in range(1, len(sizes))
        }

    def estimate(self, problem: Problem, batch: Batch, state: State, *, rng: torch.Generator) -> tuple[Estimate, State]:
        """Write the estimate; see `LearningRule.estimate`. Two passes forward, one of them for the decoders, and one backward."""
        network, reading = problem.network, problem.objective.reading
        below = network.stem(network.prepare(batch.images))
        blocks, compared = list[Tensor](), list[Tensor]()
        for layer in range(network.logits_layer):
            below, output = network.run_block(layer, below.detach() if layer else below, reading.output)
            blocks.append(below)
            compared.append(output)
        loss, errors = _at_the_outputs(problem, batch, blocks, compared)
        passed_on = _passed_on(self.step, blocks, errors, state, isolate=reading.isolate)
        ends = [*blocks, *(output for block, output in zip(blocks, compared, strict=True) if output is not block)]
        cotangents = [*passed_on, *errors[len(blocks) :]]
        pairs = [(end, cotangent) for end, cotangent in zip(ends, cotangents, strict=True) if end.requires_grad]
        torch.autograd.backward([end for end, _ in pairs], [cotangent for _, cotangent in pairs])
        state = self._decoders(problem, [block.detach() for block in blocks], state, rng)
        examples = len(batch.labels)
        return Estimate(loss, forward=2 * examples, backward=examples), state

    @torch.no_grad()
    def _decoders(self, problem: Problem, blocks: Sequence[Tensor], state: State, rng: torch.Generator) -> State:
        """Return the decoders after a step on undoing their blocks."""
        after = dict(state)
        for layer in range(1, len(blocks)):
            below_BX = blocks[layer - 1]
            below_BX = below_BX + self.decoder_noise * noise(below_BX.shape, "gaussian", below_BX, rng)
            above_BN = problem.network.run_layer(layer, below_BX).flatten(1)
            decoder_MN = state[f"{DECODER}{layer}"]
            miss_BM = above_BN @ decoder_MN.T - below_BX.flatten(1)
            length = above_BN.square().sum(1).mean().clamp_min(1e-12)
            after[f"{DECODER}{layer}"] = decoder_MN - self.decoder_rate * miss_BM.T @ above_BN / (len(above_BN) * length)
        return after


def _at_the_outputs(problem: Problem, batch: Batch, blocks: Sequence[Tensor], compared: Sequence[Tensor]) -> tuple[Loss, list[Tensor]]:
    """Return the loss, and its gradient at every block's output, then at every other output that is compared; the head's is written."""
    leaves = [block.detach().requires_grad_() for block in blocks]
    read = [
        leaf if output is block else output.detach().requires_grad_() for leaf, block, output in zip(leaves, blocks, compared, strict=True)
    ]
    loss = problem.objective.loss(
        Outputs(leaves, read, problem.network.head, problem.network.normalises, problem.relative), batch.targets, batch.labels
    )
    torch.autograd.backward(loss.total)
    others = [output for leaf, output in zip(leaves, read, strict=True) if output is not leaf]
    found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in [*leaves, *others]]
    return loss, found


@torch.no_grad()
def _passed_on(step: float, blocks: Sequence[Tensor], errors: Sequence[Tensor], state: State, *, isolate: bool) -> list[Tensor]:
    """Return the error at every block's output (B, X): its own, and what the target of the block above makes of it."""
    found: list[Tensor] = []
    above: Tensor | None = None
    for layer in reversed(range(len(blocks))):
        error_BX = errors[layer]
        if above is not None and not isolate:
            # Per example, as targets are: the mean over the batch is undone, and done again. A linear decoder's difference needs no h.
            target_BN = -step * len(above) * above.flatten(1)
            difference_BM = target_BN @ state[f"{DECODER}{layer + 1}"].T
            error_BX = error_BX - (difference_BM / (step * len(above))).reshape(error_BX.shape)
        found.append(error_BX)
        above = error_BX
    return found[::-1]
