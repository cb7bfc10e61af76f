"""A stream of windows: networks, data and plans stay in memory, and each window is searched on the network that its item names.

A window's targets are one group, the same that a `search` job writes for the same examples, round and network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from repsearch.config import RunConfig
from repsearch.datasets.base import Data
from repsearch.failpoints import reach
from repsearch.networks import SearchableNetwork, build_network, layer_name, load_arrays
from repsearch.rpc.v1 import jobs_pb2
from repsearch.serving import JobContext, StepClock
from searcher.archive import Archive, read_archive
from searcher.jobs import arrays_of, attributes_of, calibration_of, check_range, dtypes_of, make_plan, references_of
from searcher.search import Piece, Position, SearchPlan, SearchProgress, search_pieces
from store import Reference, Store, open_store
from store.parameters import read_parameters


@dataclass
class Resident:
    """A network in memory, which plan searches it, and whose parameters it has."""

    network: SearchableNetwork
    plan: SearchPlan
    loaded: Reference | None = None

    def load(self, store: Store, reference: Reference) -> None:
        """Take the parameters of the network `reference`, unless they are there."""
        if reference != self.loaded:
            load_arrays(self.network, read_parameters(store, reference))
            self.loaded = reference


def search_stream(request: jobs_pb2.StartRequest, config: RunConfig, data: Data, context: JobContext) -> None:
    """Search the windows that are pushed, in order, until the end is."""
    store = open_store(str(context.store_root / request.run_path), chunk_mb=config.store.chunk_mb).relaxed()
    residents = {trained: _resident(config, data, context, trained=trained) for trained in (False, True)}
    clock = StepClock()
    for arrival in context.items():
        clock.begin(arrival.time)
        done = _search(
            request, arrival.item.search, residents[arrival.item.search.trained], config, data, store, context, clock, arrival.sequence
        )
        done.sequence = arrival.sequence
        for name, seconds in clock.end(arrival.time).items():
            setattr(done, name, seconds)
        context.item_done(done)
        context.progress(arrival.sequence, arrival.sequence + 1, unit="windows")


def _resident(config: RunConfig, data: Data, context: JobContext, *, trained: bool) -> Resident:
    table = config.network if trained else config.search_network()
    network = build_network(table, data, seed=config.run.seed, purpose="searched")
    return Resident(network, make_plan(config, data, torch.device(context.device), round_number=0, trained=trained))


def _search(
    request: jobs_pb2.StartRequest,
    spec: jobs_pb2.SearchSpec,
    resident: Resident,
    config: RunConfig,
    data: Data,
    store: Store,
    context: JobContext,
    clock: StepClock,
    sequence: int,
) -> jobs_pb2.ItemDone:
    """Search a window and write its targets; return what to tell of it."""
    check_range(spec, data)
    names = [layer_name(layer, resident.network.logits_layer) for layer in resident.plan.layers]
    with clock.step("read"):
        resident.load(store, Reference(spec.network.path, spec.network.digest))
        archive = read_archive(store, references_of(spec.archive), names, first=spec.first, count=spec.count)
    with clock.step("work"):
        calibration = calibration_of(config, len(data.train), spec.round, trained=spec.trained)
        plan = replace(resident.plan, round=spec.round, calibration=calibration)
        pieces, end = _searched(plan, resident.network, data, spec, archive, context, sequence)
    with clock.step("write"):
        writer = store.begin(spec.output_path, rows=spec.count, dtypes=dtypes_of(names, config))
        with writer:
            for piece in pieces:
                writer.append(arrays_of(names, piece))
            reach("searcher.shard.before")
            reference = writer.commit(attributes_of(request, spec, config, names, end))
            reach("searcher.shard.after")
    layers = [
        jobs_pb2.LayerState(name=name, cross_entropy=curve, solved=solved)
        for name, curve, solved in zip(names, end.curves, end.solved, strict=True)
    ]
    result = jobs_pb2.Reference(path=reference.path, digest=reference.digest)
    return jobs_pb2.ItemDone(result=result, evaluations=end.evaluations, layers=layers)


def _searched(
    plan: SearchPlan,
    network: SearchableNetwork,
    data: Data,
    spec: jobs_pb2.SearchSpec,
    archive: Archive | None,
    context: JobContext,
    sequence: int,
) -> tuple[list[Piece], SearchProgress]:
    def check(position: Position) -> None:
        context.check()
        # Whoever watches is to see that a long window advances.
        context.progress(sequence - 1, sequence, unit="windows")

    pieces: list[Piece] = []
    end = search_pieces(
        plan,
        network,
        data.train,
        first=spec.first,
        count=spec.count,
        device=torch.device(context.device),
        take=pieces.append,
        archive=archive,
        on_position=check,
    )
    return pieces, end
