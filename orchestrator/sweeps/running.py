"""A sweep from start to end: checks -> workers -> trials -> best values; and the same again for `resume`.

RUNS/mnist-sweep-1/sweep.json        configuration and space
                   optuna.db         the trials
                   trial-0003/       the run of trial 3, with `result.json`
                   best.toml         the configuration with the best values, once all trials are done
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.progress import Display
from orchestrator.remote import refuse_store_root
from orchestrator.runs import DEFAULT_ROOT, RunLock, choose_name, run_root
from orchestrator.sweeps.pool import Workers
from orchestrator.sweeps.settings import Sweep, check_sweep, load_sweep, parse_sweep
from orchestrator.sweeps.space import toml_value
from orchestrator.sweeps.worker import Request, Result
from orchestrator.tracking import tracking_uri
from repsearch.config import RunConfig
from repsearch.errors import ConfigError, JobError, NumericalError, StoreError
from store.documents import require_schema
from store.files import replace_file

SWEEP_FILE = "sweep.json"
SCHEMA = 1
"""Version of that file; a reader refuses any other."""
BEST_FILE = "best.toml"
ACCURACY = "validation/accuracy"


@dataclass(frozen=True)
class Prepared:
    """A sweep that could start, fully checked: its folder, and the configuration it starts from."""

    folder: Path
    sweep: Sweep
    config: RunConfig
    jobs: int


@dataclass(frozen=True)
class Best:
    """The trial that was best on validation."""

    number: int
    values: dict[str, Any]
    accuracy: float


def prepare(path: Path, overrides: Sequence[str], name: str | None, jobs: int) -> Prepared:
    """Return the sweep of configuration file `path`, fully checked; writes and starts nothing."""
    sweep = load_sweep(path, overrides)
    refuse_store_root(sweep.config({}).store.root, "a sweep")
    config = check_sweep(sweep)
    _check_jobs(config, jobs)
    root = run_root(config)
    return Prepared(
        root / choose_name(root, path.stem if path.stem.endswith("sweep") else f"{path.stem}-sweep", name, baseline=False),
        sweep,
        config,
        jobs,
    )


def start(prepared: Prepared, display: Display) -> Best:
    """Perform a prepared sweep."""
    prepared.folder.mkdir(parents=True)
    create(prepared.folder, prepared.sweep)
    return go_on(prepared, display)


def find_sweep(text: str) -> Path | None:
    """Return the folder of sweep `text`, a folder or a name under `runs`; None if there is no such sweep."""
    return next((folder.absolute() for folder in (Path(text), DEFAULT_ROOT / text) if (folder / SWEEP_FILE).is_file()), None)


def reopen(folder: Path, jobs: int) -> Prepared:
    """Return the sweep in `folder`, fully checked."""
    try:
        document = json.loads((folder / SWEEP_FILE).read_text())
        require_schema(str(folder / SWEEP_FILE), document, SCHEMA)
        table = document["table"]
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{folder / SWEEP_FILE}: cannot be read: {error}") from None
    sweep = parse_sweep(table, str(folder / SWEEP_FILE))
    config = check_sweep(sweep)
    _check_jobs(config, jobs)
    return Prepared(folder, sweep, config, jobs)


def create(folder: Path, sweep: Sweep) -> None:
    """Write what the sweep in `folder` is."""
    table = {**sweep.table, "sweep": sweep.settings.model_dump()}
    replace_file(folder / SWEEP_FILE, (json.dumps({"schema": SCHEMA, "table": table}, indent=1) + "\n").encode())


def choose(folder: Path, sweep: Sweep, workers: Workers, tell: Callable[[str], None], *, jobs: int = 1) -> Best:
    """Return the best trial of the sweep in `folder`, performing those that have no result yet, `jobs` at a time.

    A trial whose loss or fitness does not stay finite, or whose values a run refuses together, has no result and counts.
    """
    best = perform_trials(folder, sweep, workers, tell, jobs=jobs)
    if isinstance(best, list):
        raise JobError(f"{folder}: none of {sweep.trials} trials has a result: {'; '.join(best)}")
    replace_file(folder / BEST_FILE, best_toml(best, sweep).encode())
    return best


def perform_trials(
    folder: Path, sweep: Sweep, workers: Workers, tell: Callable[[str], None], *, jobs: int = 1, most: int = sys.maxsize
) -> Best | list[str]:
    """Perform the first `most` trials that have no result yet; return the best of all so far, or the errors where none has a result."""
    # Imported when needed: Optuna takes a second.
    from orchestrator.sweeps.choosing import Trial, Trials

    seed = sweep.config({}).run.seed
    trials = Trials(folder, sweep, seed=seed)

    def perform(trial: Trial) -> None:
        try:
            same = next((done for done in trials.all() if done.accuracy is not None and done.values == trial.values), None)
            if same is not None and same.accuracy is not None:
                trials.tell(trial, same.accuracy)
                tell(f"trial {trial.number + 1} of {sweep.trials}: as trial {same.number + 1}")
                return
            result = workers.run(request_of(folder, sweep, trial.number, trial.values))
        except (NumericalError, ConfigError) as error:
            trials.fail(trial, str(error))
            tell(f"trial {trial.number + 1} of {sweep.trials}: no result: {error}")
            return
        trials.tell(trial, result.metrics[ACCURACY])
        tell(f"trial {trial.number + 1} of {sweep.trials}: {describe(trial.values, result)}")

    def loop() -> None:
        while (trial := trials.next(most)) is not None:
            perform(trial)

    try:
        at_once(workers, [loop] * jobs)
        best = trials.best()
        if best is None or best.accuracy is None:
            return sorted({trial.error for trial in trials.all() if trial.error})
        return Best(best.number, dict(best.values), best.accuracy)
    finally:
        trials.close()


def at_once(workers: Workers, pieces: Sequence[Callable[[], None]]) -> None:
    """Call every piece, all at once in threads; the first error, or Ctrl-C, ends the workers and with them the other pieces."""
    if len(pieces) == 1:
        pieces[0]()
        return
    with ThreadPoolExecutor(len(pieces)) as pool:
        try:
            for future in as_completed([pool.submit(piece) for piece in pieces]):
                future.result()
        except BaseException:
            workers.stop()
            raise


def request_of(folder: Path, sweep: Sweep, number: int, values: Any) -> Request:
    """Return the run of trial `number` of the sweep in `folder`."""
    config = sweep.config(values)
    table = config.model_dump(mode="json")
    # The runs of a sweep lie in its folder, but MLflow has them beside other runs.
    table["tracking"]["uri"] = tracking_uri(config.tracking.uri, root=run_root(config))
    table["run"]["root"] = str(folder)
    return Request(
        folder=str(folder / f"trial-{number:04d}"),
        config=table,
        toml=config_toml(table),
        sweep={"name": folder.name, "trial": number},
        prune=sweep.settings.prune,
    )


def config_toml(table: dict[str, Any]) -> str:
    """Return a resolved configuration as TOML, a line per key of a section."""
    lines = []
    for section, fields in table.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {toml_value(_without_none(value))}" for key, value in fields.items() if value is not None]
    return "\n".join(lines) + "\n"


def best_lines(best: Best, sweep: Sweep) -> list[str]:
    """Return the best values as TOML, with a comment that says how good they are."""
    head = f"# trial {best.number + 1} of {sweep.trials}: validation accuracy {best.accuracy:.4f}"
    return [head, *(f"{key} = {toml_value(value)}" for key, value in best.values.items())]


def best_toml(best: Best, sweep: Sweep) -> str:
    """Return the whole configuration with the best values."""
    comments = [line if line.startswith("#") else f"# {line}" for line in best_lines(best, sweep)]
    return "\n".join([*comments, config_toml(sweep.config(best.values).model_dump(mode="json"))])


def describe(values: Any, result: Result) -> str:
    """Return a line about a trial."""
    settings = ", ".join(f"{key} = {_short(value)}" for key, value in values.items())
    return f"validation {result.metrics[ACCURACY]:.2%} in {result.seconds:.0f} s with {settings}"


def go_on(prepared: Prepared, display: Display) -> Best:
    """Perform the trials that have no result yet, and return the best of all."""
    folder = prepared.folder
    try:
        with RunLock(folder), Workers(prepared.jobs, folder) as workers:
            display.message(f"sweep {folder.name} in {folder}: {prepared.sweep.trials} trials")
            return choose(folder, prepared.sweep, workers, display.message, jobs=prepared.jobs)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"what is done is kept; go on: orchestrator resume {folder}")
        raise


def _check_jobs(config: RunConfig, jobs: int) -> None:
    if jobs < 1:
        raise ConfigError(f"--jobs: {jobs}; give 1 or more")
    if jobs > 1 and (config.searcher.addresses or config.learner.address):
        raise ConfigError(f"--jobs: {jobs} runs at a time would share the daemons at the given addresses; leave them out, or give 1")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else toml_value(value)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return value
