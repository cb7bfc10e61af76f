"""Every plug-in family and its members, by name.

A member is one file with one frozen, keyword-only dataclass whose fields are its hyperparameters. To add one, write the file and
add its line here. Members are named by import path, not imported: a leaf may not import a program, and listing names must not load
torch. Members from other packages are found by entry point, group `repsearch.<family>`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from repsearch.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


@dataclass(frozen=True)
class Family:
    """A named set of plug-ins. `members` maps a name to `module:Class`."""

    name: str
    members: Mapping[str, str]

    def names(self) -> list[str]:
        """Names of the members, built-in first, then those of installed entry points."""
        outside = [point.name for point in entry_points(group=f"repsearch.{self.name}")]
        return [*self.members, *(name for name in outside if name not in self.members)]

    def member(self, name: str, *, at: str = "") -> type[Any]:
        """Return the dataclass of member `name`; `at` is the configuration path for the error message."""
        if name not in self.members:
            for point in entry_points(group=f"repsearch.{self.name}"):
                if point.name == name:
                    return _outside(point, at or self.name)
            raise ConfigError(f"{at or self.name}: unknown name {name!r}{nearest(name, self.names())}; known: {', '.join(self.names())}")
        module, _, attribute = self.members[name].partition(":")
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]

    def build(self, table: Mapping[str, Any], *, at: str = "") -> Any:
        """Return the member that `table` describes (`name` plus its fields); every fault of the table is one line of a `ConfigError`."""
        fields = dict(table)
        name = fields.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(f"{at or self.name}: needs a `name`, one of {', '.join(self.names())}")
        member = self.member(name, at=at)
        try:
            # As JSON, because strict validation of a dataclass takes a mapping from there only.
            return _adapter(member).validate_json(json.dumps(fields, default=str))
        except ValidationError as error:
            known = [field.name for field in dataclasses.fields(member)]
            raise ConfigError(describe(error, at=at, known=lambda _: known)) from None

    def resolve(self, table: Mapping[str, Any], *, at: str = "") -> dict[str, Any]:
        """Return `table` with every default filled in, as plain JSON values."""
        member = self.build(table, at=at)
        return {"name": table["name"], **_adapter(type(member)).dump_python(member, mode="json")}


_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}


def _outside(point: EntryPoint, at: str) -> type[Any]:
    package = point.dist.name if point.dist else "an installed package"
    try:
        member = point.load()
    except Exception as error:
        raise ConfigError(
            f"{at}: plug-in {point.name!r} ({point.value}, from {package}) cannot be imported: {error}; reinstall it"
        ) from error
    if not (isinstance(member, type) and dataclasses.is_dataclass(member)):
        raise ConfigError(f"{at}: plug-in {point.name!r} ({point.value}, from {package}) is not a dataclass; see docs/adding.md")
    return member


def _adapter(member: type[Any]) -> TypeAdapter[Any]:
    # Kept, since making one takes longer than all it is used for.
    if member in _ADAPTERS:
        return _ADAPTERS[member]
    # Plug-ins are standard dataclasses, so that they need no pydantic; unknown keys are refused here for all of them.
    member.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False, "strict": True}
    return _ADAPTERS.setdefault(member, TypeAdapter(member))


def nearest(name: str, known: list[str]) -> str:
    """Return `; did you mean 'x'?` for the valid name nearest to `name`, or nothing."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def describe(error: ValidationError, *, at: str, known: Callable[[tuple[int | str, ...]], list[str]]) -> str:
    """Return one line per fault in `error`: path, what is wrong, the value given, and the nearest valid key for an unknown one.

    `known` maps the location of a table to its valid keys.
    """
    lines: dict[str, str] = {}
    for fault in error.errors():
        where = ".".join(part for part in (at, *map(str, _location(fault))) if part)
        message = _message(fault, known)
        # A value that fits no member of a union has a fault for each; to the reader they are one.
        lines[where] = f"{lines[where]}, or {message}" if where in lines else message
    # Where a fault lies within a value, the member of the union that goes so far is the one that was meant.
    lines = {where: message for where, message in lines.items() if not any(other.startswith(f"{where}.") for other in lines)}
    return "\n".join(f"{where}: {message}" if where else message for where, message in lines.items())


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_PLAIN = {"missing": "is required", "model_type": "should be a table", "dict_type": "should be a table"}
_UNION_MEMBER = re.compile(r"\W|^(int|float|str|bool|none)$")


def _location(fault: ErrorDetails) -> tuple[int | str, ...]:
    # pydantic puts the member of a union that it tried into the location of a fault, such as `int`, `list[int]` or `literal['logits']`.
    location = fault["loc"]
    if fault["type"] in _UNKNOWN:
        return location
    return location[:1] + tuple(part for part in location[1:] if isinstance(part, int) or not _UNION_MEMBER.search(part))


def _message(fault: ErrorDetails, known: Callable[[tuple[int | str, ...]], list[str]]) -> str:
    if fault["type"] in _UNKNOWN:
        key, names = str(fault["loc"][-1]), known(fault["loc"][:-1])
        return f"unknown key {key!r}{nearest(key, names)}; valid keys: {', '.join(names)}"
    message = _PLAIN.get(fault["type"]) or fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return message if fault["type"] in ("missing", "value_error") else f"{message} (given: {fault['input']!r})"


NETWORKS = Family(
    "networks",
    {
        "convnet": "repsearch.networks.convnet:ConvNet",
        "mlp": "repsearch.networks.mlp:Mlp",
        "torchvision": "repsearch.networks.torchvision:Torchvision",
    },
)
DATASETS = Family(
    "datasets",
    {
        "digits": "repsearch.datasets.digits:Digits",
        "mnist": "repsearch.datasets.torchvision:Mnist",
        "fashion_mnist": "repsearch.datasets.torchvision:FashionMnist",
        "cifar10": "repsearch.datasets.torchvision:Cifar10",
        "cifar100": "repsearch.datasets.torchvision:Cifar100",
        "image_folder": "repsearch.datasets.image_folder:ImageFolder",
    },
)
STRATEGIES = Family(
    "strategies",
    {
        "evolution": "searcher.strategies.evolution:Evolution",
        "evolution_strategy": "searcher.strategies.evolution_strategy:EvolutionStrategy",
        "quality_diversity": "searcher.strategies.quality_diversity:QualityDiversity",
        "random_search": "searcher.strategies.random_search:RandomSearch",
        "gradient": "searcher.strategies.gradient:Gradient",
        "class_code": "searcher.strategies.class_code:ClassCode",
        "none": "searcher.strategies.none:OwnRepresentation",
    },
)
OBJECTIVES = Family(
    "objectives",
    {
        "regression": "learner.objectives.regression:Regression",
        "cross_entropy": "learner.objectives.cross_entropy:CrossEntropy",
        "local_cross_entropy": "learner.objectives.local_cross_entropy:LocalCrossEntropy",
        "generalised_cross_entropy": "learner.objectives.generalised_cross_entropy:GeneralisedCrossEntropy",
    },
)
POLICIES = Family(
    "policies",
    {
        "one_shot": "orchestrator.policies.one_shot:OneShot",
        "closed_loop": "orchestrator.policies.closed_loop:ClosedLoop",
        "streaming": "orchestrator.policies.streaming:Streaming",
        "code_search": "orchestrator.policies.code_search:CodeSearch",
        "learn_only": "orchestrator.policies.learn_only:LearnOnly",
    },
)
RULES = Family(
    "rules",
    {
        "backprop": "learner.rules.backprop:Backprop",
        "forward_gradient": "learner.rules.forward_gradient:ForwardGradient",
        "weight_perturbation": "learner.rules.weight_perturbation:WeightPerturbation",
        "node_perturbation": "learner.rules.node_perturbation:NodePerturbation",
        "feedback_alignment": "learner.rules.feedback_alignment:FeedbackAlignment",
        "target_propagation": "learner.rules.target_propagation:TargetPropagation",
        "alopex": "learner.rules.alopex:Alopex",
    },
)
OPTIMISERS = Family("optimisers", {"sgd": "learner.optimisers.sgd:Sgd", "adamw": "learner.optimisers.adamw:AdamW"})
FAMILIES = {family.name: family for family in (DATASETS, NETWORKS, STRATEGIES, OBJECTIVES, RULES, OPTIMISERS, POLICIES)}
