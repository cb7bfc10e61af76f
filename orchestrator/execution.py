"""A run from start to end: preflight -> daemons -> run folder -> rounds -> baseline; and the same again for `resume`."""

from __future__ import annotations

import _thread
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator import interrupts, leases
from orchestrator.changing import changed
from orchestrator.control import Control
from orchestrator.daemons import Fleet, check_fleet, connected, rejoin, renewed
from orchestrator.handshake import check_handshakes
from orchestrator.journal import Journal, last_of_run, read_journal
from orchestrator.local import LocalDaemons, local_specs
from orchestrator.policies import RoundPlan, make_policy
from orchestrator.preflight import Preflight, check_run, library_versions, planned
from orchestrator.progress import Display
from orchestrator.remote import adopted, is_remote, names_in, store_of
from orchestrator.report import RoundReport
from orchestrator.roster import Roster
from orchestrator.rounds import load_reports, run_rounds
from orchestrator.runs import BASELINE, Run, RunLock, choose_name, create_folder, new_run_id, open_run, run_root, save_run
from orchestrator.tracking import MlflowTracker, NoTracker, Tracker, tracking_uri
from orchestrator.work import RunLog, Work
from repsearch.config import RunConfig, load_config, parse_config
from repsearch.errors import ConfigError, DatasetError, RepSearchError, StoppedError
from repsearch.failpoints import reach
from repsearch.windows import windows_of
from store import Store, open_store

TRACKER_CLOSE_S = 60.0
"""Seconds that MLflow may take to catch up after the last round."""
TRACKER_KILLED_S = 5.0
"""The same after Ctrl-C."""


@dataclass(frozen=True)
class Finished:
    """A run that is done: the run, its rounds, and those of its baseline (none without one)."""

    run: Run
    reports: list[RoundReport]
    baseline: list[RoundReport]


@dataclass(frozen=True)
class Prepared:
    """A run that could start: its name, the checks, and those of its baseline."""

    name: str
    toml: bytes
    main: Preflight
    baseline: Preflight | None


def prepare(path: Path, overrides: list[str], name: str | None) -> Prepared:
    """Return the run of configuration file `path`, fully checked; writes and starts nothing."""
    config = load_config(path, overrides)
    chosen = choose_name(run_root(config), path.stem, name, baseline=config.run.baseline, elsewhere=names_in(config.store.root))
    check_handshakes(config)
    main = check_run(config)
    return Prepared(chosen, path.read_bytes(), main, _baseline_of(main))


def baseline_config(config: RunConfig, examples: int) -> RunConfig:
    """Return the cross-entropy run that `config` is measured against: same network, optimiser and number of epochs, learned by
    backpropagation, without search.

    examples: in the training set.
    """
    table = config.model_dump(mode="json")
    table["run"]["baseline"] = False
    table["learn"]["objective"] = "cross_entropy"
    table["learn"]["rule"] = "backprop"
    table["learn"]["epochs"] = _epochs_of_last(config, examples)
    table["learn"]["start"] = "fresh"
    table["rounds"] = {"policy": "learn_only", "count": 1}
    return parse_config(table)


def _epochs_of_last(config: RunConfig, examples: int) -> int:
    """Return the passes over the training set that made the last network: those of its round, and of the rounds that it went on from."""
    plans, windows = planned(make_policy(config), config, examples), windows_of(config, examples)
    plan: RoundPlan | None = plans[-1]
    seen = 0
    while plan is not None:
        seen += plan.epochs * windows.of(plan.round).count
        plan = None if plan.warm_round is None else plans[plan.warm_round]
    return max(1, round(seen / examples))


def _baseline_of(main: Preflight) -> Preflight | None:
    """Return what is checked of the baseline of a run, if it is to have one."""
    if not main.config.run.baseline:
        return None
    return replace(main, config=baseline_config(main.config, main.dataset["train"]), layers={}, evaluations=None)


def start(prepared: Prepared, display: Display) -> Finished:
    """Run a prepared run, and its baseline, to the end."""
    run = new_run(prepared.main, prepared.name)
    with daemons(prepared.main, display) as fleet:
        check_fleet(run, fleet)
        create_folder(run, prepared.toml)
        display.message(f"run {run.name} in {run.folder}")
        with resumable(run):
            with RunLock(run.folder):
                run = in_next_term(run, display, resumed=False)
                reports = _perform(run, prepared.main, fleet, display, resumed=False)
            baseline = _baseline(run, prepared.baseline, fleet, display)
    return Finished(run, reports, baseline)


def resume(folder: Path, display: Display, overrides: Sequence[str] = ()) -> Finished:
    """Go on with the run in `folder`, and its baseline, from what is committed; `overrides` (a.b=value) change what may change then."""
    run = reopened(folder, overrides)
    baseline_folder = folder.with_name(folder.name + BASELINE)
    more = run.config.rounds.count > open_run(folder).config.rounds.count
    if not more and is_finished(folder) and (not run.config.run.baseline or is_finished(baseline_folder)):
        display.message(f"{folder}: the run is finished; nothing to resume")
        return finished(folder)
    with RunLock(folder), resumable(run):
        # Read again: another orchestrator may have raised the term before the lock was ours.
        run = reopened(folder, overrides)
        check_handshakes(run.config)
        known_free = free_term(run, display)
        main = check_run(run.config)
        check_same_data(run, main)
        run = in_next_term(run, display, resumed=True, known_free=known_free)
        save_run(run)
        baseline = _baseline_of(main)
        with daemons(main, display) as fleet:
            check_fleet(run, fleet)
            display.message(f"resuming run {run.name} in {run.folder}, term {run.term}")
            reports = _perform(run, main, fleet, display, resumed=True)
            return Finished(run, reports, _baseline(run, baseline, fleet, display))


def reopened(folder: Path, overrides: Sequence[str]) -> Run:
    """Return the run in `folder` with the values that `overrides` set; raises `ConfigError` for those that must not change."""
    run = changed(open_run(folder), overrides, done=len(load_reports(store_of(folder))) if overrides else 0)
    baseline = folder.with_name(folder.name + BASELINE)
    if overrides and run.config.run.baseline and baseline.is_dir():
        was, wanted = open_run(baseline).config.learn.epochs, baseline_config(run.config, run.dataset["train"]).learn.epochs
        if was != wanted:
            raise ConfigError(
                f"--set: the baseline learns {was} epochs, as many as the last network of {run.name} was to; with these rounds it would be "
                f"{wanted}; remove {baseline} to have it learned anew, or start a new run"
            )
    return run


def free_term(run: Run, display: Display) -> int:
    """Return the newest term of a run in an object store, once its owner is gone, see `leases`; -1 for another run."""
    if not is_remote(run.location):
        return -1
    return leases.free(open_store(run.location), run.folder, leases.Watch(display.message))


def in_next_term(run: Run, display: Display, *, resumed: bool, known_free: int = -1) -> Run:
    """Return `run` in the term that begins; its lock is held. In an object store the term is taken from everybody, see `leases`."""
    if is_remote(run.location):
        store, watch = open_store(run.location), leases.Watch(display.message)
        term = leases.claim(store, run.folder, above=run.term if resumed else 0, watch=watch, known_free=known_free)
        return replace(run, term=term)
    return replace(run, term=run.term + 1) if resumed else run


def finished(folder: Path) -> Finished:
    """Return the run in `folder` and its baseline as far as they are done."""
    baseline = folder.with_name(folder.name + BASELINE)
    return Finished(open_run(folder), load_reports(store_of(folder)), load_reports(store_of(baseline)) if baseline.is_dir() else [])


@contextmanager
def resumable(run: Run) -> Iterator[None]:
    """Add to every error, and to Ctrl-C (as a note), how the run is resumed."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"what is committed is kept; resume the run: {resume_command(run.folder)}")
        raise
    except RepSearchError as error:
        raise type(error)(f"{error}\nwhat is committed is kept; resume the run: {resume_command(run.folder)}") from error


def resume_command(folder: Path) -> str:
    """Return the command that resumes the run in `folder`."""
    return f"orchestrator resume {folder}"


@contextmanager
def daemons(preflight: Preflight, display: Display) -> Iterator[Fleet]:
    """Start the local daemons that the configuration asks for and connect to all; stop the local ones at the end."""
    config = preflight.config
    specs = [spec for spec in local_specs(config) if preflight.searches or spec.service != "searcher"]
    with LocalDaemons(specs, run_root(config), store=config.store.root) as local:
        for address, pid in local.processes():
            display.message(f"started {address}, process {pid}")
        searchers = (config.searcher.addresses or local.addresses("searcher")) if preflight.searches else []
        with connected(searchers, config.learner.address or local.addresses("learner")[0], config, local.started_anew) as fleet:
            yield fleet


def new_run(preflight: Preflight, name: str, *, baseline_of: str = "", study: Mapping[str, Any] | None = None) -> Run:
    """Return the run that `preflight` checked, in its first term; nothing is written."""
    return Run(
        folder=run_root(preflight.config) / name,
        run_id=new_run_id(),
        name=name,
        term=1,
        config=preflight.config,
        dataset=preflight.dataset,
        digests=preflight.digests(),
        versions=library_versions(),
        created=time.time(),
        baseline_of=baseline_of,
        study=study or {},
    )


def _baseline(main: Run, preflight: Preflight | None, fleet: Fleet, display: Display) -> list[RoundReport]:
    """Run or resume the baseline of `main`, if it is to have one."""
    if preflight is None:
        return []
    folder = main.folder.with_name(main.name + BASELINE)
    resumed = folder.exists()
    if is_finished(folder):
        return load_reports(store_of(folder))
    if not resumed and is_remote(main.location) and folder.name in names_in(main.config.store.root):
        # Begun by another host, which is lost.
        resumed = adopted(f"{main.config.store.root}/{folder.name}").is_dir()
    if not resumed:
        run = new_run(preflight, folder.name, baseline_of=main.name)
        create_folder(run, (main.folder / "config.toml").read_bytes())
    with RunLock(folder):
        run = in_next_term(open_run(folder), display, resumed=resumed)
        if resumed:
            save_run(run)
        display.message(f"baseline {run.name} in {run.folder}")
        return _perform(run, preflight, fleet, display, resumed=resumed)


def _perform(run: Run, preflight: Preflight, fleet: Fleet, display: Display, *, resumed: bool) -> list[RoundReport]:
    with opened(run, list(preflight.layers), fleet, display, resumed=resumed) as work:
        return run_rounds(work)


@contextmanager
def opened(run: Run, layers: Sequence[str], fleet: Fleet, display: Display, *, resumed: bool) -> Iterator[Work]:
    """Work on `run` with journal and tracking; record how it ended, whatever the end."""
    with interrupts.deferred(), Journal(run.folder) as journal:
        tracker = make_tracker(run, display)
        log = RunLog(journal, tracker)
        status, error_text = "FINISHED", ""
        roster = Roster(lambda daemon: rejoin(run, fleet, daemon), report=lambda event, text: _incident(log, display, event, text))
        try:
            log.append(
                "run_started",
                run_id=run.run_id,
                name=run.name,
                term=run.term,
                resumed=resumed,
                config=run.config.model_dump(mode="json"),
                dataset=dict(run.dataset),
                tags=run.tags(),
            )
            store = open_store(run.location, chunk_mb=run.config.store.chunk_mb)
            heard = Control(run.folder, lambda event, text: _incident(log, display, event, text))
            with heard as control, renewed(fleet, roster), _leased(run, store, display):
                yield Work(
                    run=run,
                    store=store,
                    log=log,
                    display=display,
                    fleet=fleet,
                    layers=layers,
                    roster=roster,
                    waits=control.waits,
                    wanted=control.wanted,
                )
        except KeyboardInterrupt:
            status, error_text = "KILLED", "interrupted"
            raise
        except StoppedError as error:
            status, error_text = "KILLED", str(error)
            raise
        except BaseException as error:
            status, error_text = "FAILED", f"{type(error).__name__}: {error}"
            raise
        finally:
            roster.close()
            reach("run.finish.before")
            log.append("run_finished", status=status, error=error_text)
            reach("run.finish.after")
            tracker.close(TRACKER_KILLED_S if status == "KILLED" else TRACKER_CLOSE_S)


def _incident(log: RunLog, display: Display, event: str, text: str) -> None:
    log.incident(event, text)
    if event in ("daemon_back", "daemon_restarted", "asked"):
        # What is done about a lost one is said by whoever lost it.
        display.message(text)


@contextmanager
def _leased(run: Run, store: Store, display: Display) -> Iterator[None]:
    """Tell other hosts that this orchestrator works on the run, and stop when another does, where a file lock does not reach them."""
    if not is_remote(run.location):
        yield
        return

    def stop(text: str) -> None:
        display.message(f"{text}; this one stops")
        _thread.interrupt_main()

    with leases.beating(store, run.term, stop):
        yield


def make_tracker(run: Run, display: Display) -> Tracker:
    """Return what mirrors the run's journal to MLflow, or nothing where tracking is off."""
    tracking = run.config.tracking
    if not tracking.enabled:
        return NoTracker()
    return MlflowTracker(run.folder, tracking_uri(tracking.uri, root=run.folder.parent), tracking.experiment, tell=display.message)


def is_finished(folder: Path) -> bool:
    """Return whether the run in `folder` came to its end."""
    last = last_of_run(read_journal(folder))
    return last is not None and last["kind"] == "run_finished" and last["status"] == "FINISHED"


def check_same_data(run: Run, preflight: Preflight) -> None:
    """Raise `DatasetError` unless the data are those that the run was started with."""
    if preflight.dataset["digest"] != run.dataset["digest"]:
        raise DatasetError(
            f"dataset {run.dataset['name']}: the data are not those that the run was started with: digest {preflight.dataset['digest']}, "
            f"in run.json {run.dataset['digest']}; put the files back as they were"
        )
