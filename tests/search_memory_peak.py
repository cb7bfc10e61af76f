"""Measures in a process of its own what a search takes: reads cases as JSON lines of arguments, writes [tile, peak in MB] for each."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import torch

from repsearch.config import parse_config
from repsearch.families import STRATEGIES
from repsearch.networks import build_network, calibrate
from repsearch.search_memory import MB, tile_of
from searcher.search import SearchPlan, search_examples
from tests.networks import made_up_data


def peak_of(case: dict[str, Any]) -> tuple[int, float]:
    """Return the images per tile and the growth of the resident set in MB while `case` is searched, less the results themselves."""
    config = parse_config({"network": case["network"], "search": case["search"]})
    data = made_up_data(tuple(case["image"]), train=case["images"], classes=10)
    strategy = STRATEGIES.build(config.search.strategy)
    tile = case.get("tile") or tile_of(config, data, strategy)
    network = build_network(config.network, data, seed=0, purpose="searched")
    calibrate(network, data.train.images[:64])
    layers = [len(network.blocks) if layer == "logits" else layer for layer in config.search.layers]
    plan = SearchPlan(
        strategy=strategy,
        layers=layers,  # type: ignore[arg-type]
        seed=0,
        round=0,
        input_noise=0.1,
        from_network=False,
        micro_batch=tile,
        searches=config.search.searches_per_example,
    )
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    result = search_examples(plan, network, data.train, first=0, count=case["images"], device=torch.device("cpu"))
    # At the end the parts are joined, so the results are there twice.
    results = 2 * sum(target.numel() * target.element_size() for target in result.targets)
    return tile, (resident("VmHWM") - before - results) / MB


def resident(name: str) -> int:
    """Return a field of the process's status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = json.loads(sys.argv[1])
    peak_of({**cases[0], "images": 1})  # loads the compiler
    print(json.dumps([peak_of(case) for case in cases]))
