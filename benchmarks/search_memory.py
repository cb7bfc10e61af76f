"""What a search takes in memory beside what `repsearch.search_memory` says it needs, for strategies and networks.

python benchmarks/search_memory.py [--network NAME] [--strategy NAME] [--json FILE]

Each case runs in a process of its own: the resident set before `search_examples`, its peak during it, and their difference less the
results, which the budget does not cover. `need` is the estimate for the case's images per tile.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCHEDULE = {"generations": [2, 2, 2, 1], "strength": [0.3] * 4, "boost": [3.0] * 4}
EVOLUTION = {"name": "evolution", **SCHEDULE}
STRATEGIES: dict[str, dict[str, Any]] = {
    "evolution": EVOLUTION,
    "evolution, candidates smoothed": {**EVOLUTION, "blur": "candidate"},
    "evolution, images stop": {**EVOLUTION, "stop_probability": 0.9, "seeding": "parents"},
    "evolution of 96": {**EVOLUTION, "population": 96, "parents": 16, "explorers": 32, "refiners": 48},
    "evolution_strategy": {"name": "evolution_strategy", "generations": [2] * 4},
    "quality_diversity": {"name": "quality_diversity", "generations": [2] * 4},
    "random_search": {"name": "random_search", "generations": [2] * 4},
    "gradient": {"name": "gradient"},
    "class_code": {"name": "class_code"},
    "none": {"name": "none"},
}
RESNET = {"name": "torchvision", "model": "resnet18", "stages": ["layer1", "layer2", "layer3"]}
NETWORKS: dict[str, dict[str, Any]] = {
    "convnet": {"image": [1, 28, 28], "network": {"name": "convnet", "width": 16, "convolutions": 2}, "tile": 128},
    "convnet, learned": {"image": [3, 32, 32], "network": {"name": "convnet", "width": 64}, "tile": 32, "learned": True},
    "mlp": {"image": [1, 28, 28], "network": {"name": "mlp", "widths": [256, 256, 256]}, "tile": 256},
    "resnet18": {"image": [3, 64, 64], "network": RESNET, "tile": 16},
}


def main() -> None:
    """Run the cases asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS)
    parser.add_argument("--strategy", choices=STRATEGIES)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    print(f"{'network':18}{'strategy':32}{'images':>7}{'need MB':>9}{'peak MB':>9}{'ratio':>7}", flush=True)
    for network in [arguments.network] if arguments.network else NETWORKS:
        for strategy in [arguments.strategy] if arguments.strategy else STRATEGIES:
            case = {**NETWORKS[network], "strategy": STRATEGIES[strategy]}
            # Eight tiles are searched side by side where images stop; as many images in all.
            case["tile"] //= 8 if "stop_probability" in case["strategy"] else 1
            command = [sys.executable, __file__, "--case", json.dumps(case)]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append({"network": network, "strategy": strategy, **row})
            figures = f"{row['tile']:7}{row['need_mb']:9.0f}{row['peak_mb']:9.0f}{row['need_mb'] / row['peak_mb']:7.2f}"
            print(f"{network:18}{strategy:32}{figures}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1))


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Return the images per tile, the need in MB and the peak in MB of one case, in this process."""
    import torch

    from repsearch.datasets.base import Split
    from repsearch.datasets.splitting import assemble
    from repsearch.families import STRATEGIES as FAMILY
    from repsearch.networks import build_network, calibrate
    from repsearch.search_memory import MB, memory_of
    from searcher.search import SearchPlan, search_examples

    torch.set_num_threads(1)
    rng, tile = torch.Generator().manual_seed(0), case["tile"]
    count = max(tile, 8 * tile if "stop_probability" in case["strategy"] else 0, 64)
    images = torch.randint(0, 256, (count, *case["image"]), generator=rng, dtype=torch.uint8)
    split = Split(images, torch.arange(count) % 10)
    data = assemble("noise", [str(number) for number in range(10)], train=split, validation=split, test=split)
    network = build_network(case["network"], data, seed=0, purpose="searched")
    calibrate(network, images[:64])
    if case.get("learned"):
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=rng)
    strategy = FAMILY.build(case["strategy"])
    layers = list(range(network.logits_layer + 1))
    plan = SearchPlan(
        strategy=strategy, layers=layers, seed=0, round=0, input_noise=0.1, from_network=False, micro_batch=tile
    )  # fmt: skip
    need = memory_of(strategy, network, layers, data.input_shape).need(tile)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    result = search_examples(plan, network, split, first=0, count=count, device=torch.device("cpu"))
    results = 2 * sum(target.numel() * target.element_size() for target in result.targets)
    return {"tile": tile, "need_mb": need / MB, "peak_mb": (_resident("VmHWM") - before - results) / MB}


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure(json.loads(sys.argv[2]))))
    else:
        main()
