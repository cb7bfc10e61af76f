"""A process that performs runs, one after another, on daemons that stay: `python -m orchestrator.sweeps.worker ROOT`.

Reads a request per line from stdin, JSON with the fields of `Request`, and answers each with a line on stdout: `{"result": {...}}` or
`{"error": {"kind", "message"}}`. A run that is there is gone on with; one that is done is only read. Ends at once when stdin ends, its
daemons with it: what is committed is kept.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from orchestrator.daemons import check_fleet, connected
from orchestrator.execution import check_same_data, opened
from orchestrator.local import LocalDaemons, LocalSpec, local_specs
from orchestrator.preflight import Preflight, check_run, library_versions
from orchestrator.report import RoundReport, measured
from orchestrator.rounds import run_rounds
from orchestrator.runs import Run, RunLock, create_folder, new_run_id, open_run, save_run
from orchestrator.work import Work
from repsearch.config import RunConfig
from repsearch.datasets import cached_data
from repsearch.errors import DaemonError, JobError, RepSearchError
from store import layout
from store.files import remove_folder, replace_file

RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A run to perform: its folder (below the worker's root), resolved configuration, and the text for its `config.toml`.

    sweep: the sweep's name and the trial's number, for a trial.
    prune: delete targets and networks once the result is known.
    """

    folder: str
    config: Mapping[str, Any]
    toml: str
    sweep: Mapping[str, Any] = field(default_factory=dict)
    prune: bool = False


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run gave.

    metrics: of the last round, see `orchestrator.report`.
    evaluations: candidate evaluations per training image, all rounds.
    search_s, learn_s, seconds: time searching, learning, and in all rounds.
    wall_s: time of the last opening of the run, with loading the data; in a worker's first run also with starting daemons.
    core_s: processor time of searchers and learner in the last opening of the run, if they are local: what the run costs a core, however
        busy the machine is with other work; else 0.
    resumed: whether the run was cut and gone on with; its times lack what came before.
    curves: by epoch of a run of one round, what learning recorded of each: `loss`, `validation_accuracy` and the like.
    """

    metrics: Mapping[str, float]
    evaluations: float
    search_s: float
    learn_s: float
    seconds: float
    wall_s: float = 0.0
    core_s: float = 0.0
    resumed: bool = False
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)


def read_result(folder: Path) -> Result | None:
    """Return the result of the run in `folder`, or None if it is not done."""
    try:
        return Result(**json.loads((folder / RESULT).read_text()))
    except (OSError, ValueError, TypeError):
        return None


class Worker:
    """Performs runs below `root`; local daemons start when first needed and stay."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stack = ExitStack()
        self._local: dict[tuple[LocalSpec, ...], LocalDaemons] = {}

    def perform(self, request: Request) -> Result:
        """Return the result of a run, performed now or before; raises `RepSearchError`."""
        folder, begin = Path(request.folder), time.monotonic()
        if (found := read_result(folder)) is not None:
            return found
        config = RunConfig.model_validate(request.config)
        preflight = check_run(config, cached_data(config.dataset, seed=config.run.seed))
        searchers = (config.searcher.addresses or self._addresses("searcher", config)) if preflight.searches else []
        learner = config.learner.address or self._addresses("learner", config)[0]
        with connected(searchers, learner, config, self._started_anew) as fleet:
            resumed = (folder / layout.RUN_DOCUMENT).is_file()
            if not resumed:
                # A folder without `run.json` is what a process killed in between left.
                remove_folder(folder, missing_ok=True)
                create_folder(_new_run(folder, preflight, request.sweep), request.toml.encode())
            with RunLock(folder):
                run = open_run(folder)
                if resumed:
                    run = replace(run, term=run.term + 1)
                    check_same_data(run, preflight)
                    save_run(run)
                check_fleet(run, fleet)
                before_s = self._processor_s()
                with opened(run, list(preflight.layers), fleet, _Silent(), resumed=resumed) as work:
                    reports = run_rounds(work)
                    result = replace(_result(reports, run.dataset["train"]), curves=_curves(work, reports))
                core_s = self._processor_s() - before_s
                result = replace(result, wall_s=time.monotonic() - begin, core_s=core_s, resumed=resumed)
                replace_file(folder / RESULT, (json.dumps(asdict(result), indent=1) + "\n").encode())
                if request.prune:
                    for part in (layout.ROUNDS_FOLDER, layout.STREAM_FOLDER):
                        remove_folder(folder / part, missing_ok=True)
        return result

    def close(self) -> None:
        """Stop the daemons."""
        self._stack.close()
        self._local.clear()

    def _addresses(self, service: str, config: RunConfig) -> list[str]:
        specs = tuple(spec for spec in local_specs(config) if spec.service == service)
        if specs not in self._local:
            self._local[specs] = self._stack.enter_context(LocalDaemons(specs, self._root))
        return self._local[specs].addresses(service)

    def _started_anew(self, address: str) -> str:
        return next((what for local in self._local.values() if (what := local.started_anew(address))), "")

    def _processor_s(self) -> float:
        """Return the processor time of all local daemons and their compute processes so far."""
        daemons = [psutil.Process(pid) for local in self._local.values() for _, pid in local.processes()]
        times = [process.cpu_times() for daemon in daemons for process in (daemon, *daemon.children())]
        return float(sum(spent.user + spent.system for spent in times))


def main(arguments: Sequence[str]) -> None:
    """Answer the requests on stdin."""
    # Replies alone go to stdout; whatever a library prints goes to the log.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    worker = Worker(Path(arguments[0]))
    while True:
        replies.write(json.dumps(_answer(worker, requests.get())) + "\n")


def _answer(worker: Worker, line: str) -> dict[str, Any]:
    try:
        request = Request(**json.loads(line))
        result = worker.perform(request)
    except RepSearchError as error:
        if isinstance(error, (DaemonError, JobError)):
            # Its daemons may be gone; the next run starts others.
            worker.close()
        return {"error": {"kind": type(error).__name__, "message": str(error)}}
    except Exception as error:
        traceback.print_exc()
        return {"error": {"kind": "JobError", "message": f"{type(error).__name__}: {error}"}}
    print(f"{request.folder}: {result.wall_s:.1f} s", file=sys.stderr)
    return {"result": asdict(result)}


def _read(requests: queue.Queue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    # The pipes to the daemons close with the process, and they end with that.
    os._exit(0)


def _new_run(folder: Path, preflight: Preflight, sweep: Mapping[str, Any]) -> Run:
    return Run(
        folder=folder,
        run_id=new_run_id(),
        name="-".join([str(sweep["name"]), folder.name]) if sweep else folder.name,
        term=1,
        config=preflight.config,
        dataset=preflight.dataset,
        digests=preflight.digests(),
        versions=library_versions(),
        created=time.time(),
        sweep=sweep,
    )


def _result(reports: Sequence[RoundReport], examples: int) -> Result:
    def total(name: str) -> float:
        return sum(report.metrics[name] for report in reports)

    return Result(
        metrics=dict(measured(reports)[-1].metrics),
        evaluations=total("search/evaluations") / examples,
        search_s=total("seconds/search"),
        learn_s=total("seconds/learn"),
        seconds=total("seconds/round"),
    )


def _curves(work: Work, reports: Sequence[RoundReport]) -> dict[str, list[float]]:
    """Return the history of epochs of a run of one round; of others nothing, their curves are in MLflow."""
    if len(reports) != 1 or reports[0].learned is None:
        return {}
    epochs = work.store.manifest(reports[0].learned["path"]).attributes["epochs"]
    names = set.intersection(*(set(epoch) for epoch in epochs)) - {"epoch"}
    return {name: [float(epoch[name]) for epoch in epochs] for name in sorted(names)}


class _Silent:
    """A display that shows nothing."""

    def message(self, text: str) -> None:
        """Show nothing."""

    def begin(self, label: str, total: float, unit: str) -> None:
        """Show nothing."""

    def update(self, done: float, text: str = "") -> None:
        """Show nothing."""

    def end(self, text: str) -> None:
        """Show nothing."""


if __name__ == "__main__":
    main(sys.argv[1:])
