"""Random numbers as a function of (run seed, purpose, indices) alone.

Two forms: `seed_of` gives one 63-bit seed for a generator (batch order, initial parameters); `keys_of` and `draw` give counter-based
integers per example, so that the numbers of an example do not depend on the batch, shard, daemon or order that computes it.
The integer arithmetic is exact (64 bits, wrapping), so CPU and GPU draw the same numbers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Multipliers of the splitmix64 finaliser (Steele, Lea & Flood 2014), as signed 64-bit integers.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def seed_of(run_seed: int, *parts: int | str) -> int:
    """Return a 63-bit seed that depends on `run_seed` and every one of `parts`."""
    text = "\x1f".join(str(part) for part in (run_seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(run_seed: int, *parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `seed_of(run_seed, *parts)`."""
    import torch

    return torch.Generator().manual_seed(seed_of(run_seed, *parts))


def mix(values: Tensor) -> Tensor:
    """Return the splitmix64 finaliser of int64 `values`: each output bit depends on each input bit."""
    values = (values ^ _shift(values, 30)) * _MIX_1
    values = (values ^ _shift(values, 27)) * _MIX_2
    return values ^ _shift(values, 31)


def keys_of(seed: int, index_B: Tensor) -> Tensor:
    """Return one int64 key per example index, from a 63-bit `seed` and int64 `index_B`."""
    return mix(index_B * _GAMMA + seed)


def draw(keys_B: Tensor, counter: Tensor, bound: int | Tensor) -> Tensor:
    """Return integers in [0, bound): one per key and counter (and bound), int64 of the broadcast shape.

    `counter` numbers the draws of a key; equal counters give equal draws. The bias of the modulo is below bound / 2**33.
    """
    return _shift(mix(keys_B + counter * _GAMMA), 31) % bound


def _shift(values: Tensor, bits: int) -> Tensor:
    # Logical shift right: torch's >> on int64 copies the sign bit.
    return (values >> bits) & ((1 << (64 - bits)) - 1)
