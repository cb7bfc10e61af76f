"""The fused kernels against the PyTorch reference.

Run in Triton's interpreter on the CPU by tests/test_search_kernels.py, in a process of its own; with a GPU, run this file itself:
`python -m pytest tests/kernel_cases.py`.

Tolerances: float32 5e-5, as sums are taken in another order; float16 and bfloat16 one rounding of the result on top, 2**-11 and 2**-8 of
its size. The interpreter cuts bfloat16 off where a GPU rounds to nearest, so its bound is twice that there.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from repsearch.errors import ConfigError
from repsearch.seeding import draw, keys_of, mix
from searcher.kernels import Philox, Table, available, children
from searcher.kernels.evolution import FusedEvolution, rows_of, with_kernels
from searcher.noise import NoiseTable, smooth
from searcher.strategies.base import SearchLayer
from searcher.strategies.evolution import Evolution, deviations, finish, normalise_groups

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ABSOLUTE = 5e-5
RELATIVE = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8 if DEVICE.type == "cuda" else 2**-7}
COUNTER, STRENGTH = 72, 0.4
MAPS = [(3, 13, 13), (4, 15, 15), (5, 8, 8), (2, 1, 2), (1, 3, 5), (7, 4, 4)]
VECTORS = [(32, 1, 1), (10,), (100,)]


def pool_of(shape: tuple[int, ...], B: int = 3, Q: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    G, M = groups(shape)
    values = torch.randn(B, Q, G, M, generator=torch.Generator().manual_seed(1))
    scale = torch.linspace(0.5, 1.5, G)[:, None]
    return normalise_groups(values * scale + scale).to(dtype).to(DEVICE)


def groups(shape: tuple[int, ...]) -> tuple[int, int]:
    positions = math.prod(shape[1:])
    return (shape[0], positions) if positions > 1 else (1, shape[0])


def map_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[1], shape[2]) if math.prod(shape[1:]) > 1 else (1, shape[0])


def table_of(shape: tuple[int, ...], passes: int = 0) -> tuple[NoiseTable, Tensor]:
    own = shape if math.prod(shape[1:]) > 1 else shape[:1]
    table = NoiseTable(own, rows=64, passes=passes, rescale=True, seed=3, device=DEVICE)
    return table, rows_of(table, DEVICE)


def keys(B: int = 3) -> Tensor:
    return keys_of(11, torch.arange(B)).to(DEVICE)


def draws(B: int, P: int, Q: int, offsets: int) -> tuple[Tensor, Tensor, Tensor]:
    counter_P = COUNTER + 3 * torch.arange(P, device=DEVICE)
    keys_B1 = keys(B)[:, None]
    return draw(keys_B1, counter_P, Q), draw(keys_B1, counter_P + 1, Q), draw(keys_B1, counter_P + 2, offsets)


def before_finishing(pool_BQGM: Tensor, one_BP: Tensor, two_BP: Tensor, noise_BPGM: Tensor, strength: float = STRENGTH) -> Tensor:
    """The reference's arithmetic (`searcher.strategies.evolution`), by a gather of both members."""
    pool_BQGM = pool_BQGM.float()
    rows_B1 = torch.arange(len(pool_BQGM), device=DEVICE)[:, None]
    one, two = pool_BQGM[rows_B1, one_BP], pool_BQGM[rows_B1, two_BP]
    spread = (deviations(one) + deviations(two)) / 2
    return (one + two) / 2 + strength * spread[..., None] * noise_BPGM


def assert_close(result: Tensor, expected: Tensor, absolute: float = ABSOLUTE) -> None:
    assert result.shape == expected.shape
    assert ((result.float() - expected).abs() <= absolute + RELATIVE[result.dtype] * expected.abs()).all()


def philox_normals(seed: int, count: int) -> Tensor:
    """Philox 4x32-10 (Salmon et al. 2011) with a 64-bit key and counters 0, 1, ..., by Box and Muller: four values per counter."""
    values: list[float] = []
    for counter in range(-(-count // 4)):
        words = philox((counter, 0, 0, 0), (seed & 0xFFFFFFFF, seed >> 32))
        uniforms = [((word if word < 2**31 else 2**32 - 1 - word) * 4.6566127342e-10) for word in words]
        for first, second in (uniforms[:2], uniforms[2:]):
            radius = math.sqrt(-2 * math.log(max(first, 1e-7)))
            values += [radius * math.cos(2 * math.pi * second), radius * math.sin(2 * math.pi * second)]
    return torch.tensor(values[:count])


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        low, high = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(high >> 32) ^ c[1] ^ k0, high & 0xFFFFFFFF, (low >> 32) ^ c[3] ^ k1, low & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return tuple(c)


def test_the_kernels_are_available_here() -> None:
    assert available(DEVICE)


def test_the_philox_of_these_tests_gives_the_published_answers() -> None:
    assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert philox((ones,) * 4, (ones, ones)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)


@pytest.mark.parametrize("dtype", RELATIVE, ids=str)
@pytest.mark.parametrize("shape", MAPS + VECTORS, ids=str)
def test_children_from_the_table_equal_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    pool = pool_of(shape, dtype=dtype)
    table, rows = table_of(shape, passes=1 if len(shape) == 3 and shape[1] > 1 else 0)
    one, two, offset = draws(3, 5, 4, table.draws)
    expected = normalise_groups(before_finishing(pool, one, two, table.take(offset)))
    result = children(pool, keys_B=keys(), counter=COUNTER, count=5, strength=STRENGTH, mutation=Table(rows), map_shape=map_shape(shape))
    assert result.dtype == dtype
    assert_close(result, expected)


@pytest.mark.parametrize("dtype", RELATIVE, ids=str)
def test_logits_are_recentred_and_not_scaled(dtype: torch.dtype) -> None:
    pool = pool_of((10,), dtype=dtype) * 1.5
    table, rows = table_of((10,))
    one, two, offset = draws(3, 5, 4, table.draws)
    expected = before_finishing(pool, one, two, table.take(offset))
    result = children(
        pool, keys_B=keys(), counter=COUNTER, count=5, strength=STRENGTH, mutation=Table(rows), map_shape=(1, 10), recentre=True
    )
    assert_close(result, expected - expected.mean(dim=-1, keepdim=True))


def test_given_members_replace_the_draws() -> None:
    pool = pool_of((3, 13, 13))
    table, rows = table_of((3, 13, 13))
    *_, offset = draws(3, 2, 4, table.draws)
    one = torch.tensor([[0, 1], [2, 3], [3, 3]], device=DEVICE)
    two = torch.tensor([[0, 2], [1, 0], [3, 1]], device=DEVICE)
    expected = normalise_groups(before_finishing(pool, one, two, table.take(offset)))
    result = children(pool, one, two, keys_B=keys(), counter=COUNTER, count=2, strength=STRENGTH, mutation=Table(rows), map_shape=(13, 13))
    assert_close(result, expected)


@pytest.mark.parametrize("shape", [(4, 6, 6), (3, 13, 13)], ids=str)
def test_candidates_are_smoothed_before_they_are_normalised(shape: tuple[int, ...]) -> None:
    pool = pool_of(shape)
    table, rows = table_of(shape)
    one, two, offset = draws(3, 3, 4, table.draws)
    raw = before_finishing(pool, one, two, table.take(offset))
    expected = normalise_groups(smooth(raw.reshape(-1, *shape[1:]), 3).reshape(raw.shape))
    result = children(
        pool, keys_B=keys(), counter=COUNTER, count=3, strength=STRENGTH, mutation=Table(rows), map_shape=shape[1:], candidate_passes=3
    )
    assert_close(result, expected)


@pytest.mark.parametrize("dtype", RELATIVE, ids=str)
@pytest.mark.parametrize("shape", [(70, 15, 15), (33, 23, 23)], ids=str)
def test_a_candidate_larger_than_a_tile_is_made_tile_by_tile(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    pool = pool_of(shape, B=2, Q=3, dtype=dtype)
    table, rows = table_of(shape)
    one, two, offset = draws(2, 2, 3, table.draws)
    expected = normalise_groups(before_finishing(pool, one, two, table.take(offset)))
    result = children(pool, keys_B=keys(2), counter=COUNTER, count=2, strength=STRENGTH, mutation=Table(rows), map_shape=shape[1:])
    assert_close(result, expected)


@pytest.mark.parametrize(("passes", "rescale"), [(0, True), (1, False), (5, True), (5, False)])
def test_philox_mutations_equal_their_definition(passes: int, rescale: bool) -> None:
    pool = pool_of((3, 13, 13))
    mutation = Philox(passes=passes, rescale=rescale)
    result = children(pool, keys_B=keys(), counter=COUNTER, count=2, strength=STRENGTH, mutation=mutation, map_shape=(13, 13))
    # A smoothed map lies in rows of 16, any other in one row of 256 values.
    side, padded = (13, 16) if passes else (169, 256)
    noise = torch.stack([torch.stack([normals_of(example, child, 3) for child in range(2)]) for example in range(3)])
    noise = noise.view(3, 2, 3, -1, padded)[..., : 13 if passes else 1, :side].reshape(18, 13, 13)
    noise = smooth(noise, passes)
    if rescale:
        # The variance of a position is the sum of its squared weights.
        noise = noise / (smooth(torch.eye(169).view(169, 13, 13), passes).square().sum(dim=0).mean().sqrt())
    one, two, _ = draws(3, 2, 4, 1)
    assert_close(result, normalise_groups(before_finishing(pool, one, two, noise.view(3, 2, 3, 169).to(DEVICE))))


def normals_of(example: int, child: int, G: int) -> Tensor:
    gamma = 0x9E3779B97F4A7C15 - (1 << 64)
    bits = int(mix(keys()[example].cpu() + torch.tensor(COUNTER + 3 * child + 2) * gamma))
    return philox_normals(bits % (1 << 64), G * 256)


@pytest.mark.parametrize("passes", [0, 5])
def test_philox_mutations_have_the_statistics_of_the_table(passes: int) -> None:
    # At a large strength a child is its mutation, normalised.
    pool = pool_of((16, 13, 13), B=5, Q=1)
    noise = children(pool, keys_B=keys(5), counter=COUNTER, count=6, strength=1e4, mutation=Philox(passes=passes), map_shape=(13, 13))
    noise = noise.cpu().flatten(0, 1) / torch.linspace(0.5, 1.5, 16)[:, None]
    table = NoiseTable((16, 13, 13), rows=4096, passes=passes, rescale=True, seed=3, device=torch.device("cpu"))
    expected = table.take(torch.arange(0, table.draws, 16)[None])[0]
    assert correlation(noise) == pytest.approx(correlation(expected), abs=0.02)
    assert kurtosis(noise) == pytest.approx(kurtosis(expected), abs=0.15)
    if passes == 0:
        between = torch.corrcoef(noise.flatten(1))
        assert (between - torch.eye(len(between))).abs().max() < 0.1


def kurtosis(noise: Tensor) -> float:
    """Mean fourth power, in squared variances: 3 for normal values."""
    return float((noise**4).mean() / noise.square().mean().square())


def correlation(noise: Tensor) -> float:
    """Correlation of a position with its right neighbour."""
    maps = noise.reshape(-1, 13, 13)
    return float((maps[:, :, 1:] * maps[:, :, :-1]).mean() / maps.square().mean())


@pytest.mark.parametrize("mutation", [Philox(), Philox(passes=2), None], ids=["philox", "philox-smoothed", "table"])
def test_an_example_depends_on_its_own_key_and_pool_alone(mutation: Philox | None) -> None:
    shape = (3, 13, 13)
    pool = pool_of(shape, B=4)
    chosen = mutation or Table(table_of(shape)[1])
    fields = {"strength": STRENGTH, "mutation": chosen, "map_shape": (13, 13)}
    every = children(pool, keys_B=keys(4), counter=COUNTER, count=6, **fields)
    again = children(pool, keys_B=keys(4), counter=COUNTER, count=6, **fields)
    assert torch.equal(every, again)
    order = torch.tensor([2, 0], device=DEVICE)
    assert torch.equal(children(pool[order], keys_B=keys(4)[order], counter=COUNTER, count=6, **fields), every[order])
    # The children of a generation may be made in parts.
    assert torch.equal(children(pool, keys_B=keys(4), counter=COUNTER + 3 * 4, count=2, **fields), every[:, 4:])
    other = children(pool, keys_B=keys(4), counter=COUNTER + 3 * 6, count=6, **fields)
    assert (other - every).abs().mean() > 0.05


def test_one_member_without_deviation_gives_finite_children() -> None:
    result = children(
        torch.zeros(1, 1, 2, 9, device=DEVICE), keys_B=keys(1), counter=0, count=2, strength=1.0, mutation=Philox(), map_shape=(3, 3)
    )
    assert torch.equal(result, torch.zeros_like(result))


@pytest.mark.parametrize("blur", ["mutation", "candidate", "none"])
@pytest.mark.parametrize("shape", [(4, 13, 13), (32, 1, 1), (20,), (10,)], ids=str)
def test_the_strategy_proposes_what_it_proposes_without_kernels(shape: tuple[int, ...], blur: str) -> None:
    plain = Evolution(generations=[2], strength=[0.3], boost=[3.0], blur_passes=[2], blur=blur, noise_rows=64)  # type: ignore[arg-type]
    fused = with_kernels(plain, DEVICE)
    fused.check([0], [shape])
    kind = "logits" if shape == (10,) else "block"
    layer = SearchLayer(position=0, kind=kind, shape=shape, seed=5, device=DEVICE)  # type: ignore[arg-type]
    start = finish(pool_of(shape, Q=2), layer)
    state = plain.init(start, layer=layer, labels_B=torch.zeros(3, dtype=torch.int64, device=DEVICE), keys_B=keys())
    for generation in range(3):
        candidates = plain.ask(state)
        assert_close(fused.ask(state), candidates, absolute=5e-5)
        fitness = torch.randn(candidates.shape[:2], generator=torch.Generator().manual_seed(generation)).to(DEVICE)
        state = plain.tell(state, candidates, fitness)


@pytest.mark.parametrize("groups", [1, 3, 4, 64])
def test_the_rows_of_a_table_give_its_draws(groups: int) -> None:
    table = NoiseTable((groups, 2, 3), rows=131, passes=0, rescale=False, seed=3, device=DEVICE)
    rows = rows_of(table, DEVICE)
    every = table.take(torch.arange(table.draws, device=DEVICE)[None])[0]
    assert len(rows) == table.draws + groups - 1
    assert all(torch.equal(rows[o : o + groups], every[o]) for o in range(table.draws))


def test_a_layer_that_does_not_fit_the_kernel_is_refused() -> None:
    fields = {name: [1] for name in ("generations", "strength", "boost", "blur_passes")}
    with pytest.raises(ConfigError, match=r"search\.kernels: layer 2: a group of 70000 values takes 131072 registers, more than 65536"):
        FusedEvolution(**fields).check([2], [(70_000,)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"map_shape": (12, 13)}, r"map_shape \(12, 13\) has 156 positions, the pool 169"),
        ({"mutation": Table(torch.zeros(2, 169))}, r"table of \(2, 169\) for 3 x 169"),
        ({"mutation": Philox(passes=1), "candidate_passes": 2}, "smooth the mutation or the child, not both"),
        ({"recentre": True}, "recentre with 3 groups"),
        ({"out_BPGM": torch.zeros(3, 2, 3, 169)}, r"give \(3, 1, 3, 169\), contiguous from P on"),
        ({"pool": torch.zeros(1, 1, 1, 70_000), "map_shape": (1, 70_000)}, "a group of 70000 values takes 131072 registers"),
        ({"pool": torch.zeros(1, 2, 3, 169, dtype=torch.float64)}, "pool of torch.float64"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {"pool": pool_of((3, 13, 13)), "mutation": Philox(), "map_shape": (13, 13), **changes}
    pool = fields.pop("pool")
    with pytest.raises(ValueError, match=message):
        children(pool.to(DEVICE), keys_B=keys(), counter=0, count=1, strength=1.0, **fields)  # type: ignore[attr-defined, arg-type]
