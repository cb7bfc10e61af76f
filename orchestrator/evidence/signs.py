"""Rows of the table about a network without derivatives: what is left of search where no exact gradient is to be had.

Blocks end in signs. Learning from targets needs no derivative of one: what is matched is what the sign reads, block by block.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.evidence.rows import LEARN_ONCE, Row
from orchestrator.evidence.rules import EVALUATIONS, PASSES, local_scale
from orchestrator.evidence.scales import LR, Scale

_ROUNDS = 2
_TARGETS = {"learn.objective": {"name": "regression", "isolate": True, "head_weight": 1.0, "match": "last_activation_dropped"}}
_LENGTHS = {"generations": [6, 6, 2], "blur_passes": [0, 0, 0]}


def sign_scale(scale: Scale) -> Scale:
    """Return the scale of blocks that learn by themselves, with signs for activations."""
    local = local_scale(scale)
    return replace(local, base={**local.base, "network": {**local.base["network"], "activation": "sign"}})


def sign_rows(scale: Scale, images: int) -> list[Row]:
    """Return estimates of the gradient through signs, and targets for the blocks that need none."""
    epochs = scale.base["learn"]["epochs"]
    whole = {"learn.objective.name": "cross_entropy", "rounds": LEARN_ONCE, "learn.epochs": _ROUNDS * epochs}
    # Evaluations of candidates and noisy passes are both passes of an image.
    longer = {**whole, "learn.epochs": _ROUNDS * epochs + round(_ROUNDS * EVALUATIONS / (1 + PASSES))}
    noisy = {"name": "node_perturbation", "passes": PASSES}
    strategy = {"name": "evolution_strategy", **_LENGTHS, "pairs": 6, "sigma": [0.3] * 3, "step": [0.3] * 3}
    gradient = {"name": "gradient", "steps": [6, 6, 2], "step": [0.3] * 3, "blur_passes": [0, 0, 0]}
    return [
        Row(name="cross-entropy, straight-through", settings=whole),
        Row(
            name="cross-entropy, REINFORCE",
            settings={**longer, "learn.rule": noisy},
            space={"learn.rule.noise_std": [0.03, 0.1, 0.3, 1.0], LR: {"low": 3e-4, "high": 1e-2, "log": True}},
        ),
        Row(name="evolution", settings=_TARGETS),
        Row(name="evolution strategy", settings={**_TARGETS, "search.strategy": strategy}),
        Row(name="gradient, straight-through", settings={**_TARGETS, "search.strategy": gradient}),
        Row(name="class code", settings={**_TARGETS, "search.strategy": {"name": "class_code", "blur_passes": [0, 0, 0]}}),
    ]


SIGN_NOTES = f"""Blocks of one layer and 128 units that end in a sign. `straight-through`: its derivative is taken for that of the value
cut at -1 and 1 (Bengio et al. 2013). `REINFORCE`: Gaussian noise of a chosen size on every pre-activation, and how much the loss of an
example changes by it times the noise (Williams 1992), which is node perturbation; {PASSES} noisy passes, and as many more epochs as
search has evaluations. Rows of targets search twice and learn each block from its own target, matched with what the sign reads, so that
no derivative of one is taken; of these, `gradient` alone takes one in search."""
