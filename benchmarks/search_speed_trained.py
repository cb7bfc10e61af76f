"""What an evaluation costs on a learned network, over the bare forward pass of the part above the layer; `search_speed --trained`.

The network is one whose convolutions are real: a made-up convnet with every parameter moved. The bare forward pass runs the part above the
layer on ready candidates, without fitness: the plain network in evaluation mode and the searcher's own copy of it, with the channels first
and last, in batches of several sizes; the fastest of all counts. A repeat runs every row and the fastest forward passes once, in turn; a
ratio is the median of the repeats' ratios, in CPU time.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.search_speed_problem import made_up_data, made_up_network
from repsearch.families import STRATEGIES
from repsearch.networks import SearchableNetwork
from searcher.evaluation_network import evaluation_network
from searcher.layer_search import search_layer
from searcher.plan import Group, SearchPlan, groups_of
from searcher.starting import run_layers, search_form

CPU = torch.device("cpu")
LAYERS = (0, 1, 2)
BATCHES = (128, 256, 512, 1024, 2048)
FORWARD = 4096
"""Candidates of one measurement of a forward pass."""
STRATEGIES_MEASURED: dict[str, dict[str, list[float]]] = {
    "evolution": {"strength": [0.3], "boost": [3.0]},
    "evolution_strategy": {"sigma": [0.3], "step": [0.3]},
}
BLUR = {0: 5, 1: 1, 2: 1}


@dataclass(frozen=True)
class Setting:
    """Channels and convolutions per block of the network, and the searched layer."""

    channels: int
    convolutions: int
    layer: int


@torch.no_grad()
def trained(
    channels: Sequence[int],
    convolutions: Sequence[int],
    *,
    images: int,
    generations: int,
    tile: int,
    repeats: int,
    print_row: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Return a row per setting and strategy: microseconds per evaluation, of the bare forward pass, and their ratio."""
    rows = []
    print_row(f"{'':24}{'strategy':20}{'us/evaluation':>15}{'bare forward':>15}{'ratio':>8}  {'best forward'}")
    for setting in itertools.starmap(Setting, itertools.product(channels, convolutions, LAYERS)):
        for row in _measured(setting, images, generations, tile, repeats):
            what = f"C = {setting.channels}, {setting.convolutions} convolutions, block {setting.layer}"
            print_row(
                f"{what:36}{row['strategy']:20}{row['microseconds']:12.2f}{row['forward_microseconds']:12.2f}{row['over_forward']:8.2f}"
                f"  {row['forward']}"
            )
            rows.append(row)
    return rows


def _measured(setting: Setting, images: int, generations: int, tile: int, repeats: int) -> list[dict[str, Any]]:
    data = made_up_data(images)
    network = _moved(made_up_network(data, setting.channels, setting.convolutions))
    searched = evaluation_network(network)
    passes = _passes(network, searched, setting.layer)
    seconds = {name: min(_seconds(run) for _ in range(3)) for name, run in passes.items()}
    fastest = sorted(seconds, key=lambda name: seconds[name])[:3]
    searches = {name: _search(name, searched, data.train, setting.layer, generations, tile) for name in STRATEGIES_MEASURED}
    for run in searches.values():
        run()
    forward: dict[str, list[float]] = {name: [] for name in fastest}
    spent: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(repeats):
        for name in fastest:
            forward[name].append(_seconds(passes[name]))
        for name, run in searches.items():
            spent[name].append(_seconds(run))
    best = min(fastest, key=lambda name: statistics.median(forward[name]))
    return [
        {
            "name": f"{name}, block {setting.layer}",
            "strategy": name,
            "channels": setting.channels,
            "convolutions": setting.convolutions,
            "layer": setting.layer,
            "tile": tile,
            "microseconds": statistics.median(spent[name]) * 1e6,
            "forward_microseconds": statistics.median(forward[best]) * 1e6,
            "over_forward": statistics.median(own / bare for own, bare in zip(spent[name], forward[best], strict=True)),
            "forward": best,
        }
        for name in searches
    ]


def _moved(network: SearchableNetwork) -> SearchableNetwork:
    """Return `network` with every parameter moved, as by learning."""
    rng = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=rng)
    return network


def _passes(network: SearchableNetwork, searched: SearchableNetwork, layer: int) -> dict[str, Callable[[], int]]:
    """Return forward passes of the part above `layer`, by name; each returns the candidates it ran."""
    kinds = {
        f"{name}, channels {place}": (copy.deepcopy(part).eval().to(memory_format=form), form)
        for name, part in (("plain", network), ("searcher's", searched))
        for place, form in (("first", torch.contiguous_format), ("last", torch.channels_last))
    }

    def forward(part: SearchableNetwork, batch_BX: Tensor) -> int:
        for _ in range(FORWARD // len(batch_BX)):
            part.run_from(layer, batch_BX)
        return FORWARD // len(batch_BX) * len(batch_BX)

    result: dict[str, Callable[[], int]] = {}
    for (name, (part, form)), batch in itertools.product(kinds.items(), BATCHES):
        batch_BX = torch.randn(batch, *network.layer_shape(layer), generator=torch.Generator().manual_seed(0)).contiguous(
            memory_format=form
        )
        result[f"{name}, {batch}"] = lambda part=part, batch_BX=batch_BX: forward(part, batch_BX)  # type: ignore[misc]
    return result


def _search(name: str, searched: SearchableNetwork, split: Any, layer: int, generations: int, tile: int) -> Callable[[], int]:
    table = {"name": name, "generations": [generations], "blur_passes": [BLUR[layer]], **STRATEGIES_MEASURED[name]}
    plan = SearchPlan(
        strategy=STRATEGIES.build(table), layers=[layer], seed=0, round=1, input_noise=0.1, from_network=True, micro_batch=tile
    )
    groups = list(groups_of(plan, split, first=0, count=len(split), device=CPU))
    starts = [_own(searched, layer, group)[None, :, None] for group in groups]

    def run() -> int:
        return sum(search_layer(plan, searched, 0, start, group).evaluations for start, group in zip(starts, groups, strict=True))

    return run


def _own(searched: SearchableNetwork, layer: int, group: Group) -> Tensor:
    inputs = searched.stem(searched.prepare(group.images_WTCHW[0]))
    return search_form(searched, layer, run_layers(searched, -1, layer, inputs))


def _seconds(run: Callable[[], int]) -> float:
    """Return CPU seconds per candidate."""
    begin = time.process_time()
    count = run()
    return (time.process_time() - begin) / count
