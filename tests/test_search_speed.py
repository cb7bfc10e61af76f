"""The searcher's fast paths give what the operators give one after another."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from repsearch.networks.convnet import halve, normalised
from repsearch.seeding import draw, keys_of
from searcher.children import Moments, breed
from searcher.evaluation_network import FrozenNorm
from searcher.noise import NoiseTable
from searcher.strategies.evolution import take

CPU = torch.device("cpu")
B, K, E, G, M, P = 3, 4, 5, 6, 49, 7
STRENGTH = 0.3
ROUNDING = 1e-5
"""Candidates have unit variance; float32 sums over some hundred values differ by less."""


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def table() -> NoiseTable:
    return NoiseTable((G, 7, 7), rows=300, passes=2, rescale=True, seed=3, device=CPU)


@pytest.fixture(scope="module")
def drawn() -> torch.Tensor:
    keys = keys_of(1, torch.arange(B))[:, None, None]
    return draw(keys, torch.arange(3 * P).view(3, P), torch.tensor([K, K, 200])[:, None])


def one_after_another(table: NoiseTable, pool: torch.Tensor, drawn: torch.Tensor, *, unit: bool) -> torch.Tensor:
    """Crossover, mutation, normalisation as the method states them."""
    rows = torch.arange(B)[:, None]
    one, two = pool[rows, drawn[:, 0]], pool[rows, drawn[:, 1]]
    deviation = (one.std(dim=-1, correction=0) + two.std(dim=-1, correction=0)) / 2
    children = (one + two) / 2 + STRENGTH * deviation[..., None] * table.take(drawn[:, 2])
    if not unit:
        return children - children.mean(dim=(2, 3), keepdim=True)
    return F.layer_norm(children, (G, M), eps=1e-5)


@pytest.mark.parametrize("unit", [True, False])
def test_children_equal_the_operators_one_after_another(table: NoiseTable, drawn: torch.Tensor, unit: bool) -> None:
    pool = table.room(B, K)
    pool.copy_(F.layer_norm(normal(B, K, G, M) * 2 + 1, (G, M)))
    expected = one_after_another(table, pool.clone(), drawn, unit=unit)
    children = torch.empty(B, P, G, M)
    moments = breed(table, pool, Moments.of(pool), drawn, STRENGTH, unit=unit, out_BPGM=children)
    assert torch.allclose(children, expected, atol=ROUNDING)
    assert torch.allclose(moments.mean_BPG, expected.mean(dim=-1), atol=ROUNDING)
    assert torch.allclose(moments.deviation_BPG, expected.std(dim=-1, correction=0), atol=ROUNDING)


def test_a_part_of_the_pool_is_read_as_the_whole(table: NoiseTable, drawn: torch.Tensor) -> None:
    members = F.layer_norm(normal(B, K, G, M), (G, M))
    found = []
    for more in (0, E):
        room = table.room(B, K + more)
        room[:, :K] = members
        children = torch.empty(B, P, G, M)
        breed(table, room[:, :K], Moments.of(members), drawn, STRENGTH, unit=True, out_BPGM=children)
        found.append(children)
    assert torch.equal(*found)


def test_errors_of_the_mean_do_not_grow_over_generations(table: NoiseTable, drawn: torch.Tensor) -> None:
    pool = F.layer_norm(normal(B, K, G, M), (G, M))
    for _ in range(300):
        room = table.room(B, K)
        room.copy_(pool[:, :K])
        pool = torch.empty(B, P, G, M)
        breed(table, room, Moments.of(room), drawn, STRENGTH, unit=True, out_BPGM=pool)
    assert pool.mean(dim=(2, 3)).abs().max() < ROUNDING
    assert (pool.flatten(2).var(dim=2, correction=0) - 1).abs().max() < 1e-3


def test_noise_is_unchanged_by_room_for_pools(table: NoiseTable) -> None:
    offsets = torch.arange(200)[None]
    before = table.take(offsets)
    table.room(50, 40).fill_(7)
    assert torch.equal(table.take(offsets), before)
    assert torch.allclose(table.means(offsets), before.mean(dim=-1), atol=1e-6)


@pytest.mark.parametrize("size", [(13, 13), (12, 12), (6, 7), (7, 6), (2, 2), (3, 3), (2, 5)])
@torch.no_grad()
def test_halving_equals_max_pooling(size: tuple[int, int]) -> None:
    maps = normal(4, 3, *size)
    assert torch.equal(halve(maps), F.max_pool2d(maps, 2))
    across = maps.transpose(2, 3)
    assert torch.equal(halve(across), F.max_pool2d(across, 2))


def test_normalisation_equals_layer_norm() -> None:
    maps = normal(5, 8, 6, 6) * 3 + 1
    assert torch.allclose(normalised(maps), F.layer_norm(maps, (8, 6, 6), eps=1e-5), atol=ROUNDING)


@pytest.mark.parametrize("shape", [(8, 5, 5), (8, 2, 2), (8,)])
def test_frozen_batchnorm_equals_batchnorm(shape: tuple[int, ...]) -> None:
    norm = torch.nn.BatchNorm2d(8) if len(shape) == 3 else torch.nn.BatchNorm1d(8)
    norm(normal(20, *shape) * 2 + 1)
    norm.eval()
    frozen = FrozenNorm(norm)
    for values in (normal(3, *shape, seed=1), normal(9, *shape, seed=2)):
        assert torch.allclose(frozen(values), norm(values), atol=ROUNDING)


def test_taking_equals_indexing() -> None:
    values, index = normal(B, P, G, M), torch.tensor([[0, 6], [3, 3], [5, 1]])
    assert torch.equal(take(values, index), values[torch.arange(B)[:, None], index])


def test_draws_with_a_bound_each_equal_draws_one_bound_at_a_time() -> None:
    keys, counter, bounds = keys_of(5, torch.arange(9))[:, None], torch.arange(4), torch.tensor([2, 30, 1000, 7])
    together = draw(keys, counter, bounds)
    assert all(torch.equal(together[:, i], draw(keys[:, 0], counter[i], int(bounds[i]))) for i in range(4))
