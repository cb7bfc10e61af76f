"""Everything that can be checked before anything starts: bad input starts nothing and writes nothing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import repsearch
from orchestrator.policies import RoundPlan, RoundPolicy, make_policy, variants_of
from orchestrator.remote import check_store_root
from orchestrator.report import RoundReport, imagined
from orchestrator.runs import check_root, run_root
from repsearch.archives import check_archive
from repsearch.codes import code_of
from repsearch.config import LOGITS, RunConfig, TlsConfig, learn_digest, search_digest
from repsearch.errors import ConfigError, DaemonError
from repsearch.families import NETWORKS, OBJECTIVES, STRATEGIES
from repsearch.windows import Window, evaluated, windows_of

if TYPE_CHECKING:
    from repsearch.datasets.base import Data
    from repsearch.networks.base import SearchableNetwork

Shape = tuple[int, ...]
_LIBRARIES = ("torch", "torchvision", "numpy", "zarr", "mlflow", "grpcio", "protobuf", "pydantic")


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What the checks found.

    dataset: name, digest, classes, train, validation, test (numbers of examples), input_shape.
    layers: names of the search layers with their shapes, in order of search; empty for a policy that does not search.
    evaluations: candidate evaluations per example and search; None if the strategy does not say.
    """

    config: RunConfig
    dataset: Mapping[str, Any]
    layers: Mapping[str, Shape]
    evaluations: int | None

    @property
    def searches(self) -> bool:
        """Whether the run's rounds search."""
        return bool(self.layers)

    def digests(self) -> dict[str, str]:
        """Digests of what determines the results: search, learn, dataset."""
        return {"search": search_digest(self.config), "learn": learn_digest(self.config), "dataset": self.dataset["digest"]}

    def shards(self) -> list[tuple[int, int]]:
        """(first example, number of examples) of each shard of round 0; none if their size follows from the speed."""
        size = self.config.searcher.shard_examples
        return [] if size == "auto" else shards_of(windows_of(self.config, self.dataset["train"]).of(0), size)

    def plans(self) -> list[RoundPlan]:
        """The rounds that the policy plans if every one is better than the one before and takes no time."""
        return planned(make_policy(self.config), self.config, self.dataset["train"])

    def evaluations_of(self, plan: RoundPlan) -> int | None:
        """Candidate evaluations per example of a round's search; None if the strategy does not say."""
        return _evaluations(plan.config(self.config)) if plan.changes and self.searches else self.evaluations


def check_run(config: RunConfig, data: Data | None = None) -> Preflight:
    """Check `config` against the data, the machine and itself; raises the `RepSearchError` of the first fault found.

    Loads the data, so that a fault of theirs is found here, and drops them again; `data`: the same, for who has loaded them already.
    """
    policy = make_policy(config)
    policy.check(config)
    check_root(run_root(config))
    check_store_root(config.store.root)
    _check_objective(config, policy)
    _check_targets(config)
    _check_devices(config)
    _check_tls(config)
    data = data or _load(config)
    shapes = _check_networks(config, data)
    _check_reading(config, policy, len(shapes))
    layers, evaluations = _check_searches(config, policy, shapes, data) if policy.searches else ({}, None)
    if config.learn.batch_size > len(data.train):
        raise ConfigError(f"learn.batch_size: {config.learn.batch_size} is more than the {len(data.train)} training examples; lower it")
    check_windows(config, len(data.train))
    return Preflight(config=config, dataset=_facts(config, data), layers=layers, evaluations=evaluations)


def planned(policy: RoundPolicy, config: RunConfig, examples: int) -> list[RoundPlan]:
    """Return the rounds that `policy` plans for `examples` training examples if each is better than the one before and takes no time."""
    plans, reports, windows = list[RoundPlan](), list[RoundReport](), windows_of(config, examples)
    known: tuple[Mapping[str, Any], int] | None = None
    while (plan := policy.next(reports, config)) is not None:
        plans.append(plan)
        if plan.search and (known is None or known[0] != plan.changes):
            # Built once for rounds of the same settings: there may be thousands.
            known = (plan.changes, _evaluations(plan.config(config)))
        evaluations = known[1] if plan.search and known is not None else 0
        share = windows.of(plan.round).count / examples
        reports.append(imagined(plan.round, evaluations, share=share, measured=evaluated(config, examples, plan.round)))
    return plans


def check_windows(config: RunConfig, examples: int) -> None:
    """Raise `ConfigError` where windows, learning that goes on, or measuring now and then does not fit the rest of `config`."""
    size, learn = config.rounds.examples_per_round, config.learn
    if size is not None and size > examples:
        raise ConfigError(f"rounds.examples_per_round: {size} is more than the {examples} training examples; lower it, or leave it out")
    if size is not None and learn.batch_size > size:
        raise ConfigError(f"learn.batch_size: {learn.batch_size} is more than the {size} examples of a round; lower it")
    if size is not None and examples % size == 1:
        raise ConfigError(
            f"rounds.examples_per_round: of {examples} training examples in windows of {size}, the last is of a single one, from which "
            "nothing can be learned; choose another size"
        )
    choosing = [name for name, wanted in (('keep = "best"', learn.keep == "best"), ("patience", learn.patience is not None)) if wanted]
    if choosing and learn.start == "continue":
        raise ConfigError(f'learn.{choosing[0]}: learning that goes on from round to round (learn.start = "continue") keeps its last epoch')
    if choosing and not all(evaluated(config, examples, round) for round in range(config.rounds.count)):
        raise ConfigError(f"learn.{choosing[0]}: needs every round measured on validation; set rounds.evaluate_every = 1, or leave it out")


def shards_of(window: Window, size: int) -> list[tuple[int, int]]:
    """Return (first, count) of each shard of `size` examples of a window; the last one may be smaller."""
    end = window.first + window.count
    return [(first, min(size, end - first)) for first in range(window.first, end, size)]


def library_versions() -> dict[str, str]:
    """Return versions of this package and of the libraries that results depend on."""
    return {"repsearch": repsearch.__version__, **{name: version(name) for name in _LIBRARIES}}


def _load(config: RunConfig) -> Data:
    from repsearch.datasets import load_data

    return load_data(config.dataset, seed=config.run.seed)


def _facts(config: RunConfig, data: Data) -> dict[str, Any]:
    sizes = {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
    sizes |= {} if data.fitness is None else {"fitness": len(data.fitness)}
    return {"name": data.name, "digest": data.digest, "classes": list(data.classes), **sizes, "input_shape": list(data.input_shape)}


def _check_objective(config: RunConfig, policy: RoundPolicy) -> None:
    objective, name = OBJECTIVES.build(config.learn.objective, at="learn.objective"), config.learn.objective["name"]
    targets = objective.needs_targets(config.search.layers)
    if policy.searches and not targets:
        raise ConfigError(
            f"rounds.policy: {config.rounds.policy['name']} searches targets, but the objective {name} learns from labels alone; "
            'set rounds.policy = "learn_only", or learn.objective = "regression"'
        )
    if targets and not policy.searches:
        raise ConfigError(
            f"rounds.policy: {config.rounds.policy['name']} searches nothing, but the objective {name} learns from searched targets; "
            'set learn.objective = "cross_entropy", or rounds.policy = "closed_loop"'
        )


def _check_targets(config: RunConfig) -> None:
    wanted, there = config.learn.targets, config.search.searches_per_example
    if isinstance(wanted, int) and wanted >= there:
        raise ConfigError(
            f"learn.targets: result {wanted} is not there: images have {there} (search.searches_per_example), numbered from 0; "
            f"raise that to {wanted + 1}, or choose 0 to {there - 1}"
        )


def _check_networks(config: RunConfig, data: Data) -> tuple[Shape, ...]:
    shapes: tuple[Shape, ...] = NETWORKS.build(config.network, at="network").check(data.input_shape)
    searched: tuple[Shape, ...] = NETWORKS.build(config.search_network(), at="search.network").check(data.input_shape)
    if searched != shapes:
        raise ConfigError(
            f"search.network: its block outputs {_text(searched)} differ from the learned network's {_text(shapes)}; "
            "the two may differ in depth inside a block, not in the shapes of what blocks put out"
        )
    return shapes


def _check_reading(config: RunConfig, policy: RoundPolicy, blocks: int) -> None:
    """Refuse an objective or a search that the kind of network cannot serve."""
    from repsearch.networks import depends_on_batch, outputs_of_blocks

    learned = NETWORKS.build(config.network, at="network")
    OBJECTIVES.build(config.learn.objective, at="learn.objective").check(config.search.layers, blocks, outputs_of_blocks(learned))
    why = "normalises by the statistics of the batch at hand, so an image's candidates would depend on the images beside it"
    if policy.searches and depends_on_batch(NETWORKS.build(config.search_network(), at="search.network")):
        raise ConfigError(f'search.network: the searched network {why}; set search.network.batchnorm = "running"')
    if policy.searches and config.rounds.count > 1 and depends_on_batch(learned):
        raise ConfigError(
            f'network: the learned network, which round 1 searches, {why}; set network.batchnorm = "running", or rounds.count = 1'
        )


def _check_searches(config: RunConfig, policy: RoundPolicy, shapes: tuple[Shape, ...], data: Data) -> tuple[dict[str, Shape], int | None]:
    """Check the run's search and every other one that a round may have; return the layers and evaluations of the run's."""
    from repsearch.search_memory import networks_searched

    networks = networks_searched(config, data)
    found = _check_search(config, shapes, data, networks)
    _check_changes(config, policy, shapes, data, networks)
    return found


def _check_search(
    config: RunConfig, shapes: tuple[Shape, ...], data: Data, networks: Sequence[SearchableNetwork]
) -> tuple[dict[str, Shape], int | None]:
    from repsearch.networks import layer_name
    from repsearch.search_memory import tile_of

    layers = config.search.layers
    for layer in layers:
        if isinstance(layer, int) and not 0 <= layer < len(shapes):
            raise ConfigError(f"search.layers: layer {layer} is not there: the network has blocks 0 to {len(shapes) - 1}, and {LOGITS!r}")
    numbers = [len(shapes) if layer == LOGITS else int(layer) for layer in layers]
    if any(after <= before for before, after in itertools.pairwise(numbers)):
        raise ConfigError(f"search.layers: {layers} is not in increasing order; list each layer once, from the input up, {LOGITS!r} last")
    searched = [(len(data.classes),) if layer == LOGITS else shapes[int(layer)] for layer in layers]
    strategy = STRATEGIES.build(config.search.strategy, at="search.strategy")
    check_archive(config.search, strategy)
    if hasattr(strategy, "check"):
        strategy.check(layers, searched)
    code_of(config.search, searched)
    tile_of(config, data, strategy, networks)
    return {layer_name(number, len(shapes)): shape for number, shape in zip(numbers, searched, strict=True)}, _evaluations(config)


def _evaluations(config: RunConfig) -> int:
    """Return the candidate evaluations per example of a search."""
    strategy = STRATEGIES.build(config.search.strategy, at="search.strategy")
    searches = 1 if strategy.traits.several else config.search.searches_per_example
    counted: int = searches * sum(strategy.evaluations(position) for position in range(len(config.search.layers)))
    if strategy.traits.chooses and strategy.traits.measured and config.search.remade:
        # A mixed target is another representation than what was evaluated.
        counted += config.search.searches_per_example * len(config.search.layers)
    return counted


def _check_changes(
    config: RunConfig, policy: RoundPolicy, shapes: tuple[Shape, ...], data: Data, networks: Sequence[SearchableNetwork]
) -> None:
    """Check every search that a round may have as that of the run was checked."""
    checked: list[Mapping[str, Any]] = [{}]
    for plan in planned(policy, config, len(data.train)):
        for each in (plan, *variants_of(policy, plan, config)):
            if each.changes in checked:
                continue
            checked.append(each.changes)
            try:
                own = each.config(config)
                _check_objective(own, policy)
                _check_targets(own)
                _check_reading(own, policy, len(shapes))
                _check_search(own, shapes, data, networks)
            except ConfigError as error:
                raise ConfigError(f"round {each.round}, with {json.dumps(each.changes)}: {error}") from None


def _check_devices(config: RunConfig) -> None:
    """Refuse a device for local daemons that this machine lacks; daemons at addresses answer for their own."""
    wanted = [] if config.searcher.addresses else [("searcher.device", config.searcher.device)]
    wanted += [] if config.learner.address else [("learner.device", config.learner.device)]
    for where, device in wanted:
        if device != "cpu" and device not in (known := _devices()):
            raise DaemonError(f"{where}: device {device!r} is not there; this machine has {', '.join(known)}")


def _check_tls(config: RunConfig) -> None:
    if config.tls != TlsConfig():
        from orchestrator.security import client_tls

        client_tls(config)


def _devices() -> list[str]:
    import torch

    cuda = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *(["cuda"] if cuda else []), *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def _text(shapes: tuple[Shape, ...]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes)
