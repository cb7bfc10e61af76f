"""Alopex: every weight moves by the same step at every turn, likelier the way that went with a falling loss.

Unnikrishnan & Venugopal 1994 (Neural Computation 6:469). With dw the weight's last move and dE the last change of the loss, both of the
turn before, C = dw dE, and the weight moves by -delta with probability 1 / (1 + exp(-C / T)), by +delta otherwise. T, the temperature, is
set every N turns to the mean |C| of the last N. One evaluation per turn; nothing is rejected; the loss needs no derivative.

The estimate is +-1 per weight, so that the step delta is the optimiser's learning rate: `sgd` without momentum. dE must be of the same
examples: a batch is held for several turns, of which the first, without a dE, moves at random. Each part of the network goes by its own
loss and temperature. Shapes: S parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from learner.batches import Batch
from learner.rules.base import Estimate, PlainRule, Problem, State
from learner.rules.passes import loss_of, part_losses, parts_of, run
from learner.rules.suitability import check_no_classifiers, check_pairs
from repsearch.errors import ConfigError

WEIGHT = "weight/"
LEAST = 1e-30


@dataclass(frozen=True, kw_only=True)
class Alopex(PlainRule):
    """Alopex, with `sgd` of momentum 0, whose `lr` is the step delta.

    hold: turns in a row on each batch. A batch of the whole training set may be held for 1: it is the same in every epoch.
    anneal_every: turns between two settings of the temperature.
    temperature: before the first setting; large, so that moves are random.
    """

    hold: Annotated[int, Field(ge=1)] = 50  # type: ignore[misc]
    anneal_every: Annotated[int, Field(ge=1)] = 20
    temperature: Annotated[float, Field(gt=0)] = 1e4

    def check(self, problem: Problem, examples: int) -> None:
        """Raise `ConfigError` for networks and settings under which a change of the loss is not that of the move."""
        check_no_classifiers(problem, "alopex")
        check_pairs(problem, "alopex")
        if problem.relative:
            raise ConfigError(
                "search.relative: alopex compares losses of one turn with those of the next, and targets that are ways from the network's "
                "own output move on with it; set search.relative = false"
            )
        learn = problem.learn
        optimiser = learn.optimiser
        if optimiser["name"] != "sgd" or optimiser.get("momentum", 0.85) or optimiser.get("weight_decay"):
            raise ConfigError(
                f"learn.optimiser: alopex moves every weight by the learning rate, and {optimiser['name']!r} as set does not; "
                'set it to {name = "sgd", momentum = 0.0, nesterov = false}'
            )
        if learn.clip_norm is not None:
            raise ConfigError("learn.clip_norm: alopex moves every weight by the learning rate; leave clip_norm out")
        if self.hold == 1 and (learn.batch_size < examples or learn.flip or learn.pad_crop):
            raise ConfigError(
                "learn.rule.hold: 1 compares losses of different batches; hold each for 2 turns or more, or learn the whole set at once "
                f"(learn.batch_size = {examples}) without augmentation"
            )

    def init(self, problem: Problem, *, rng: torch.Generator) -> State:
        """Return the state before the first turn: no loss, no move."""
        parts = len(parts_of(problem.network, problem.objective.reading))
        zeros = torch.zeros(parts)
        weights = {f"{WEIGHT}{name}": value.detach().clone() for name, value in _learning(problem).items()}
        temperature = torch.full((parts,), self.temperature)
        return {"turn": torch.zeros((), dtype=torch.int64), "loss": zeros, "sum": zeros.clone(), "temperature": temperature, **weights}

    @torch.no_grad()
    def estimate(self, problem: Problem, batch: Batch, state: State, *, rng: torch.Generator) -> tuple[Estimate, State]:
        """Write +1 or -1 for every weight; see `LearningRule.estimate`. One pass forward."""
        loss = loss_of(problem, run(problem, batch.images), batch)
        parts, weights = parts_of(problem.network, problem.objective.reading), _learning(problem)
        turn, losses_S = int(state["turn"]), part_losses(problem, loss).to(state["loss"].dtype)
        # The first turn on a batch has no loss of the turn before on the same examples.
        fresh = turn == 0 or (self.hold > 1 and turn % self.hold == 0)
        changes_S = torch.zeros_like(losses_S) if fresh else losses_S - state["loss"]
        sizes_S, totals_S = torch.zeros_like(losses_S), torch.zeros_like(losses_S)
        for name, value in weights.items():
            part = parts.of(name)
            correlation = (value - state[f"{WEIGHT}{name}"]).mul_(changes_S[part])
            sizes_S[part] += torch.linalg.vector_norm(correlation, 1)
            odds = correlation.div_(state["temperature"][part]).sigmoid_()
            # A positive gradient is a move of -delta.
            uniform = torch.rand(value.shape, generator=rng, device=value.device)
            problem.network.get_parameter(name).grad = torch.lt(uniform, odds).to(value.dtype).mul_(2).sub_(1)
            totals_S[part] += value.numel()
        sums_S = state["sum"] + sizes_S / totals_S.clamp_min(1)
        temperature_S = state["temperature"]
        if (turn + 1) % self.anneal_every == 0:
            mean_S = sums_S / self.anneal_every
            temperature_S = torch.where(mean_S > LEAST, mean_S, temperature_S)
            sums_S = torch.zeros_like(sums_S)
        after = {f"{WEIGHT}{name}": value.clone() for name, value in weights.items()}
        scalars = {"turn": state["turn"] + 1, "loss": losses_S, "sum": sums_S, "temperature": temperature_S}
        return Estimate(loss, forward=len(batch.labels), backward=0), {**scalars, **after}


def _learning(problem: Problem) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in problem.network.named_parameters() if value.requires_grad}
