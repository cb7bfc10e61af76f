"""The searcher's jobs: messages in, domain calls, committed groups out.

`check` loads the data and builds the networks; `search` searches one shard and commits it as one attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch

from repsearch.archives import check_archive, elites_name
from repsearch.codes import code_of
from repsearch.config import LOGITS, RunConfig, SearchConfig, parse_resolved, search_digest
from repsearch.datasets import cached_data
from repsearch.datasets.base import Data
from repsearch.errors import ConfigError, DaemonError
from repsearch.failpoints import reach
from repsearch.families import NETWORKS, STRATEGIES
from repsearch.networks import build_network, layer_name, layer_number, load_arrays
from repsearch.networks.base import Shape
from repsearch.rpc.v1 import jobs_pb2
from repsearch.search_memory import tile_of
from repsearch.serving import JobContext, JobResult
from repsearch.windows import Window, windows_of
from searcher.archive import read_archive
from searcher.kernels.evolution import with_kernels
from searcher.mixing import Mix
from searcher.reports import Reports
from searcher.search import Piece, SearchPlan, SearchProgress, search_pieces
from searcher.writing import Background
from store import Reference, open_store
from store.parameters import read_parameters


def run_job(request: jobs_pb2.StartRequest, context: JobContext) -> JobResult:
    """Run the job that `request` describes; raises `RepSearchError` for every fault a user can act on."""
    config = parse_resolved(request.config_json)
    torch.set_num_threads(context.threads)
    data = cached_data(config.dataset, seed=config.run.seed)
    kind = request.WhichOneof("spec")
    if kind == "check":
        make_plan(config, data, torch.device(context.device), round_number=0, trained=False)
        return JobResult(dataset_digest=data.digest)
    if kind not in ("search", "stream_search"):
        raise DaemonError(f"a searcher runs `check`, `search` and `stream_search` jobs, not {kind!r}; send it to a learner")
    if data.digest != request.dataset_digest:
        digests = f"{data.digest[:12]}, the run's {request.dataset_digest[:12]}"
        raise DaemonError(f"the searcher's data have digest {digests}; give both the same files")
    if kind == "stream_search":
        from searcher.stream import search_stream

        search_stream(request, config, data, context)
        return JobResult(dataset_digest=data.digest)
    return _search(request, config, data, context)


def _search(request: jobs_pb2.StartRequest, config: RunConfig, data: Data, context: JobContext) -> JobResult:
    spec = request.search
    check_range(spec, data)
    store = open_store(str(context.store_root / request.run_path), chunk_mb=config.store.chunk_mb)
    plan = make_plan(config, data, torch.device(context.device), round_number=spec.round, trained=spec.trained)
    table = config.network if spec.trained else config.search_network()
    network = build_network(table, data, seed=config.run.seed, purpose="searched")
    load_arrays(network, read_parameters(store, Reference(spec.network.path, spec.network.digest)))
    names = [layer_name(layer, network.logits_layer) for layer in plan.layers]
    reports = Reports(context, spec.count, names)
    archive = read_archive(store, references_of(spec.archive), names, first=spec.first, count=spec.count)
    writer = store.begin(spec.output_path, rows=spec.count, dtypes=dtypes_of(names, config))
    with Background(writer) as shard:
        end = search_pieces(
            plan,
            network,
            data.train,
            first=spec.first,
            count=spec.count,
            device=torch.device(context.device),
            take=lambda piece: shard.append(arrays_of(names, piece)),
            archive=archive,
            on_progress=reports.progress,
            on_position=reports.position,
        )
        reach("searcher.shard.before")
        reference = shard.commit(attributes_of(request, spec, config, names, end))
        reach("searcher.shard.after")
    return JobResult(path=reference.path, digest=reference.digest)


def check_range(spec: jobs_pb2.SearchSpec, data: Data) -> None:
    """Raise `DaemonError` for examples that the training set does not have."""
    if not 0 < spec.count <= len(data.train) - spec.first:
        raise DaemonError(f"{spec.count} examples from {spec.first} on are not there: the training set has {len(data.train)}")


def make_plan(config: RunConfig, data: Data, device: torch.device, *, round_number: int, trained: bool) -> SearchPlan:
    """Return the search plan; raises `ConfigError` where the configuration does not fit the network or the device."""
    shapes = NETWORKS.build(config.network, at="network").check(data.input_shape)
    searched = NETWORKS.build(config.search_network(), at="search.network").check(data.input_shape)
    if shapes != searched:
        raise ConfigError(f"search.network: block outputs {searched} differ from the learned network's {shapes}")
    strategy = STRATEGIES.build(config.search.strategy, at="search.strategy")
    if config.search.kernels:
        strategy = with_kernels(strategy, device)
    check_archive(config.search, strategy)
    searched_shapes = _layer_shapes(config, shapes, len(data.classes))
    strategy.check(config.search.layers, searched_shapes)
    return SearchPlan(
        strategy=strategy,
        layers=[layer_number(layer, len(shapes)) for layer in config.search.layers],
        seed=config.run.seed,
        round=round_number,
        input_noise=config.search.input_noise,
        from_network=trained and config.search.start == "network",
        micro_batch=_tile(config.model_dump_json(), data.digest),
        chained=config.search.below == "found",
        mix=mix_of(config.search),
        code=code_of(config.search, searched_shapes),
        searches=config.search.searches_per_example,
        archive=config.search.archive,
        compiled=config.search.compiled,
        precision=config.search.precision,
        calibration=calibration_of(config, len(data.train), round_number, trained=trained),
    )


def calibration_of(config: RunConfig, examples: int, round_number: int, *, trained: bool) -> Window | None:
    """Return the training images whose BatchNorm statistics a learned network is searched with: the round's; None for its own."""
    if not trained or config.search.statistics == "learned":
        return None
    window = windows_of(config, examples).of(round_number)
    return Window(window.first, min(window.count, config.search.calibration_examples))


def mix_of(search: SearchConfig) -> Mix | None:
    """Return how targets are mixed with the network's own representation."""
    if not search.mixes:
        return None
    if search.nudge is not None:
        return Mix("nudge", search.nudge, search.relative)
    return Mix("step", 1.0 if search.step is None else search.step, search.relative)


@lru_cache(maxsize=8)
def _tile(config_json: str, dataset_digest: str) -> int:
    """Return the images per tile; the same for every shard of a run, so computed once."""
    config = RunConfig.model_validate_json(config_json)
    data = cached_data(config.dataset, seed=config.run.seed)
    return tile_of(config, data, STRATEGIES.build(config.search.strategy, at="search.strategy"))


def _layer_shapes(config: RunConfig, shapes: Sequence[Shape], classes: int) -> list[Shape]:
    """Return the shape of each search layer."""
    wanted = config.search.layers
    for layer in wanted:
        if layer != LOGITS and int(layer) >= len(shapes):
            raise ConfigError(f"search.layers: layer {layer} is not there: the network has blocks 0 to {len(shapes) - 1}, and {LOGITS!r}")
    return [(classes,) if layer == LOGITS else shapes[int(layer)] for layer in wanted]


def references_of(messages: Iterable[jobs_pb2.Reference]) -> list[Reference]:
    """Return the references in messages."""
    return [Reference(message.path, message.digest) for message in messages]


def dtypes_of(names: Sequence[str], config: RunConfig) -> dict[str, str]:
    """Return how the arrays of representations of a shard are stored."""
    elites = [elites_name(name) for name in names] if config.search.archive else []
    return dict.fromkeys([*names, *elites], config.store.dtype)


def arrays_of(names: Sequence[str], piece: Piece) -> dict[str, np.ndarray]:
    """Return the arrays of a piece of a shard."""
    arrays = {name: target.numpy() for name, target in zip(names, piece.targets, strict=True)}
    arrays |= {elites_name(name): elites.numpy() for name, elites in zip(names, piece.elites, strict=False)}
    return {**arrays, "fitness_before": piece.before_NL.numpy(), "fitness_after": piece.after_NL.numpy()}


def attributes_of(
    request: jobs_pb2.StartRequest, spec: jobs_pb2.SearchSpec, config: RunConfig, names: Sequence[str], end: SearchProgress
) -> dict[str, object]:
    """Return what the manifest of a shard says."""
    # Named only where there is one: other shards are what they were before there were archives.
    archive = [{"path": reference.path, "digest": reference.digest} for reference in spec.archive]
    return {
        **({"archive": archive} if archive else {}),
        "kind": "search",
        "run_id": request.run_id,
        "term": request.term,
        "round": spec.round,
        "shard": spec.shard,
        "attempt": spec.attempt,
        "first": spec.first,
        "count": spec.count,
        "search_digest": search_digest(config),
        "dataset_digest": request.dataset_digest,
        "network_digest": spec.network.digest,
        "layers": list(names),
        "evaluations": end.evaluations,
        "seconds": end.seconds,
        "searches_per_example": config.search.searches_per_example,
        "curves": dict(zip(names, end.curves, strict=True)),
        "solved": dict(zip(names, end.solved, strict=True)),
    }
