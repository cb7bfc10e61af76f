"""Random numbers as functions of seed, purpose and example."""

from __future__ import annotations

import torch

from repsearch.seeding import draw, generator, keys_of, mix, seed_of

MASK = (1 << 64) - 1


def splitmix_final(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def test_mix_is_the_splitmix64_finaliser() -> None:
    values = torch.tensor([0, 1, -1, 2**62, -(2**63), 123456789])
    expected = [splitmix_final(int(value) & MASK) for value in values]
    assert [int(value) & MASK for value in mix(values)] == expected


def test_draws_are_uniform_and_depend_on_the_key_and_counter_alone() -> None:
    keys = keys_of(seed_of(0, "search", 3), torch.arange(2000))
    numbers = draw(keys[:, None], torch.arange(50), 10)
    counts = torch.bincount(numbers.flatten(), minlength=10).double()
    # Chi-square with 9 degrees of freedom: 27.9 is its 0.1 % point.
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 27.9
    assert torch.equal(draw(keys[7:9, None], torch.arange(50), 10), numbers[7:9])
    assert torch.equal(draw(keys[:, None], torch.tensor([13]), 10)[:, 0], numbers[:, 13])


def test_seeds_differ_in_every_part_and_stay_the_same_across_versions() -> None:
    seeds = {seed_of(0, "search", 3), seed_of(1, "search", 3), seed_of(0, "learn", 3), seed_of(0, "search", 4), seed_of(0, "search", 3, 0)}
    assert len(seeds) == 5
    assert seed_of(0, "search", 3) == 8155355485484459597


def test_generators_repeat() -> None:
    assert torch.equal(torch.rand(5, generator=generator(1, "a")), torch.rand(5, generator=generator(1, "a")))
