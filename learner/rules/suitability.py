"""Networks and settings that a rule of paired passes cannot serve, refused before anything is learned.

Two passes of the same examples must differ by the disturbance alone. What a network's modules are tells most of it; running it on a few
made-up examples tells the rest: work in place, a pass that cannot be repeated, examples that depend on one another, layers that do not run
once each.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from learner.batches import Batch
from learner.forward import loss_function
from learner.objectives.base import LearningObjective, Reading, target_name
from learner.objectives.classifiers import classifiers_of
from learner.rules.base import Problem
from learner.rules.layers import Layer, running
from learner.rules.passes import Pass, example_losses, layers_of, loss_of, part_losses, parts_of, run, taught_parameters
from repsearch.config import LOGITS
from repsearch.errors import ConfigError
from repsearch.networks import SearchableNetwork
from repsearch.networks.standardising import Standardise

EXAMPLES = 4
_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
MOST_ROUNDING = 0.01
"""Share of rounding in the differences that a rule measures, above which it warns."""

log = logging.getLogger(__name__)


def check_precision(problem: Problem, name: str) -> None:
    """Raise `ConfigError` for a precision or compilation that paired passes do not go with."""
    if problem.learn.precision != "float32":
        raise ConfigError(
            f"learn.precision: rule {name!r} measures small differences of losses, which {problem.learn.precision} rounds away; set it "
            'to "float32"'
        )
    if problem.learn.compile:
        raise ConfigError(f"learn.compile: rule {name!r} runs the network in passes of its own, which are not compiled; set it to false")


def check_pairs(problem: Problem, name: str) -> None:
    """Raise `ConfigError` naming the first module whose passes differ by more than a disturbance, or an objective without shares."""
    check_precision(problem, name)
    for path, module in problem.network.named_modules():
        reason = _unpaired(module)
        if reason:
            raise ConfigError(f"learn.rule: {name!r} cannot serve layer {path}: {reason}")
    _check_runs(problem, name)


def check_no_classifiers(problem: Problem, name: str) -> None:
    """Raise `ConfigError` for an objective with classifiers of blocks, which the rule has no signal for."""
    if problem.objective.reading.classifiers:
        raise ConfigError(
            f"learn.rule: {name!r} has nothing to teach the blocks' own classifiers by; take rule backprop, forward_gradient, "
            "weight_perturbation or node_perturbation, or objective cross_entropy"
        )


def check_formulas(problem: Problem, name: str) -> None:
    """Raise `ConfigError` naming the first layer that the rule has no formula for, or that runs other than once."""
    check_owners(problem, name)
    _check_order(problem, layers_of(problem), name)


def check_owners(problem: Problem, name: str, *, norms: bool = False) -> None:
    """Raise `ConfigError` naming the first parameter of anything but linear maps and convolutions (and, with `norms`, normalisations)."""
    layers = layers_of(problem)
    owned = {id(parameter) for layer in layers for parameter in layer.module.parameters()}
    for path, parameter in taught_parameters(problem).items():
        owner = problem.network.get_submodule(path.rpartition(".")[0])
        if id(parameter) not in owned and not (norms and isinstance(owner, _NORMS)):
            raise ConfigError(
                f"learn.rule: {name!r} has no formula for layer {path.rpartition('.')[0]} ({type(owner).__name__}); take a network of "
                'linear maps and convolutions with batchnorm off, or rule forward_gradient with perturb = "weights"'
            )
    for layer in layers:
        module = layer.module
        if isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or _uneven(module)):
            raise ConfigError(
                f"learn.rule: {name!r} has no formula for the padding of layer {layer.name}; pad with zeros, alike on all sides"
            )


def _uneven(module: nn.Conv2d) -> bool:
    return module.padding == "same" and any(size % 2 == 0 for size in module.kernel_size)


def made_up_batch(problem: Problem, examples: int = EXAMPLES) -> Batch:
    """Return random images, labels and targets that fit `problem`, the same every time."""
    network, rng = problem.network, torch.Generator().manual_seed(0)
    device = network.mean.device
    images = torch.randint(0, 256, (examples, *network.input_shape), generator=rng, dtype=torch.uint8)
    labels = torch.arange(examples) % network.classes
    layers = {target_name(layer): network.layer_shape(layer) for layer in range(network.logits_layer)} | {LOGITS: (network.classes,)}
    targets = {name: torch.randn((examples, *shape), generator=rng).to(device) for name, shape in layers.items()}
    return Batch(images.to(device), labels.to(device), targets)


def warn_of_rounding(problem: Problem, differences: Callable[[Problem, Batch], Tensor], setting: str, value: float) -> None:
    """Warn with the number if precision swamps the loss differences that `differences` gives for a batch."""
    batch = made_up_batch(problem)
    if problem.objective.reading.classifiers:
        problem = _on(problem, _with_drawn_classifiers(problem.network))
    exact = _on(problem, copy.deepcopy(problem.network).double())
    with torch.no_grad():
        own, true = differences(problem, batch).double(), differences(exact, batch)
    rounding = float((own - true).norm() / true.norm().clamp_min(torch.finfo(torch.float64).tiny))
    if not rounding < MOST_ROUNDING:
        log.warning(
            "learn.rule.%s: with %g, rounding is %.2g of the loss differences that the rule measures; raise it tenfold or more",
            setting,
            value,
            rounding,
        )


def _on(problem: Problem, network: SearchableNetwork) -> Problem:
    loss_of = loss_function(network, problem.objective, problem.learn, relative=problem.relative)
    return replace(problem, network=network, loss_of=loss_of)


def _with_drawn_classifiers(network: SearchableNetwork) -> SearchableNetwork:
    """Return a copy of the network whose classifiers pass disturbances on: at first they are 0."""
    copied, rng = copy.deepcopy(network), torch.Generator().manual_seed(0)
    for classifier in classifiers_of(copied):
        drawn = torch.randn(classifier.weight.shape, generator=rng) / classifier.weight.shape[1] ** 0.5
        classifier.weight.data.copy_(drawn)
    return copied


def _unpaired(module: nn.Module) -> str:
    if isinstance(module, _BatchNorm):
        return (
            "it normalises by the statistics of a batch, which a disturbance changes for every example; set network.batchnorm off "
            '(`mlp`: false, `convnet`: "none"), or take rule feedback_alignment or backprop'
        )
    if isinstance(module, Standardise):
        return "it takes running statistics of every pass; take network `mlp` or `convnet` with batchnorm off"
    if isinstance(module, _DropoutNd) and module.p > 0:
        return f"it drops other units in every pass (p = {module.p}); set its p to 0"
    if getattr(module, "inplace", False):
        return "it works in place, on values that the rule reads again; set inplace = False"
    return ""


def _check_runs(problem: Problem, name: str) -> None:
    """Run the network on made-up examples and compare what must be equal."""
    batch, network = made_up_batch(problem), problem.network
    # Every block is looked at, also where the objective reads the last alone.
    problem = replace(problem, objective=_Reading(problem.objective, replace(problem.objective.reading, last_only=False)))
    places = [*(f"blocks.{block}" for block in range(network.logits_layer)), "head"]
    training = network.training
    network.train()
    try:
        with torch.no_grad():
            passes = [run(problem, batch.images) for _ in range(2)]
            alone = run(problem, batch.images[:1])
            losses = example_losses(problem, passes[0], batch)
            loss = loss_of(problem, passes[0], batch)
    finally:
        network.train(training)
    place = _first_difference(places, passes[0], passes[1])
    if place:
        raise ConfigError(f"learn.rule: {name!r} needs passes that can be repeated, and two of {place} differ; leave out what is random")
    place = _first_difference(places, passes[0], alone)
    if place:
        raise ConfigError(f"learn.rule: {name!r} needs examples that do not depend on one another, as they do in {place}; change it")
    parts = parts_of(network, problem.objective.reading)
    whole = part_losses(problem, loss)
    if len(parts) > 1 and not loss.shares:
        raise ConfigError(f"learn.objective: it isolates blocks without saying what each learns from; rule {name!r} needs `Loss.shares`")
    if not torch.allclose(losses.mean(1), whole, rtol=1e-3, atol=1e-5):
        raise ConfigError(f"learn.objective: its loss is not a mean over examples, which rule {name!r} needs; take another objective")


@dataclass(frozen=True)
class _Reading:
    """An objective that has the network run in another way."""

    objective: LearningObjective
    reading: Reading

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)


def _first_difference(places: Sequence[str], one: Pass, other: Pass) -> str:
    for place, a, b in zip(places, [*one.blocks, one.logits], [*other.blocks, other.logits], strict=True):
        count = min(len(a), len(b))
        if not torch.allclose(a[:count], b[:count], rtol=1e-3, atol=1e-4):
            return place
    return ""


def _check_order(problem: Problem, layers: list[Layer], name: str) -> None:
    """Raise `ConfigError` unless every layer runs once, in the order of the modules, and leaves its output alone."""
    order: list[int] = []
    outputs: list[tuple[Layer, Tensor, int]] = []

    def forward(number: int, input_BY: Tensor) -> Tensor:
        order.append(number)
        output = layers[number].run(input_BY)
        outputs.append((layers[number], output, output._version))
        return output

    with torch.no_grad(), running(layers, forward):
        run(problem, made_up_batch(problem).images)
    for number, layer in enumerate(layers):
        if order.count(number) != 1:
            raise ConfigError(
                f"learn.rule: {name!r} needs every layer to run once per pass, and {layer.name} runs {order.count(number)} times; use a "
                "layer of its own for each"
            )
    if order != sorted(order):
        late = next(after for before, after in itertools.pairwise(order) if after < before)
        raise ConfigError(f"learn.rule: {name!r} needs layers defined in the order in which they run; move {layers[late].name} up")
    for layer, output, version in outputs:
        if output._version != version:
            raise ConfigError(f"learn.rule: {name!r} reads the output of layer {layer.name} again, which is changed in place; do not")
