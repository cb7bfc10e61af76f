"""Children per second of the fused kernel on a GPU, beside the PyTorch operators and the GPU's memory bandwidth.

    python -m benchmarks.gpu_children --json FILE

First `python -m pytest tests/kernel_cases.py` checks the kernel on that GPU. The first two rows make whole proposals of evolution (8
explorers of 4 parents, 12 refiners of 12 members); the others refiners alone, by one call of the kernel. Bytes are those that must cross
the memory bus: each child written once, each pool read once (the noise table stays in the cache). The limit is a copy of 1 GiB, timed here,
and `share` the bytes per second over that limit. Representations: C x 13 x 13.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.runs import write_json
from repsearch.seeding import keys_of
from searcher.kernels import Philox, Table, children
from searcher.kernels.evolution import rows_of, with_kernels
from searcher.noise import noise_table
from searcher.strategies.base import SearchLayer
from searcher.strategies.evolution import Evolution, normalise_groups

SIDE, PARENTS, EXPLORERS, REFINERS, PASSES = 13, 4, 8, 12, 5


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 128])
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--copy-mib", type=int, default=1024, help="size of the copy that gives the limit")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    limit = _bandwidth(device, options.copy_mib, options.repeats)
    print(f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else device}: a copy moves {limit / 1e9:.1f} GB/s")
    found = []
    for channels in options.channels:
        for name, count, moved, function in _rows(channels, options.images, device):
            seconds = _seconds(function, device, options.repeats)
            row = {"name": name, "channels": channels, "children_per_s": count / seconds, "share": moved / seconds / limit}
            print(f"{channels:4d} channels  {name:25s} {row['children_per_s']:15,.0f} children/s  {row['share']:6.1%} of the limit")
            found.append(row)
    write_json(options.json, [{"name": "copy", "bytes_per_s": limit}, *found])


def _rows(channels: int, images: int, device: torch.device) -> list[tuple[str, int, int, Callable[[], Tensor]]]:
    """Return name, children, bytes moved, and what makes them."""
    shape, size = (channels, SIDE, SIDE), channels * SIDE * SIDE
    layer = SearchLayer(position=0, kind="block", shape=shape, seed=0, device=device)
    plain = Evolution(generations=[24], strength=[0.3], boost=[5.0], blur_passes=[PASSES])
    keys_B = keys_of(0, torch.arange(images)).to(device)
    pool_BQGM = normalise_groups(torch.randn(images, PARENTS + EXPLORERS, channels, SIDE * SIDE, device=device))
    state = plain.init(pool_BQGM[:, :PARENTS].contiguous(), layer=layer, labels_B=keys_B, keys_B=keys_B)
    fitness_BP = torch.zeros(images, plain.population, device=device)
    state = plain.tell(state, plain.ask(state), fitness_BP)
    proposed = images * (EXPLORERS + REFINERS)
    moved = images * size * 4 * (PARENTS + EXPLORERS + PARENTS + EXPLORERS + REFINERS)
    fused = with_kernels(plain, device)
    rows: list[tuple[str, int, int, Callable[[], Tensor]]] = [
        ("proposal, PyTorch", proposed, moved, lambda: plain.ask(state)),
        ("proposal, kernel", proposed, moved, lambda: fused.ask(state)),
    ]
    table = Table(rows_of(noise_table(shape, plain.noise_rows, PASSES, True, 0, device), device))
    mutations: dict[str, Table | Philox] = {"table": table, "philox": Philox(), "philox, smoothed": Philox(passes=PASSES)}
    for name, mutation in mutations.items():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            pool = pool_BQGM.to(dtype)
            moved = images * size * pool.element_size() * (pool.shape[1] + REFINERS)
            rows.append((f"{name}, {str(dtype).removeprefix('torch.')}", images * REFINERS, moved, _call(pool, keys_B, mutation)))
    return rows


def _call(pool_BQGM: Tensor, keys_B: Tensor, mutation: Table | Philox) -> Callable[[], Tensor]:
    fields: dict[str, Any] = {"counter": 0, "count": REFINERS, "strength": 0.3, "map_shape": (SIDE, SIDE)}
    return lambda: children(pool_BQGM, keys_B=keys_B, mutation=mutation, **fields)


def _bandwidth(device: torch.device, mib: int, repeats: int) -> float:
    """Return bytes per second, read and written, of a copy."""
    source = torch.zeros(mib << 18, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _seconds(lambda: target.copy_(source), device, repeats)


def _seconds(function: Callable[[], Tensor], device: torch.device, repeats: int) -> float:
    """Return the median time of a call, after two that compile and warm up."""
    times = []
    for repeat in range(repeats + 2):
        _wait(device)
        begin = time.perf_counter()
        function()
        _wait(device)
        if repeat >= 2:
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
