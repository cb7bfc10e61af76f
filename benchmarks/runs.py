"""Run configurations as a user does, in processes of their own, and collect what they report."""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from orchestrator.evidence.results import commit
from orchestrator.rounds import load_reports
from store import open_store
from store.layout import RUN_DOCUMENT

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Run:
    """One finished run: its rounds' metrics, wall time, and the peak memory of the largest of its processes."""

    name: str
    seed: int
    rounds: list[dict[str, float]]
    baseline: dict[str, float] | None
    seconds: float
    peak_memory_mb: float

    @property
    def last(self) -> dict[str, float]:
        """Metrics of the last round."""
        return self.rounds[-1]


def run_config(config: str, *, root: Path, name: str, seed: int, overrides: Sequence[str] = ()) -> Run:
    """Return the finished run of `configs/<config>.toml`; raises `RuntimeError` with the output if it fails."""
    begin = time.monotonic()
    process = _started(_run_command(config, root, name, [f"run.seed={seed}", *overrides]))
    memory = PeakMemory(process.pid)
    _ended(process)
    seconds = time.monotonic() - begin
    baseline = root / f"{name}-baseline"
    rounds_of_baseline = reports(baseline) if baseline.exists() else []
    return Run(name, seed, reports(root / name), rounds_of_baseline[-1] if rounds_of_baseline else None, seconds, memory.stop())


def run_or_resume(config: str, *, root: Path, name: str, overrides: Sequence[str]) -> None:
    """Run `configs/<config>.toml` to its end; a run that is there goes on from what it committed, and a finished one stays as it is."""
    resume = [sys.executable, "-m", "orchestrator", "resume", str(root / name)]
    _ended(_started(resume if (root / name / RUN_DOCUMENT).exists() else _run_command(config, root, name, overrides)))


def _run_command(config: str, root: Path, name: str, overrides: Sequence[str]) -> list[str]:
    command = [sys.executable, "-m", "orchestrator", "run", str(ROOT / "configs" / f"{config}.toml"), "--name", name]
    for setting in (f"run.root={root}", *overrides):
        command += ["--set", setting]
    return command


def _started(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _ended(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, process.args))} ended with {process.returncode}:\n{output}")  # type: ignore[arg-type]


def reports(folder: Path) -> list[dict[str, float]]:
    """Return the metrics of every finished round of a run, in order."""
    return [report.metrics for report in load_reports(open_store(folder))]


class PeakMemory:
    """Largest high-water mark of resident memory over a process and its descendants, read while they live."""

    def __init__(self, pid: int) -> None:
        self._peak_kb = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(pid,), daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return the peak in MB."""
        self._done.set()
        self._thread.join()
        return self._peak_kb / 1024

    def _watch(self, pid: int) -> None:
        while not self._done.wait(0.25):
            try:
                parent = psutil.Process(pid)
                for process in [parent, *parent.children(recursive=True)]:
                    self._peak_kb = max(self._peak_kb, _high_water_kb(process.pid))
            except psutil.NoSuchProcess:
                continue


def _high_water_kb(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def mean_and_spread(values: Sequence[float]) -> str:
    """Return `mean +- standard deviation` of percentages given as fractions."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.2f} +- {100 * spread:.2f}"


def arguments(description: str) -> argparse.Namespace:
    """Return the arguments every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--root", type=Path, default=Path("runs/benchmarks"), help="folder for the runs")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the datasets (torchvision's `root`)")
    return parser.parse_args()


def free_name(root: Path, stem: str) -> str:
    """Return `stem-N` with the smallest N that no run in `root` has."""
    number = 1
    while (root / f"{stem}-{number}").exists():
        number += 1
    return f"{stem}-{number}"


PLACES = ("--data", "--root", "--json")
"""Options that say where files lie, which is left to whoever runs a command again."""


def command(arguments: Sequence[str]) -> str:
    """Return the command line that `arguments`, the program first, make anywhere: without places on this machine."""
    program = Path(arguments[0]).resolve()
    inside = program.relative_to(ROOT) if program.is_relative_to(ROOT) else Path(program.name)
    words = list(arguments[1:])
    kept = [word for place, word in enumerate(words) if word not in PLACES and (place == 0 or words[place - 1] not in PLACES)]
    return shlex.join(["python", str(inside), *(word for word in kept if not word.startswith(tuple(f"{name}=" for name in PLACES)))])


def write_json(path: Path | None, rows: Sequence[Any]) -> None:
    """Write rows, command, commit and machine to `path`, if one is given."""
    if path is None:
        return
    machine = {"processor": platform.processor() or platform.machine(), "cores": psutil.cpu_count(), "python": platform.python_version()}
    document = {
        "command": command(sys.argv),
        "commit": commit(),
        "machine": machine,
        "rows": [row if isinstance(row, dict) else asdict(row) for row in rows],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
