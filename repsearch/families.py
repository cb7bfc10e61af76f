"""Every plug-in family and its members, by name.

A member is one file with one frozen, keyword-only dataclass whose fields are its hyperparameters. To add one, write the file and
add its line here. Members are named by import path, not imported: a leaf may not import a program, and listing names must not load
torch. Members from other packages are found by entry point, group `repsearch.<family>`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import TypeAdapter, ValidationError

from repsearch.errors import ConfigError


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
                    return point.load()  # type: ignore[no-any-return]
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
            return _adapter(member).validate_python(fields)
        except ValidationError as error:
            known = [field.name for field in dataclasses.fields(member)]
            raise ConfigError(describe(error, at=at, known=lambda _: known)) from None

    def resolve(self, table: Mapping[str, Any], *, at: str = "") -> dict[str, Any]:
        """Return `table` with every default filled in, as plain JSON values."""
        member = self.build(table, at=at)
        return {"name": table["name"], **_adapter(type(member)).dump_python(member, mode="json")}


@cache
def _adapter(member: type[Any]) -> TypeAdapter[Any]:
    # Plug-ins are standard dataclasses, so that they need no pydantic; unknown keys are refused here for all of them.
    member.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}
    return TypeAdapter(member)


def nearest(name: str, known: list[str]) -> str:
    """Return `; did you mean 'x'?` for the valid name nearest to `name`, or nothing."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def describe(error: ValidationError, *, at: str, known: Any) -> str:
    """Return one line per fault in `error`: path, what is wrong, the value given, and the nearest valid key for an unknown one."""
    lines = []
    for fault in error.errors():
        path = ".".join(str(part) for part in fault["loc"])
        where = ".".join(part for part in (at, path) if part)
        if fault["type"] == "extra_forbidden":
            key = str(fault["loc"][-1])
            names = known(fault["loc"][:-1])
            lines.append(f"{where}: unknown key {key!r}{nearest(key, names)}; valid keys: {', '.join(names)}")
        elif fault["type"] == "unexpected_keyword_argument":
            key = str(fault["loc"][-1])
            names = known(fault["loc"][:-1])
            lines.append(f"{where}: unknown key {key!r}{nearest(key, names)}; valid keys: {', '.join(names)}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            given = "" if fault["type"] in ("missing", "value_error") else f" (given: {fault['input']!r})"
            lines.append(f"{where}: {message}{given}" if where else f"{message}{given}")
    return "\n".join(lines)


NETWORKS = Family("networks", {"convnet": "repsearch.networks.convnet:ConvNet"})
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
STRATEGIES = Family("strategies", {"evolution": "searcher.strategies.evolution:Evolution"})
OBJECTIVES = Family(
    "objectives",
    {
        "regression": "learner.objectives.regression:Regression",
        "cross_entropy": "learner.objectives.cross_entropy:CrossEntropy",
    },
)
POLICIES = Family(
    "policies",
    {
        "one_shot": "orchestrator.policies.one_shot:OneShot",
        "closed_loop": "orchestrator.policies.closed_loop:ClosedLoop",
        "learn_only": "orchestrator.policies.learn_only:LearnOnly",
    },
)
OPTIMISERS = Family("optimisers", {"sgd": "learner.optimisers.sgd:Sgd", "adamw": "learner.optimisers.adamw:AdamW"})
FAMILIES = {family.name: family for family in (DATASETS, NETWORKS, STRATEGIES, OBJECTIVES, OPTIMISERS, POLICIES)}
