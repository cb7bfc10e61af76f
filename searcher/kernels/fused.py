"""The Triton kernel of `searcher.kernels.children`; importing this module imports Triton.

One program makes one child. It reads the two members (G, M) from memory, holds the child in registers as float32 and writes it once,
normalised. A child larger than a tile is computed twice, tile by tile: first for its mean and variance, then to be written; members come
from the cache the second time, and the mutation is the same because it is a function of its address.

Padded positions of a tile are zero in the members, and are left out of sums by `inside`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mix(value):
    """Return the splitmix64 finaliser of uint64 `value`: `repsearch.seeding.mix`."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB
    return value ^ (value >> 31)


@triton.jit
def hashed(key, counter):
    """Return the 64 bits of draw `counter` of a key, both int64, as uint64; `repsearch.seeding.draw` reduces them to a bound."""
    return mix(key.to(tl.uint64) + counter.to(tl.uint64) * 0x9E3779B97F4A7C15)


@triton.jit
def bounded(bits, bound):
    """Return the int64 in 0..bound-1 that `repsearch.seeding.draw` gives."""
    return (bits >> 31).to(tl.int64) % bound


@triton.jit
def normals(seed, group, T: tl.constexpr, N: tl.constexpr):
    """Return standard normal values (T, N) for groups `group` (T,): Philox with key `seed`, four values per counter."""
    quad = group.to(tl.int32)[:, None] * (N // 4) + tl.arange(0, N // 4)[None, :]
    first, second, third, fourth = tl.randn4x(seed, quad)
    # Joined so that the values of a counter are neighbours, in order.
    return tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), (T, N))


@triton.jit
def smoothed(value, down, across, T: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr):
    """Return maps `value` (T, HP * WP) after smoothing by the transposed matrices `down` (HP, HP) and `across` (WP, WP)."""
    w = tl.arange(0, WP)
    h = tl.arange(0, HP)
    across_WW = tl.load(across + w[:, None] * WP + w[None, :])
    down_HH = tl.load(down + h[:, None] * HP + h[None, :])
    value = tl.dot(tl.reshape(value, (T * HP, WP)), across_WW, input_precision="ieee")
    value = tl.permute(tl.reshape(value, (T, HP, WP)), (0, 2, 1))
    value = tl.dot(tl.reshape(value, (T * WP, HP)), down_HH, input_precision="ieee")
    value = tl.permute(tl.reshape(value, (T, WP, HP)), (0, 2, 1))
    return tl.reshape(value, (T, HP * WP))


@triton.jit
def deviation(value, inside, M):
    """Return the standard deviation (T, 1) over the positions `inside`."""
    mean = tl.sum(value, axis=1, keep_dims=True) / M
    centred = tl.where(inside, value - mean, 0.0)
    return tl.sqrt(tl.sum(centred * centred, axis=1, keep_dims=True) / M)


@triton.jit
def child_tile(
    first,
    second,
    table,
    down,
    across,
    seed,
    strength,
    group,
    place,
    inside,
    M,
    T: tl.constexpr,
    HP: tl.constexpr,
    WP: tl.constexpr,
    TABLE: tl.constexpr,
    SMOOTH_MUTATION: tl.constexpr,
    SMOOTH_CHILD: tl.constexpr,
):
    """Return groups `group` of a child (T, HP * WP), float32, before normalisation, zero where not `inside`."""
    one = tl.load(first + place, mask=inside, other=0.0).to(tl.float32)
    two = tl.load(second + place, mask=inside, other=0.0).to(tl.float32)
    if TABLE:
        noise = tl.load(table + place, mask=inside, other=0.0).to(tl.float32)
    else:
        noise = normals(seed, group, T, HP * WP)
        if SMOOTH_MUTATION:
            noise = smoothed(noise, down, across, T, HP, WP)
    spread = 0.5 * (deviation(one, inside, M) + deviation(two, inside, M))
    child = 0.5 * (one + two) + strength * spread * noise
    if SMOOTH_CHILD:
        child = smoothed(child, down, across, T, HP, WP)
    return tl.where(inside, child, 0.0)


@triton.jit(do_not_specialize=["counter"])
def children_kernel(
    pool,
    out,
    keys,
    ones,
    twos,
    table,
    down,
    across,
    counter,
    strength,
    P,
    Q,
    draws,
    out_stride,
    G,
    H,
    W,
    EPS: tl.constexpr,
    T: tl.constexpr,
    TILES: tl.constexpr,
    HP: tl.constexpr,
    WP: tl.constexpr,
    DRAWN: tl.constexpr,
    TABLE: tl.constexpr,
    SMOOTH_MUTATION: tl.constexpr,
    SMOOTH_CHILD: tl.constexpr,
    RECENTRE: tl.constexpr,
):
    """Write child (program) % P of example (program) // P; arguments as in `searcher.kernels.children.children`."""
    program = tl.program_id(0).to(tl.int64)
    example = program // P
    key = tl.load(keys + example)
    number = counter + 3 * (program % P)
    if DRAWN:
        one = bounded(hashed(key, number), Q)
        two = bounded(hashed(key, number + 1), Q)
    else:
        one = tl.load(ones + program)
        two = tl.load(twos + program)
    seed = hashed(key, number + 2)
    M = H * W
    first = pool + (example * Q + one) * G * M
    second = pool + (example * Q + two) * G * M
    if TABLE:
        table += bounded(seed, draws) * M

    index = tl.arange(0, HP * WP)
    position = index // WP * W + index % WP
    real = (index // WP < H) & (index % WP < W)
    group = tl.arange(0, T)
    target = out + example * out_stride + program % P * G * M
    if TILES == 1:
        inside = (group < G)[:, None] & real[None, :]
        place = group[:, None] * M + position[None, :]
        child = child_tile(
            first, second, table, down, across, seed, strength, group, place, inside, M,
            T, HP, WP, TABLE, SMOOTH_MUTATION, SMOOTH_CHILD,
        )  # fmt: skip
        mean = tl.sum(child) / (G * M)
        child = child - mean
        if not RECENTRE:
            centred = tl.where(inside, child, 0.0)
            child = child * tl.rsqrt(tl.sum(centred * centred) / (G * M) + EPS)
        tl.store(target + place, child.to(out.dtype.element_ty), mask=inside)
    else:
        total = 0.0
        squares = 0.0
        for tile in range(TILES):
            inside = (tile * T + group < G)[:, None] & real[None, :]
            place = (tile * T + group)[:, None] * M + position[None, :]
            child = child_tile(
                first, second, table, down, across, seed, strength, tile * T + group, place, inside, M,
                T, HP, WP, TABLE, SMOOTH_MUTATION, SMOOTH_CHILD,
            )  # fmt: skip
            total += tl.sum(child)
            squares += tl.sum(child * child)
        mean = total / (G * M)
        scale = tl.rsqrt(tl.maximum(squares / (G * M) - mean * mean, 0.0) + EPS)
        for tile in range(TILES):
            inside = (tile * T + group < G)[:, None] & real[None, :]
            place = (tile * T + group)[:, None] * M + position[None, :]
            child = child_tile(
                first, second, table, down, across, seed, strength, tile * T + group, place, inside, M,
                T, HP, WP, TABLE, SMOOTH_MUTATION, SMOOTH_CHILD,
            )  # fmt: skip
            tl.store(target + place, ((child - mean) * scale).to(out.dtype.element_ty), mask=inside)
