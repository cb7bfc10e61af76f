"""Rows of the tables about learning without backpropagation: rules as published, and rules that learn blocks from searched targets.

Both tables are of fully connected networks, so they bring a base of their own. Published settings that no choice is made of have their
learning rate alone to choose from. Adam is `adamw` without decay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.evidence.rows import LEARN_ONCE, Row
from orchestrator.evidence.scales import LR, Scale

RATES = {"low": 3e-4, "high": 1e-2, "log": True}
DECORRELATE = {"rate": 1e-3, "share": 0.1}
NARROW, WIDE = [64, 64], [1024, 1024, 1024]
PLAIN = {"name": "mlp", "batchnorm": False, "activation": "leaky_relu", "normalise": False}
EPOCHS, LOCAL_EPOCHS = 20, 8
PASSES = 8
"""Noisy passes, or directions, of the rules in the table of local targets."""
_SPACE = {LR: RATES}
_WHOLE_WEIGHTS = {LR: {"low": 3e-5, "high": 1e-3, "log": True}}
"""Rates of a rule that estimates the gradient of all weights together."""
WIDER = 512
"""Units of the blocks of the wider rows of local targets; the others have 128."""


_EVOLUTION: dict[str, Any] = {
    "name": "evolution",
    "population": 12,
    "parents": 2,
    "explorers": 4,
    "refiners": 6,
    "generations": [6, 6, 2],
    "strength": [0.3, 0.2, 0.1],
    "boost": [5.0, 3.0, 1.0],
    "blur_passes": [0, 0, 0],
}
EVALUATIONS: int = _EVOLUTION["population"] * len(_EVOLUTION["generations"]) + (_EVOLUTION["explorers"] + _EVOLUTION["refiners"]) * sum(
    _EVOLUTION["generations"]
)
"""Per image and round of the search of local targets: every layer's first population, then each generation's children."""


def published_scale(scale: Scale) -> Scale:
    """Return `scale` with the network and learning of Dalm et al., 20 epochs of batches of 500."""
    learn = {
        "objective": "cross_entropy",
        "optimiser": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.0},
        "epochs": EPOCHS,
        "batch_size": 500,
        "schedule": "constant",
    }
    base = {**scale.base, "network": {**PLAIN, "widths": NARROW}, "learn": learn, "rounds": LEARN_ONCE}
    del base["search"]
    return replace(scale, base=base, space=_SPACE, sampler="sobol")


def published_rows(scale: Scale, images: int) -> list[Row]:
    """Return backpropagation and node perturbation, plain and decorrelated, narrow (MNIST) and wide; on MNIST, forward gradients."""
    narrow = [_published(name, rule, "64-64", NARROW) for name, rule in _variants().items()]
    wide = [_published(name, rule, "1024-1024-1024", WIDE) for name, rule in _variants().items()]
    return [*narrow, *wide, *_baydin(), *_ren()] if scale.dataset == "mnist" else wide


def _variants() -> dict[str, Mapping[str, Any]]:
    perturbed: dict[str, dict[str, Any]] = {
        name: {"name": "node_perturbation", "variant": name, "noise_std": 1e-2} for name in ("np", "inp", "anp")
    }
    plain: dict[str, dict[str, Any]] = {"backprop": {"name": "backprop"}, **{name.upper(): rule for name, rule in perturbed.items()}}
    names = {"backprop": "DBP", "NP": "DNP", "INP": "DINP", "ANP": "DANP"}
    return {**plain, **{names[name]: {**rule, "decorrelate": DECORRELATE} for name, rule in plain.items()}}


def _published(name: str, rule: Mapping[str, Any], group: str, widths: Sequence[int]) -> Row:
    return Row(name=name, group=group, settings={"network.widths": list(widths), "learn.rule": dict(rule)})


def _baydin() -> list[Row]:
    """Return forward gradients at the learning rate of Baydin et al., with backpropagation at that rate and at its own."""
    settings = {
        "network.widths": [1024, 1024],
        "network.activation": "relu",
        "learn.batch_size": 64,
        "learn.epochs": 6,
        "learn.optimiser": {"name": "sgd", "momentum": 0.0, "nesterov": False, "lr": 2e-4},
    }

    def row(title: str, rates: Any, name: str, **rule: Any) -> Row:
        values = {**settings, "learn.rule": {"name": name, **rule}}
        return Row(name=title, group="1024-1024, SGD", settings=values, space={LR: rates}, curves=("loss", "validation_accuracy"))

    tuned = {"low": 1e-3, "high": 0.3, "log": True}
    return [
        row("backprop, tuned", tuned, "backprop"),
        row("backprop, 2e-4", [2e-4], "backprop"),
        row("forward gradient, 2e-4", [2e-4], "forward_gradient"),
        row("forward gradient, rademacher, 2e-4", [2e-4], "forward_gradient", directions="rademacher"),
        row("forward gradient, tuned", {"low": 2e-5, "high": 1e-3, "log": True}, "forward_gradient"),
    ]


def _ren() -> list[Row]:
    """Return the rows of MNIST in table 3 of Ren et al.: networks S/1/1 and M/1/16, of one block of two layers, the second in groups."""
    sgd = {"name": "sgd", "momentum": 0.0, "nesterov": False, "weight_decay": 1e-4, "lr": 0.1}
    settings = {"network.activation": "relu", "network.layers": 2, "learn.batch_size": 100, "learn.optimiser": sgd}
    backprop, weights = {"name": "backprop"}, {"name": "forward_gradient"}
    activities = {"name": "forward_gradient", "perturb": "activities", "mask": True}

    def row(group: str, width: int, groups: int, name: str, rule: Mapping[str, Any], low: float, high: float) -> Row:
        values = {**settings, "network.widths": [width], "network.groups": groups, "learn.rule": rule}
        if name.startswith("LG-"):
            values["learn.objective"] = {"name": "local_cross_entropy", "groups": groups}
        # What a rule's variance allows: above, runs of few epochs diverge.
        return Row(name=name, group=group, settings=values, space={LR: {"low": low, "high": high, "log": True}})

    def narrow(name: str, rule: Mapping[str, Any], low: float, high: float) -> Row:
        return row("256, SGD", 256, 1, name, rule, low, high)

    def wide(name: str, rule: Mapping[str, Any], low: float, high: float) -> Row:
        return row("512 in 16 groups, SGD", 512, 16, name, rule, low, high)

    return [
        narrow("BP", backprop, 0.03, 0.4),
        narrow("FG-W", weights, 1e-4, 8e-4),
        narrow("FG-A", activities, 2e-3, 2e-2),
        narrow("FA", {"name": "feedback_alignment"}, 0.02, 0.2),
        narrow("LG-FG-A", activities, 4e-3, 4e-2),
        wide("BP", backprop, 0.03, 0.4),
        wide("FG-W", weights, 1e-4, 8e-4),
        wide("FG-A", activities, 2e-3, 2e-2),
        wide("LG-BP", backprop, 0.03, 0.4),
        wide("LG-FG-W", weights, 1.5e-3, 1.5e-2),
        wide("LG-FG-A", activities, 0.01, 0.1),
    ]


PUBLISHED_NOTES = """**Matched** to the published setting (ANP 92.9 ± 0.2 % on MNIST with 64-64, DANP 96.4 % with three layers of 1024, both
over 20 epochs; a third party's reproduction with the authors' code): layers, leaky ReLU of slope 0.2, cross-entropy, Adam with its usual
averages and a constant rate, batches of 500, Gaussian noise of 0.01 on every pre-activation, one noisy pass, 20 epochs. Forward gradients:
layers, ReLU, batches of 64, SGD without momentum, 2e-4, one Gaussian direction per batch, 6 epochs. Networks of 256 and of 512 units in 16
groups (Ren et al., MNIST S/1/1 and M/1/16, test errors published: BP 2.66 and 2.41 %, FA 2.82, FG-W 9.25 and 8.56, FG-A 3.24 and 3.76,
LG-FG-W 5.66, LG-FG-A 3.24 and 2.55; 200 epochs): one block of two layers, the second in groups, ReLU, SGD without momentum, batches of
100, decay of 1e-4, Gaussian directions, per example over activities and with the ReLU's mask; in rows of `LG-` a loss per group, with a
classifier that starts at 0 and, as the head, learns by its own gradient. **Not matched**: the number of training images and epochs where
a section says others; images are standardised; weights are drawn evenly (Kaiming), not normally; the learning rate is chosen on
validation; decorrelation looks at a tenth of a batch; the rate of forward gradients does not decay; of Ren et al., the LayerNorm after
each layer, a rate of a tenth for the head, and the rate's linear decay; rows of `FG-` estimate the head's gradient too."""


def local_scale(scale: Scale) -> Scale:
    """Return `scale` with a fully connected network that search can serve, and a search of few evaluations."""
    search = {"layers": [0, 1, "logits"], "start": "network", "strategy": _EVOLUTION}
    base = {
        **scale.base,
        "network": {"name": "mlp", "widths": [128, 128], "batchnorm": False},
        "search": search,
        "learn": {"objective": "regression", "optimiser": {"name": "adamw", "lr": 2e-3}, "epochs": LOCAL_EPOCHS, "batch_size": 100},
        "rounds": {"policy": "closed_loop", "count": 2},
    }
    return replace(scale, base=base, space=_SPACE, sampler="sobol")


def local_rows(scale: Scale, images: int) -> list[Row]:
    """Return blocks that learn searched targets by themselves, beside the same rules through the whole network at equal evaluations."""
    epochs, rounds = scale.base["learn"]["epochs"], 2
    isolated = {"learn.objective": {"name": "regression", "isolate": True, "head_weight": 1.0}}
    rules = {
        "forward gradient": {"name": "forward_gradient", "perturb": "activities", "directions": "rademacher", "draws": PASSES},
        "node perturbation": {"name": "node_perturbation", "noise": "rademacher", "passes": PASSES},
    }
    units = {"learn.objective": {**isolated["learn.objective"], "groups": scale.base["network"]["widths"][0]}}
    by_unit = {
        "forward gradient": {**rules["forward gradient"], "draws": 1},
        "node perturbation": {**rules["node perturbation"], "passes": 1, "noise_std": 1e-2},
    }
    weights = {"name": "forward_gradient", "directions": "rademacher", "draws": PASSES}
    # Candidates that search evaluates, and passes that learning takes, are both passes of an image.
    searched = rounds * EVALUATIONS
    whole = {
        "learn.objective.name": "cross_entropy",
        "rounds": LEARN_ONCE,
        "learn.epochs": rounds * epochs + round(searched / (1 + PASSES)),
    }
    return [
        Row(name="backprop, regression"),
        Row(name="backprop, isolated regression", settings=isolated),
        Row(name="backprop, cross-entropy", settings={**whole, "learn.epochs": rounds * epochs}),
        *(Row(name=f"{name}, isolated regression", settings={**isolated, "learn.rule": rule}) for name, rule in rules.items()),
        *(Row(name=f"{name}, isolated regression by unit", settings={**units, "learn.rule": rule}) for name, rule in by_unit.items()),
        *(Row(name=f"{name}, cross-entropy", settings={**whole, "learn.rule": rule}) for name, rule in rules.items()),
        Row(
            name="forward gradient over weights, cross-entropy",
            settings={**whole, "learn.rule": weights},
            space=_WHOLE_WEIGHTS,
        ),
        *_wider_local_rows(isolated["learn.objective"], by_unit["node perturbation"], weights, epochs=rounds * epochs, searched=searched),
    ]


def _wider_local_rows(
    isolated: Mapping[str, Any], by_unit: Mapping[str, Any], weights: Mapping[str, Any], *, epochs: int, searched: int
) -> list[Row]:
    """Return the same with more parameters, with which the variance of a rule over weights grows, and that of one by unit does not."""
    group, wide = f"{WIDER}-{WIDER}", {"network.widths": [WIDER, WIDER]}
    whole = {**wide, "learn.objective.name": "cross_entropy", "rounds": LEARN_ONCE}
    # A row by unit takes two passes of an image in an epoch, besides those of its search.
    longer = round((searched + 2 * epochs) / (1 + PASSES))
    return [
        Row(name="backprop, isolated regression", group=group, settings={**wide, "learn.objective": isolated}),
        Row(name="backprop, cross-entropy", group=group, settings={**whole, "learn.epochs": epochs}),
        Row(
            name="node perturbation, isolated regression by unit",
            group=group,
            settings={**wide, "learn.objective": {**isolated, "groups": WIDER}, "learn.rule": by_unit},
        ),
        Row(
            name="forward gradient over weights, cross-entropy",
            group=group,
            settings={**whole, "learn.epochs": longer, "learn.rule": weights},
            space=_WHOLE_WEIGHTS,
        ),
    ]


LOCAL_NOTES = f"""Rows of `isolated regression` learn every block from searched targets of its own, within the block alone: with a rule
other than backprop, nothing goes backward through the network in search or in learning. Rules have {PASSES} draws. In rows `by unit` every
unit of a block has a copy of the block's error of its own (`learn.objective.groups`), and rules have one draw. Rows of a rule on
`cross-entropy` go through the whole network, with as many more epochs as search has evaluations (a candidate evaluated, and a pass forward
of an image, count alike), which is more than its share: a candidate is evaluated in the layers above it alone. Of blocks of 128 units these
epochs are counted by the rows with {PASSES} draws, of {WIDER} units by the row `by unit`."""
