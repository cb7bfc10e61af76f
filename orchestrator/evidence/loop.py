"""Rows of the table about the loop: search on the network as it is now, window by window, beside what needs no search.

Streamed rows differ in how a window's targets are found, and in nothing else: the way goes from the network's own representation, its
length is chosen on validation, and blocks are searched independently of one another. Epochs are those of the other rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.evidence.rows import BASELINE, CLASS_CODE, EVOLUTION, MIXED_CODE, Row
from orchestrator.evidence.scales import DEPTH, Scale

WINDOW = 125
"""Examples of a window: those of a batch."""
NUDGES = {"search.nudge": {"low": 0.03, "high": 0.5, "log": True}}
SHALLOW = {"cifar10": 2}
"""Convolutions per block where they are not chosen: with 4 and running statistics no trial of a searched row came past 28 %."""
_BLUR = {1: 1, 2: 1}


def loop_rows(scale: Scale, images: int) -> list[Row]:
    """Return the rows for `images` training images."""
    both, last = (1, 2), (2,)
    closed = {"policy": "closed_loop", "count": scale.base["learn"]["epochs"]}
    return [
        replace(BASELINE, space={"learn.objective.label_smoothing": [0.0, 0.1]}),
        replace(EVOLUTION, name="one-shot, evolution", method=EVOLUTION.name),
        replace(CLASS_CODE, name="one-shot, class code", method=CLASS_CODE.name),
        replace(MIXED_CODE, name="one-shot, class code mixed", method=MIXED_CODE.name),
        _row("closed loop, evolution strategy", scale, {**_looped(both, _strategy(both, 16)), "rounds": closed}),
        streamed_strategy(scale, images),
        _streamed("evolution strategy, last block", last, _strategy(last, 32), scale, images),
        streamed_code(scale, images),
        _streamed("class code, last block", last, _code(last), scale, images),
        _alternating(streamed_strategy(scale, images)),
        _streamed_by_block(scale, images),
        alternating_strategy(scale, images),
        _alternating(streamed_code(scale, images)),
        _streamed("gradient", both, _gradient(both, blurred=False), scale, images),
        streamed_gradient(scale, images),
    ]


def streamed_strategy(scale: Scale, images: int) -> Row:
    """Return the row that searches blocks 1 and 2 of every window with an evolution strategy."""
    return _streamed("evolution strategy", (1, 2), _strategy((1, 2), 16), scale, images)


def _streamed_by_block(scale: Scale, images: int) -> Row:
    # Block 2 is small, and the head alone is above it: there candidates say more and cost less.
    both = (1, 2)
    row = _streamed("evolution strategy, 8 and 32 pairs", both, _strategy(both, [8, 32]), scale, images)
    return replace(row, method=_alternating(row).name)


def alternating_strategy(scale: Scale, images: int) -> Row:
    """Return the row that searches on a network that is never stale, with more candidates where they cost less."""
    return replace(_alternating(_streamed_by_block(scale, images)), method="")


def candidate_rows(scale: Scale, images: int) -> list[Row]:
    """Return the row of the evolution strategy with more and fewer candidates, and their limit, the gradient of smooth steps."""
    row = streamed_strategy(scale, images)
    searched = [
        replace(
            row,
            name=f"{2 * pairs} candidates",
            group="candidates",
            settings={**row.settings, "search.strategy": _strategy((1, 2), pairs)},
            x="evaluations",
            method=row.name,
        )
        for pairs in (2, 8, 16, 64)
    ]
    return [*searched, replace(streamed_gradient(scale, images), group="candidates")]


def streamed_code(scale: Scale, images: int) -> Row:
    """Return its control, which goes towards a random code per class in the same way."""
    return _streamed("class code", (1, 2), _code((1, 2)), scale, images)


def streamed_gradient(scale: Scale, images: int) -> Row:
    """Return what a search of smooth steps estimates: the exact gradient, blurred."""
    return _streamed("gradient, blurred", (1, 2), _gradient((1, 2), blurred=True), scale, images)


def _alternating(row: Row) -> Row:
    """Return a streamed row whose windows are searched on the network that learned the one before: nothing overlaps."""
    rounds = {**row.settings["rounds"], "policy": {"name": "streaming", "max_staleness": 0}}
    return replace(row, name=row.name.replace("streaming", "alternating"), settings={**row.settings, "rounds": rounds}, method=row.name)


def _streamed(name: str, layers: Sequence[int], strategy: Mapping[str, Any], scale: Scale, images: int) -> Row:
    windows = math.ceil(images / WINDOW)
    count = scale.base["learn"]["epochs"] * windows
    # Figures stay; targets of a window are of no use once it is learned.
    rounds = {
        "policy": {"name": "streaming", "max_staleness": 1},
        "count": count,
        "examples_per_round": WINDOW,
        "keep": {"rounds": 50},
    }
    return _row(f"streaming, {name}", scale, {**_looped(layers, strategy), "rounds": rounds})


def _row(name: str, scale: Scale, settings: Mapping[str, Any]) -> Row:
    depth = SHALLOW.get(scale.dataset)
    if depth is None:
        return Row(name=name, settings=settings, space=NUDGES)
    return Row(name=name, settings={**settings, DEPTH: depth}, space=NUDGES, fixed=(DEPTH,))


def _looped(layers: Sequence[int], strategy: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "network.batchnorm_momentum": 0.6,
        "search.layers": list(layers),
        "search.start": "network",
        "search.below": "own",
        "search.relative": True,
        "search.strategy": dict(strategy),
        "learn.start": "continue",
        "learn.epochs": 1,
    }


def _strategy(layers: Sequence[int], pairs: int | list[int]) -> dict[str, Any]:
    return {
        "name": "evolution_strategy",
        "pairs": pairs,
        "generations": [1] * len(layers),
        "sigma": [0.3] * len(layers),
        "step": [0.3] * len(layers),
        "blur_passes": [_BLUR[layer] for layer in layers],
    }


def _code(layers: Sequence[int]) -> dict[str, Any]:
    return {"name": "class_code", "blur_passes": [_BLUR[layer] for layer in layers]}


def _gradient(layers: Sequence[int], *, blurred: bool) -> dict[str, Any]:
    blur = [_BLUR[layer] if blurred else 0 for layer in layers]
    return {"name": "gradient", "steps": [1] * len(layers), "step": [0.3] * len(layers), "blur_passes": blur}
