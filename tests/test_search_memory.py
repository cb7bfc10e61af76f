"""What a search needs in memory, and the number of images per tile that follows from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from repsearch.config import RunConfig, load_config, parse_config, search_digest
from repsearch.errors import ConfigError
from repsearch.families import STRATEGIES
from repsearch.networks import SearchableNetwork, build_network
from repsearch.networks.activations import bytes_above, check_runs_alone
from repsearch.search_memory import AUTO_EXAMPLES, MB, SearchMemory, search_memory, tile_of
from tests.networks import made_up_data

BUDGET_MB = 100
NETWORK = {"name": "convnet", "width": 8, "blocks": 2, "convolutions": 2}
SHORT = {"generations": [1, 1], "blur_passes": [1, 0], "noise_rows": 512}
DATA = made_up_data((1, 16, 16), classes=10)


def of(strategy: dict[str, Any], **search: Any) -> RunConfig:
    table = {"strategy": {"generations": [1, 1], **strategy}, "layers": [0, "logits"], "memory_mb": BUDGET_MB, **search}
    return parse_config({"network": NETWORK, "search": table})


def evolution(population: int = 24, **fields: Any) -> dict[str, Any]:
    parents, explorers = population // 6, population // 3
    parts = {"parents": parents, "explorers": explorers, "refiners": population - parents - explorers}
    schedules = {"strength": [0.3, 0.1], "boost": [3.0, 1.0], **SHORT}
    return {"name": "evolution", "population": population, **parts, **schedules, **fields}


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "evolution": (evolution(), 96),
    "more images": (evolution(), 256),
    "greater population": (evolution(96), 32),
    "smoothed candidates": (evolution(48, blur="candidate"), 48),
    "images that stop": (evolution(24, stop_probability=0.5, seeding="parents"), 128),
    "evolution strategy": ({"name": "evolution_strategy", "pairs": 24, "sigma": [0.3] * 2, "step": [0.3] * 2, **SHORT}, 96),
    "archives": ({"name": "quality_diversity", "strength": [0.9, 0.1], **SHORT}, 96),
    "random draws": ({"name": "random_search", "population": 64, "strength": [0.3, 0.1], **SHORT}, 96),
}


def test_the_peak_stays_within_the_budget_as_images_and_population_grow() -> None:
    """Measured; and a tile sixteen times the one chosen exceeds it, so the budget is not met by chance."""
    configs = [(of(strategy, micro_batch="auto"), images) for strategy, images in CASES.values()]
    cases = [
        {"image": [1, 16, 16], "images": images, "network": dict(config.network), "search": config.search.model_dump()}
        for config, images in configs
    ]
    cases.append({**cases[0], "images": 256, "tile": 16 * tile_of(configs[0][0], DATA, STRATEGIES.build(configs[0][0].search.strategy))})
    output = subprocess.run(
        [sys.executable, "-m", "tests.search_memory_peak", json.dumps(cases)], check=True, capture_output=True, text=True
    ).stdout
    found = dict(zip([*CASES, "tile of sixteen times the size"], json.loads(output), strict=True))
    assert all(peak <= BUDGET_MB for name, (_, peak) in found.items() if name in CASES), found
    assert found["tile of sixteen times the size"][1] > BUDGET_MB, found
    assert found["greater population"][0] < found["evolution"][0] == found["more images"][0]


def tile(config: RunConfig) -> int:
    return tile_of(config, DATA, STRATEGIES.build(config.search.strategy))


def test_the_tile_is_the_power_of_two_that_fits() -> None:
    budgets = [80, 120, 200, 300]
    tiles = [tile(of(evolution(96), micro_batch="auto", memory_mb=budget)) for budget in budgets]
    assert tiles == sorted(tiles) and len(set(tiles)) == 4
    for budget, chosen in zip(budgets, tiles, strict=True):
        need = search_memory(of(evolution(96)), DATA, STRATEGIES.build(evolution(96))).need
        assert need(chosen) <= budget * MB < need(2 * chosen)
        assert chosen & (chosen - 1) == 0
    assert SearchMemory(fixed=10, per_example=4).most(9) == 0
    assert tile(of(evolution(), micro_batch="auto", memory_mb=10**6)) == AUTO_EXAMPLES


def test_a_learned_network_has_the_tile_of_the_deeper_of_the_two() -> None:
    """All rounds of a run have one tile: round 0 may search a shallower network than the later ones."""
    deep = parse_config({**of(evolution()).model_dump(), "network": {**NETWORK, "convolutions": 6}})
    both = parse_config({**deep.model_dump(), "search": {**deep.search.model_dump(), "network": {"convolutions": 2}}})
    strategy = STRATEGIES.build(evolution())
    assert search_memory(both, DATA, strategy) == search_memory(deep, DATA, strategy)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"micro_batch": "auto", "memory_mb": 40}, r"search\.memory_mb: one image at a time need \d+ MB, and the budget is 40 MB; raise"),
        (
            {"micro_batch": 4096},
            r"search\.micro_batch = 4096 images at a time need [\d,]+ MB, and the budget is 100 MB; lower it to \d+ or",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_need_and_budget(search: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tile(of(evolution(), **search))


def test_the_budget_is_part_of_the_search_where_it_chooses_the_tile() -> None:
    chosen = [search_digest(of(evolution(), micro_batch="auto", memory_mb=budget)) for budget in (100, 200)]
    given = [search_digest(of(evolution(), micro_batch=8, memory_mb=budget)) for budget in (100, 200)]
    assert chosen[0] != chosen[1]
    assert given[0] == given[1]


@pytest.mark.parametrize("name", STRATEGIES.members)
def test_every_strategy_says_what_it_holds(name: str) -> None:
    member = STRATEGIES.build({"name": name})
    small, large = (member.footprint(0, (8, side, side), classes=10, results=2) for side in (5, 10))
    assert small.candidates >= 1 and small.held >= small.results and small.seeds >= 1
    assert (small.candidates, small.held, small.working) == (large.candidates, large.held, large.working)
    assert small.shared <= large.shared


class Doubling(nn.Module):
    """One operation that allocates twice its input, and frees half of it."""

    def forward(self, values_BD: torch.Tensor) -> torch.Tensor:
        return torch.cat([values_BD, values_BD], dim=1)[:, : values_BD.shape[1]] * 2


class Widths(SearchableNetwork):
    """Blocks of 8 and 8 values; what is above the first doubles them for a moment."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__(mean=torch.zeros(1), std=torch.ones(1))
        self.block_shapes, self.classes = ((8,), (8,)), 10
        self.stem, self.blocks, self.head = nn.Flatten(), nn.ModuleList([nn.Identity(), Doubling()]), head


def test_what_a_part_allocates_is_counted_by_hand() -> None:
    # 16 doubled and 8 scaled values at most; then 8 scaled ones and 10 logits. Parameters and candidates are not counted.
    network = Widths(nn.Linear(8, 10))
    with torch.no_grad():
        assert bytes_above(network, 0, gradient=False) == 4 * (16 + 8)
    assert bytes_above(network, 1, gradient=False) == 4 * 10
    assert bytes_above(network, 2, gradient=False) == 0
    assert bytes_above(network, 1, gradient=True) >= 4 * (10 + 8)


class Broken(nn.Module):
    """A head that works while learning alone."""

    def forward(self, values_BD: torch.Tensor) -> torch.Tensor:
        if not self.training:
            raise RuntimeError("the auxiliary output is missing")
        return values_BD


def test_a_part_that_does_not_run_in_evaluation_mode_is_named() -> None:
    with pytest.raises(ConfigError, match=r"the part above block1 does not run in evaluation mode \(RuntimeError: the auxiliary output"):
        bytes_above(Widths(Broken()).eval(), 1, gradient=False)
    with pytest.raises(ConfigError, match=r"it gives \(2, 8\) for 2 examples, not \(2, 10\)"):
        bytes_above(Widths(nn.Identity()), 1, gradient=False)
    with pytest.raises(ConfigError, match=r"network: head\.0 is a BatchNorm without running statistics"):
        check_runs_alone(Widths(nn.Sequential(nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 10))))


def test_nothing_of_a_network_changes_by_being_counted() -> None:
    network = build_network(NETWORK, DATA, seed=0, purpose="searched")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    bytes_above(network, 0, gradient=True)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28)}


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.toml")), ids=lambda path: path.stem)
def test_every_configuration_fits_its_budget(path: Path) -> None:
    config = load_config(path)
    data = made_up_data(SHAPES.get(config.dataset["name"], (3, 32, 32)), classes=10)
    assert tile_of(config, data, STRATEGIES.build(config.search.strategy)) == config.search.micro_batch
