"""Digits: the closed loop of `make run` beside its cross-entropy baseline, over seeds; time, overhead and peak memory.

python benchmarks/digits.py [--seeds 3] [--json FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import arguments, free_name, mean_and_spread, run_config, write_json


def main() -> None:
    """Run every seed and print one line each, then the means."""
    options = arguments(__doc__ or "")
    root = options.root.resolve()
    runs = []
    print("seed  closed loop by round, test %   baseline %   seconds   overhead per round, s   peak memory, MB")
    for seed in range(options.seeds):
        run = run_config("digits", root=root, name=free_name(root, f"digits-seed{seed}"), seed=seed)
        runs.append(run)
        assert run.baseline is not None
        by_round = "  ".join(f"{100 * metrics['test/accuracy']:.2f}" for metrics in run.rounds)
        overhead = "  ".join(f"{metrics['seconds/overhead']:.2f}" for metrics in run.rounds)
        baseline = 100 * run.baseline["test/accuracy"]
        print(f"{seed:4}  {by_round:>29}   {baseline:10.2f}   {run.seconds:7.0f}   {overhead:>21}   {run.peak_memory_mb:15.0f}", flush=True)
    loop = mean_and_spread([run.last["test/accuracy"] for run in runs])
    baseline_text = mean_and_spread([run.baseline["test/accuracy"] for run in runs if run.baseline])
    print(f"closed loop {loop} %, baseline {baseline_text} % over {len(runs)} seeds")
    write_json(options.json, runs)


if __name__ == "__main__":
    main()
