"""Time per image as images grow, and two searchers with a core each beside one, for `search_speed --scaling`."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from typing import Any

import torch

from benchmarks.search_speed_problem import made_up_data, made_up_network, make_plan
from searcher.search import search_examples

IMAGES = (500, 1000, 2000, 5000, 10_000)
CHANNELS, REPEATS, SHARED_IMAGES = 16, 3, 2000
TIMEOUT_S = 1800


def scaling(*, generations: int, tile: int) -> list[dict[str, Any]]:
    """Print and return a row per number of images, and one for two searchers; every searcher is a process with one core."""
    seconds: dict[int, list[float]] = {images: [] for images in IMAGES}
    ratios = []
    for _ in range(REPEATS):
        for images in IMAGES:
            seconds[images].append(_together(1, images, generations, tile) / images)
        one, two = (_together(count, SHARED_IMAGES, generations, tile) for count in (1, 2))
        ratios.append(one / two)
    rows: list[dict[str, Any]] = [
        {"name": "time_per_image", "images": images, "milliseconds": 1000 * statistics.median(values)} for images, values in seconds.items()
    ]
    rows.append({"name": "two_searchers", "images": SHARED_IMAGES, "rate_over_one": statistics.median(ratios)})
    for row in rows:
        print(", ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()))
    return rows


def _together(searchers: int, images: int, generations: int, tile: int) -> float:
    """Return the seconds that `searchers` processes take for `images` images in all, from when all of them are ready."""
    context = multiprocessing.get_context("spawn")
    # A searcher that fails breaks the barriers once the others have waited this long.
    ready, done = (context.Barrier(searchers + 1, timeout=TIMEOUT_S) for _ in range(2))
    share = images // searchers
    processes = [
        context.Process(target=_search, args=(number, number * share, share, images, generations, tile, ready, done))
        for number in range(searchers)
    ]
    for process in processes:
        process.start()
    ready.wait()
    begin = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - begin
    for process in processes:
        process.join()
    return seconds


def _search(number: int, first: int, count: int, images: int, generations: int, tile: int, ready: Any, done: Any) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    torch.set_num_threads(1)
    data = made_up_data(images)
    network = made_up_network(data, CHANNELS)
    plan, device = make_plan(generations, tile, layers=3), torch.device("cpu")
    search_examples(plan, network, data.train, first=0, count=tile, device=device)
    ready.wait()
    search_examples(plan, network, data.train, first=first, count=count, device=device)
    done.wait()
