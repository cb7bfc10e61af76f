"""Elites from round to round: what is kept of a search, what the next one makes of it, and what it does not depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repsearch.config import learn_digest, parse_config, search_digest
from repsearch.datasets import cached_data
from repsearch.datasets.base import Data
from repsearch.errors import ConfigError, StoreError
from repsearch.families import STRATEGIES
from repsearch.networks import SearchableNetwork, to_arrays
from repsearch.rpc.v1 import jobs_pb2
from repsearch.search_memory import search_memory
from searcher.archive import Archive, read_archive
from searcher.evaluation_network import evaluation_network
from searcher.jobs import run_job
from searcher.search import SearchPlan, SearchResult, evaluate, search_examples
from searcher.starting import search_form
from store import MemoryStore, Reference, ZarrStore, layout
from store.parameters import write_parameters
from tests.learner_support import Recorder, digits_config, network_for, request_for
from tests.networks import made_up_data, made_up_network, perturb

CPU = torch.device("cpu")
LAYERS = [0, 1, 2]
NAMES = ["block0", "block1", "logits"]
EXAMPLES = 24
EVOLUTION = {
    "name": "evolution",
    "population": 8,
    "parents": 3,
    "explorers": 3,
    "refiners": 2,
    "generations": [3, 2, 1],
    "strength": [0.3, 0.2, 0.1],
    "boost": [3, 2, 1],
    "blur_passes": [1, 0, 0],
    "noise_rows": 512,
}
PATHS: dict[str, dict[str, Any]] = {
    "loops": {},
    "tensors": {"compiled": False},
    "stops": {"stop_probability": 0.4},
    "chained parents": {"seeding": "parents", "chained": True},
    "noisy inputs": {"from_network": False},
    "means": {"target": "elite_mean"},
}
"""Settings that take other paths through a search."""


def plan_of(path: str = "loops", **fields: Any) -> SearchPlan:
    settings = {**PATHS[path], **fields}
    strategy = STRATEGIES.build({**EVOLUTION, **{name: settings.pop(name) for name in list(settings) if name in STRATEGY_FIELDS}})
    values = {"layers": LAYERS, "seed": 3, "round": 1, "input_noise": 0.1, "from_network": True, "micro_batch": 8, "chained": False}
    return SearchPlan(strategy=strategy, **{**values, "archive": 2, **settings})


STRATEGY_FIELDS = ("stop_probability", "seeding", "target", "generations")


@pytest.fixture(scope="module")
def data() -> Data:
    return made_up_data((1, 12, 12))


@pytest.fixture(scope="module")
def network(data: Data) -> SearchableNetwork:
    return perturb(made_up_network(data))


@pytest.fixture(scope="module")
def later(data: Data) -> SearchableNetwork:
    """The network of the next round."""
    return perturb(perturb(made_up_network(data)), seed=2)


def search(
    plan: SearchPlan, network: SearchableNetwork, data: Data, first: int = 0, count: int = EXAMPLES, archive: Archive | None = None
) -> SearchResult:
    return search_examples(plan, network, data.train, first=first, count=count, device=CPU, archive=archive)


def kept(result: SearchResult, dtype: str = "float16") -> dict[str, np.ndarray]:
    """The elites of a result as they are stored."""
    return {f"{name}.elites": elites.numpy().astype(dtype) for name, elites in zip(NAMES, result.elites, strict=True)}


def archive_of(result: SearchResult) -> Archive:
    return Archive(0, {name: values[:, None] for name, values in zip(NAMES, kept(result).values(), strict=True)})


def fitness_of(network: SearchableNetwork, data: Data, position: int, candidates_NKX: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return evaluate(evaluation_network(network), LAYERS[position], candidates_NKX, data.train.labels[: len(candidates_NKX)])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("learned", [True, False])
def test_the_fittest_of_the_last_population_are_kept_and_change_nothing_else(
    path: str, learned: bool, network: SearchableNetwork, data: Data
) -> None:
    plan = plan_of(path)
    searched = network if learned else made_up_network(data)
    result, without = search(plan, searched, data), search(replace(plan, archive=0), searched, data)
    assert without.elites == []
    assert all(torch.equal(one, other) for one, other in zip(result.targets, without.targets, strict=True))
    for position, (elites, target) in enumerate(zip(result.elites, result.targets, strict=True)):
        assert elites.shape == (EXAMPLES, 2, *target.shape[1:])
        fitness_NK = fitness_of(searched, data, position, elites)
        assert (fitness_NK[:, 0] >= fitness_NK[:, 1] - 1e-5).all()
        if path != "means":
            assert torch.allclose(elites[:, 0], target, atol=1e-6)
            assert torch.allclose(fitness_NK[:, 0], result.after_NL[:, position], atol=1e-4)


@pytest.mark.parametrize("path", PATHS)
def test_elites_are_evaluated_anew_among_the_starting_candidates(
    path: str, network: SearchableNetwork, later: SearchableNetwork, data: Data
) -> None:
    plan = plan_of(path)
    archive = archive_of(search(plan, network, data))
    without, result = search(plan, later, data), search(plan, later, data, archive=archive)
    assert result.evaluations == without.evaluations or path == "stops"
    for position, name in enumerate(NAMES):
        elites = torch.from_numpy(archive.elites[name][:, 0]).float()
        formed = search_form(evaluation_network(later), LAYERS[position], elites.flatten(0, 1)).view_as(elites)
        fitness_NK = fitness_of(later, data, position, formed)
        # Both elites are there, neither more: the initial population's best is at least as fit as the fitter of the two.
        assert (result.before_NL[:, position] >= fitness_NK.amax(dim=1) - 1e-4).all()
    # At the first layer, where nothing else differs, most images start fitter than without.
    assert (result.before_NL[:, 0] > without.before_NL[:, 0]).float().mean() > 0.5


def test_relative_targets_leave_elites_absolute(network: SearchableNetwork, data: Data) -> None:
    from searcher.mixing import Mix

    plain, relative = search(plan_of(), network, data), search(plan_of(mix=Mix("nudge", 0.3, relative=True)), network, data)
    assert all(torch.equal(one, other) for one, other in zip(plain.elites, relative.elites, strict=True))


def write_shards(store: MemoryStore, arrays: dict[str, np.ndarray], bounds: Sequence[int], searches: int = 1) -> list[Reference]:
    return [
        store.write(
            f"rounds/00000/search/{shard:05d}-a1",
            {name: values[first:end] for name, values in arrays.items()},
            attributes={"first": first, "count": end - first, "searches_per_example": searches},
        )
        for shard, (first, end) in enumerate(pairwise(bounds))
    ]


@pytest.mark.parametrize("path", ["loops", "stops", "chained parents"])
@pytest.mark.parametrize("searches", [1, 2])
def test_results_do_not_depend_on_the_shards_of_either_round(
    path: str, searches: int, network: SearchableNetwork, later: SearchableNetwork, data: Data
) -> None:
    plan = plan_of(path, searches=searches)
    arrays = kept(search(plan, network, data))

    def searched(bounds: Sequence[int], before: Sequence[int]) -> list[torch.Tensor]:
        store, parts = MemoryStore(), []
        shards = write_shards(store, arrays, before, searches)
        for first, end in pairwise(bounds):
            covering = [ref for ref, (begin, over) in zip(shards, pairwise(before), strict=True) if begin < end and first < over]
            archive = read_archive(store, covering, NAMES, first=first, count=end - first)
            assert archive is not None
            parts.append(search(plan, later, data, first, end - first, archive))
        return [torch.cat(values) for values in zip(*([*part.targets, *part.elites, part.after_NL] for part in parts), strict=True)]

    whole = searched([0, EXAMPLES], [0, EXAMPLES])
    assert not torch.equal(whole[0], search(plan, later, data).targets[0])
    # Shards of this round that straddle those of the one before, tiles of 8 cut at either end.
    others = searched([0, 1, 13, 24], [0, 5, 16, 24])
    assert all(torch.equal(one, other) for one, other in zip(whole, others, strict=True))


def test_each_of_several_searches_goes_on_from_its_own_elites(network: SearchableNetwork, later: SearchableNetwork, data: Data) -> None:
    plan = plan_of(searches=2, generations=[0, 0, 0])
    before = search(plan, network, data)
    assert before.elites[0].shape[:3] == (EXAMPLES, 2, 2)
    stored = [elites.numpy() for elites in before.elites]
    archive = Archive(0, dict(zip(NAMES, stored, strict=True)))
    found = search(plan, later, data, archive=archive)
    # The second search alone differs where only its elites do.
    changed = [values.copy() for values in stored]
    for values in changed:
        values[:, 1] = -values[:, 1]
    other = search(plan, later, data, archive=Archive(0, dict(zip(NAMES, changed, strict=True))))
    assert torch.equal(found.elites[0][:, 0], other.elites[0][:, 0]) and not torch.equal(found.elites[0][:, 1], other.elites[0][:, 1])


def test_a_round_takes_as_many_elites_as_it_keeps_and_none_of_layers_that_had_none(
    network: SearchableNetwork, later: SearchableNetwork, data: Data
) -> None:
    full = archive_of(search(plan_of(archive=3), network, data))
    first = Archive(0, {"block0": full.elites["block0"][:, :, :1]})
    one, two = search(plan_of(archive=1), later, data, archive=full), search(plan_of(archive=1), later, data, archive=first)
    assert torch.equal(one.targets[0], two.targets[0])
    assert torch.equal(two.targets[1], search(plan_of(archive=1), later, data).targets[1])


def test_a_round_with_other_layers_reads_what_there_is(network: SearchableNetwork, data: Data) -> None:
    arrays, store = kept(search(plan_of(), network, data)), MemoryStore()
    shards = write_shards(store, {"block0.elites": arrays["block0.elites"]}, [0, EXAMPLES])
    archive = read_archive(store, shards, NAMES, first=3, count=4)
    assert archive is not None and list(archive.elites) == ["block0"]
    assert np.array_equal(archive.elites["block0"][:, 0], arrays["block0.elites"][3:7])
    assert read_archive(store, [], NAMES, first=3, count=4) is None


@pytest.mark.parametrize(("used", "message"), [([0], "ends before training image 5"), ([1], "has training images 5 to 23, and image 2")])
def test_an_archive_that_does_not_cover_the_range_is_refused(used: list[int], message: str) -> None:
    store = MemoryStore()
    shards = write_shards(store, {"block0.elites": np.zeros((EXAMPLES, 2, 3), np.float16)}, [0, 5, EXAMPLES])
    with pytest.raises(StoreError, match=message):
        read_archive(store, [shards[number] for number in used], ["block0"], first=2, count=10)


def job(root: Path, round: int, archive: Sequence[Reference] = (), **search: Any) -> Reference:
    """Search 40 digits as the orchestrator asks for it, on a network of the round's own."""
    config = digits_config(search={"strategy": EVOLUTION, "start": "network", "archive": 2, **search})
    found, store = cached_data(config.dataset, seed=config.run.seed), ZarrStore(root / "run")
    parameters = to_arrays(perturb(network_for(found), seed=round + 1))
    network = write_parameters(store, layout.learned_network_path(round, 1), parameters, {"kind": "network"})
    spec = jobs_pb2.SearchSpec(
        round=round,
        shard=0,
        attempt=1,
        first=0,
        count=40,
        network=jobs_pb2.Reference(path=network.path, digest=network.digest),
        trained=True,
        output_path=layout.shard_path(round, 0, 1),
        archive=[jobs_pb2.Reference(path=reference.path, digest=reference.digest) for reference in archive],
    )
    result = run_job(request_for(config, dataset_digest=found.digest, search=spec), Recorder(store_root=root))
    return Reference(result.path, result.digest)


def test_jobs_hand_elites_on_in_the_precision_of_the_store_and_name_their_archive(tmp_path: Path) -> None:
    first = job(tmp_path, 0)
    second, store = job(tmp_path, 1, [first]), ZarrStore(tmp_path / "run")
    assert store.read(first, "block1.elites").dtype == np.float16
    assert store.read(second, "block1.elites").shape == (40, 2, *store.read(second, "block1").shape[1:])
    assert "archive" not in store.manifest(first).attributes
    assert store.manifest(second).attributes["archive"] == [{"path": first.path, "digest": first.digest}]


def test_a_damaged_archive_is_an_error_that_names_it(tmp_path: Path) -> None:
    first = job(tmp_path, 0)
    (chunk,) = (tmp_path / "run" / first.path / "block1.elites").glob("c.*")
    chunk.write_bytes(chunk.read_bytes()[:-4] + b"\0\1\2\3")
    with pytest.raises(StoreError, match=rf"(?s){first.path}.*block1\.elites.*archive.*search\.archive = 0"):
        job(tmp_path, 1, [first])


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (
            {"name": "evolution_strategy"},
            r"search\.archive: 4, but the strategy evolution_strategy has no elites.*choose the strategy evolution",
        ),
        ({"name": "evolution", "parents": 3, "population": 23}, r"search\.archive: 4 elites, but the strategy evolution keeps 3 parents"),
    ],
)
def test_strategies_without_as_many_elites_are_refused(strategy: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = digits_config(search={"strategy": strategy, "archive": 4})
    with pytest.raises(ConfigError, match=message):
        run_job(request_for(config, check=jobs_pb2.CheckSpec()), Recorder(store_root=tmp_path))


def test_an_archive_counts_in_the_memory_of_a_search(data: Data) -> None:
    table = {
        "network": {"name": "convnet", "width": 16, "blocks": 2},
        "search": {"layers": [0], "strategy": EVOLUTION | {"generations": [1]}},
    }
    needs = [
        search_memory(parse_config({**table, "search": {**table["search"], "archive": elites}}), data, plan_of().strategy).per_example
        for elites in (0, 1, 3)
    ]
    size = 16 * 5 * 5 * 4
    assert needs[1] - needs[0] >= size and needs[2] - needs[1] >= 2 * size


def test_digests_without_an_archive_are_those_before_there_were_archives() -> None:
    config = parse_config({"search": {"strategy": "evolution_strategy", "archive": 0}})
    assert search_digest(config) == "86a03606d987f905590b381223fd165354d72c930a22faab227bdcd1aaa2d7e9"
    assert learn_digest(config) == "c1463b886a150416a4acb3b80e04894cbf5288091ba1e07d26f80fafcdf67851"
    assert search_digest(parse_config({"search": {"archive": 2}})) != search_digest(parse_config({}))
