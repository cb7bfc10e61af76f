"""MNIST, 3,000 training images, 16 channels: one-shot search, a closed loop of 3 rounds, and the cross-entropy baseline, over seeds.

    python benchmarks/mnist.py --data DIR [--seeds 3] [--json FILE]

DIR holds `MNIST/raw` (torchvision's layout).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import Run, arguments, free_name, mean_and_spread, run_config, write_json


def main() -> None:
    """Run both configurations for every seed, print one line each, then the means."""
    options = arguments(__doc__ or "")
    root = options.root.resolve()
    runs: list[Run] = []
    print(
        "run                  seed  test % by round        evaluations per image   search, s            overhead, s    peak MB   baseline %"
    )
    for config in ("mnist", "mnist-closed-loop"):
        for seed in range(options.seeds):
            name = free_name(root, f"{config}-seed{seed}")
            run = run_config(config, root=root, name=name, seed=seed, overrides=[f"dataset.root={options.data.resolve()}"])
            runs.append(run)
            print(line(config, run), flush=True)
    for config in ("mnist", "mnist-closed-loop"):
        chosen = [run for run in runs if run.name.startswith(f"{config}-seed")]
        for number in range(len(chosen[0].rounds)):
            accuracies = [run.rounds[number]["test/accuracy"] for run in chosen]
            print(f"{config}, round {number}: {mean_and_spread(accuracies)} % over {len(chosen)} seeds")
    baselines = [run.baseline["test/accuracy"] for run in runs if run.baseline]
    print(f"cross-entropy baseline: {mean_and_spread(baselines)} %")
    write_json(options.json, runs)


def line(config: str, run: Run) -> str:
    """Return a run's line of the table."""

    def column(key: str, form: str, factor: float = 1.0) -> str:
        return "  ".join(format(factor * metrics[key], form) for metrics in run.rounds)

    baseline = f"{100 * run.baseline['test/accuracy']:.2f}" if run.baseline else "-"
    return (
        f"{config:20} {run.seed:4}  {column('test/accuracy', '.2f', 100):21}  {column('search/evaluations_per_example', '.0f'):21}   "
        f"{column('seconds/search', '.0f'):20}  {column('seconds/overhead', '.2f'):14} {run.peak_memory_mb:7.0f}   {baseline}"
    )


if __name__ == "__main__":
    main()
