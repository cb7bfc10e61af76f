"""How long a move is: in what unit, and whether it adapts to how often moves succeed.

The one-fifth rule: a step size at which a fifth of the moves are improvements makes the fastest progress on simple problems, so a higher
rate of success says that steps are too short, a lower one that they are too long. Rechenberg 1973; the factor is that of Kern et al. 2004.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

StepSize = Literal["relative", "absolute", "adapted"]
TARGET_RATE = 0.2
_DAMPING = 2.0
_WIDEST = 64.0


def adapted(factor_B: Tensor, rate_B: Tensor) -> Tensor:
    """Return the factor on the step size after a generation in which a share `rate_B` of the moves were improvements.

    Longer above a fifth, shorter below; never beyond a factor of 64 either way.
    """
    change_B = torch.exp((rate_B - TARGET_RATE) / ((1 - TARGET_RATE) * _DAMPING))
    return (factor_B * change_B).clamp(1 / _WIDEST, _WIDEST)
