"""What the fit loop needs of a learning objective.

An objective is hyperparameters alone. It names the searched targets it needs, says how it reads a network, and turns one batch of network
outputs into a loss. The head is handed over as a function, not as logits, so that an objective decides whether its gradient reaches the
blocks.
Shapes: B examples; X the axes of a representation; K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from learner.objectives.classifiers import Classifier, classifiers_of
from repsearch.config import LOGITS
from repsearch.networks import BlockOutput, SearchableNetwork


@dataclass(frozen=True)
class Reading:
    """How an objective has a network run.

    output: what of each block it compares with targets. isolate: whether gradients stop at each block's input.
    isolate_head: whether the head reads the last block behind a stop-gradient. last_only: whether it reads no block's output but the last,
    so that learning need not keep the others. classifiers: whether each block has a linear classifier of its own; these and the head then
    learn by the gradient of their own loss, under every rule. groups: of a block's channels, each with a loss of its own. by_logit:
    whether each logit has a loss of its own too.
    """

    output: BlockOutput = "representation"
    isolate: bool = False
    isolate_head: bool = False
    last_only: bool = False
    classifiers: bool = False
    groups: int = 1
    by_logit: bool = False


@dataclass(frozen=True)
class Outputs:
    """What a network makes of a batch.

    blocks: representation of each block, (B, X), with gradient.
    compared: what `Reading.output` names of each block, (B, X), with gradient.
    head: representation of the last block -> logits (B, K).
    normalised: whether `blocks` are already normalised per example.
    relative: whether the targets of blocks are ways from the output to what it is to become, see `search.relative`.
    classifiers: of the blocks, where `Reading.classifiers` has them.
    undisturbed: of a pass that a rule makes, where losses refer to it: `compared` and, last, the logits, behind a stop-gradient, as the
    undisturbed pass has them.
    """

    blocks: Sequence[Tensor]
    compared: Sequence[Tensor]
    head: Callable[[Tensor], Tensor]
    normalised: bool
    relative: bool = False
    classifiers: Sequence[Classifier] = ()
    undisturbed: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Loss:
    """total: scalar to differentiate. terms: its parts by name, unweighted scalars. logits: the head's output (B, K), for accuracy.

    shares: what the terms add to `total`, by the same names. An objective that isolates blocks or head gives them, so that a learning rule
    knows what each of them learns from: a share named as a block (`target_name`) is learned from by the block, any other by the head.
    Every share is a mean over examples. Of a block in groups it has an entry per group: the block's whole loss, which changes with that
    group alone, so that their changes and gradients, not they, add up to the block's. So it has of the head, with `Reading.by_logit`.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    logits: Tensor
    shares: Mapping[str, Tensor] = field(default_factory=dict)


class LearningObjective(Protocol):
    """A member of the objective family."""

    @property
    def reading(self) -> Reading:
        """How it has a network run."""
        ...

    def needs_targets(self, layers: Sequence[int | str]) -> tuple[str, ...]:
        """Return the names of the searched arrays it reads when `layers` are searched; none: it learns from labels alone.

        Raises `ConfigError` if the search layers do not cover what it needs.
        """
        ...

    def check(self, layers: Sequence[int | str], blocks: int, outputs: Sequence[BlockOutput]) -> None:
        """Raise `ConfigError` if it does not fit a network of `blocks` blocks that can put out `outputs`; `layers` are searched."""
        ...

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor], labels_B: Tensor) -> Loss:
        """Return the loss of a batch; `targets` holds the arrays of `needs_targets` for the batch's examples, in stored precision."""
        ...


def target_name(layer: int | str) -> str:
    """Return the name of the array that holds the targets of search layer `layer`: `block0`, ..., `logits`."""
    return LOGITS if layer == LOGITS else f"block{layer}"


def outputs_of(network: SearchableNetwork, images_BCHW: Tensor, reading: Reading) -> Outputs:
    """Return the outputs of `network` for images in 0..255; the head has not run.

    With `reading.isolate` the gradient of a block's output reaches that block alone; that of block 0 also the stem.
    """
    below = network.stem(network.prepare(images_BCHW))
    blocks, compared = [], []
    for layer in range(network.logits_layer):
        below, output = network.run_block(layer, below.detach() if reading.isolate and layer else below, reading.output)
        blocks.append(below)
        compared.append(output)
    return Outputs(blocks, compared, network.head, network.normalises, classifiers=classifiers_of(network))
