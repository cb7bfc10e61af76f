"""Weight perturbation: noise on the weights, and how much the loss of the whole batch changes by it.

One draw of noise v ~ N(0, s^2) over all weights of a part, dL the part's loss (mean over the batch) with noise less that without; estimate
dL v / s^2, averaged over K draws. The point of reference for rules that perturb nodes: its variance is that of a forward gradient over
weights. Shapes: K draws; S parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from learner.batches import Batch
from learner.rules.base import Estimate, PlainRule, Problem, State
from learner.rules.directions import NoiseLaw
from learner.rules.forward_gradient import ForwardGradient
from learner.rules.suitability import check_pairs, warn_of_rounding


@dataclass(frozen=True, kw_only=True)
class WeightPerturbation(PlainRule):
    """Weight perturbation.

    noise_std: standard deviation of the noise on every weight.
    noise: its law.
    passes: noisy passes that an estimate averages over, computed together.
    """

    noise_std: Annotated[float, Field(gt=0)] = 1e-3
    noise: NoiseLaw = "gaussian"
    passes: Annotated[int, Field(ge=1)] = 1

    def check(self, problem: Problem, examples: int) -> None:
        """Raise `ConfigError` for a network whose passes cannot be paired; warn of noise lost in rounding."""
        check_pairs(problem, "weight_perturbation")
        warn_of_rounding(problem, self._differences().differences, "noise_std", self.noise_std)

    def estimate(self, problem: Problem, batch: Batch, state: State, *, rng: torch.Generator) -> tuple[Estimate, State]:
        """Write the estimate; see `LearningRule.estimate`. 1 + K passes forward."""
        return self._differences().estimate(problem, batch, state, rng=rng)

    def _differences(self) -> ForwardGradient:
        # With v = s u, dL v / s^2 is the difference quotient along u, times u.
        return ForwardGradient(directions=self.noise, draws=self.passes, derivative="forward", step=self.noise_std)
