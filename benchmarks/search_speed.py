"""Candidate evaluations per second of search, beside other libraries, a plain loop and the floor; all in one run, in turn.

    python -m benchmarks.search_speed --channels 16 32 --threads 2 --json FILE

Rows: repsearch; evosax (SimpleGA); evotorch (functional operators); plain_loop (the paper's operators, written straight down); floor (the
bare forward pass of the part above the searched layer on ready candidates). All search block 0 (C x 13 x 13) of an untrained network with
the same population and generations. One repeat runs every row once; a figure is the median of the repeats, and a ratio the median of the
repeats' ratios, so that a machine that changes its speed does not change the comparison. The same per second of CPU time, summed over
threads, leaves out the time that other programs on the machine take. Peers and the plain loop run with the batch of images that suits them
best among a few. `--trained` measures what an evaluation costs on a learned network (see `search_speed_trained`), `--scaling` time per
image and two searchers (see `search_speed_scaling`).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import torch

from benchmarks.runs import write_json
from benchmarks.search_speed_loops import floor, plain_loop, repsearch
from benchmarks.search_speed_problem import Problem, make_problem
from benchmarks.search_speed_steps import shares
from repsearch.config.schema import SearchConfig
from repsearch.serving.threads import thread_environment

Row = Callable[[Problem], int]
PEERS = ("evosax", "evotorch")
INSTALL = "python -m pip install 'repsearch[peers]'"


def main() -> None:
    """Run the benchmark."""
    options = _arguments()
    wanted = thread_environment(options.threads)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        # All rows run with what a searcher's process is started with, which has to be set before torch is loaded.
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.search_speed", *sys.argv[1:]], {**os.environ, **wanted})
    _limit(options.threads)
    if options.scaling:
        from benchmarks.search_speed_scaling import scaling

        write_json(options.json, scaling(generations=options.generations, tile=options.tile))
        return
    if options.trained:
        from benchmarks.search_speed_trained import trained

        kept = {"images": options.images, "generations": options.generations, "tile": options.tile, "repeats": options.repeats}
        write_json(options.json, trained(options.channels, options.convolutions, print_row=lambda text: print(text, flush=True), **kept))
        return
    rows = []
    for channels in options.channels:
        problem = make_problem(channels=channels, images=options.images, generations=options.generations, tile=options.tile)
        if options.peak:
            _print_peak(options.peak, problem)
            return
        print(f"\n{channels} x 13 x 13, {options.images} images, {options.generations} generations, {options.threads} threads")
        found = _measure(problem, _rows(problem, options.only), options.repeats, options.threads)
        _print(found)
        steps = shares(problem)
        print("share of time: " + ", ".join(f"{name} {share:.0%}" for name, share in steps.items()))
        rows += [{"name": name, "channels": channels, **values} for name, values in found.items()]
        next(row for row in rows if row["name"] == "repsearch" and row["channels"] == channels)["steps"] = steps
    write_json(options.json, rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32], help="channels of block 0")
    parser.add_argument("--images", type=int, default=256, help="images searched")
    parser.add_argument("--generations", type=int, default=16, help="generations after the initial population")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads, and cores, of every row")
    parser.add_argument("--repeats", type=int, default=5, help="times each row runs")
    parser.add_argument("--tile", type=int, default=SearchConfig().micro_batch, help="images computed together by repsearch")
    parser.add_argument("--only", nargs="+", default=[], help="rows to run; all if none is given")
    parser.add_argument("--scaling", action="store_true", help="time per image from 500 to 10,000 images, and two searchers beside one")
    parser.add_argument("--trained", action="store_true", help="cost of an evaluation on a learned network, over the bare forward pass")
    parser.add_argument("--convolutions", type=int, nargs="+", default=[2, 4, 6], help="convolutions per block with --trained")
    parser.add_argument("--peak", choices=("repsearch", *PEERS, "plain_loop", "floor"), help="print the peak memory of one row and stop")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    return parser.parse_args()


def _limit(threads: int) -> None:
    """Keep this process on as many cores as threads: JAX takes all the cores it sees."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:threads])
    torch.set_num_threads(threads)


def _rows(problem: Problem, only: list[str]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for name in ("repsearch", *PEERS, "plain_loop", "floor"):
        if only and name not in only:
            continue
        if name in PEERS and importlib.util.find_spec(name) is None:
            print(f"{name} is skipped: it is not installed; {INSTALL}")
            continue
        rows[name] = _row(name, problem)
    return rows


def _row(name: str, problem: Problem, *, choose: bool = True) -> Row:
    """Return the row; `choose` the batch of images that suits it best, else the middle one of those tried."""
    if name == "repsearch":
        return repsearch
    if name == "floor":
        return floor
    batches = _batches(problem) if choose else _batches(problem)[1:2]
    if name == "plain_loop":
        return _fastest({batch: partial(plain_loop, batch=batch) for batch in batches}, problem)
    if name == "evotorch":
        from benchmarks.search_speed_evotorch import evotorch

        return _fastest({batch: partial(evotorch, batch=batch) for batch in batches}, problem)
    from benchmarks.search_speed_evosax import make_evosax

    return _fastest({batch: make_evosax(problem, batch) for batch in batches}, problem)


def _batches(problem: Problem) -> list[int]:
    return sorted({min(size, problem.images) for size in (16, 64, problem.images)})


def _fastest(rows: dict[int, Row], problem: Problem) -> Row:
    """Return the row of the batch that takes the least time; the first of two runs warms up and compiles."""
    if len(rows) == 1:
        return next(iter(rows.values()))
    seconds = {}
    for batch, row in rows.items():
        row(problem)
        begin = time.perf_counter()
        row(problem)
        seconds[batch] = time.perf_counter() - begin
    return rows[min(seconds, key=lambda batch: seconds[batch])]


def _measure(problem: Problem, rows: dict[str, Row], repeats: int, threads: int) -> dict[str, dict[str, float]]:
    memory = {name: _peak_memory(name, problem, threads) for name in rows}
    for row in rows.values():
        row(problem)
    wall: dict[str, list[float]] = {name: [] for name in rows}
    cpu: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(repeats):
        for name, row in rows.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            evaluations = row(problem)
            cpu[name].append(evaluations / (time.process_time() - begin_cpu))
            wall[name].append(evaluations / (time.perf_counter() - begin))
    return {
        name: {
            "evaluations_per_s": statistics.median(wall[name]),
            "evaluations_per_cpu_s": statistics.median(cpu[name]),
            "peak_memory_mb": memory[name],
            "repsearch_over_it": _ratio(wall, name),
            "repsearch_over_it_cpu": _ratio(cpu, name),
        }
        for name in rows
    }


def _ratio(rates: dict[str, list[float]], name: str) -> float:
    """Return the median over repeats of repsearch's rate over that of `name`."""
    ours = rates.get("repsearch", [])
    return statistics.median(a / b for a, b in zip(ours, rates[name], strict=True)) if ours else float("nan")


def _peak_memory(name: str, problem: Problem, threads: int) -> float:
    """Return by how many MB resident memory rises at most while a new process runs row `name` once, what it compiles included."""
    options = {
        "channels": problem.channels,
        "images": problem.images,
        "generations": problem.generations,
        "tile": problem.plan.micro_batch,
    }
    given = [text for option, value in options.items() for text in (f"--{option}", str(value))]
    command = [sys.executable, "-m", "benchmarks.search_speed", "--peak", name, "--threads", str(threads), *given]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def _print_peak(name: str, problem: Problem) -> None:
    row = _row(name, problem, choose=False)
    resident = psutil.Process().memory_info().rss
    try:
        Path("/proc/self/clear_refs").write_text("5")
        row(problem)
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        print(max(0.0, int(line.split()[1]) / 1024 - resident / 2**20))
    except (OSError, StopIteration):
        print(float("nan"))


def _print(found: dict[str, dict[str, float]]) -> None:
    print(f"{'':12}{'evaluations/s':>15}{'repsearch / it':>16}{'per CPU second':>16}{'repsearch / it':>16}{'peak memory MB':>16}")
    for name, values in found.items():
        rate, cpu = values["evaluations_per_s"], values["evaluations_per_cpu_s"]
        ratios = values["repsearch_over_it"], values["repsearch_over_it_cpu"]
        print(f"{name:12}{rate:15,.0f}{ratios[0]:16.2f}{cpu:16,.0f}{ratios[1]:16.2f}{values['peak_memory_mb']:16.0f}")


if __name__ == "__main__":
    main()
