"""The command `orchestrator`. Heavy imports are inside the commands, so that help and errors come at once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import repsearch
from orchestrator.printing import print_best, print_plan, print_result, print_study, print_sweep
from repsearch import failpoints
from repsearch.errors import ConfigError, RepSearchError, StoppedError

app = typer.Typer(
    help="Train networks by search and learning in rounds.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)

INTERRUPTED = 130
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or the name of a run under runs/.")]
JobsOption = Annotated[int, typer.Option("--jobs", help="Runs at a time, each on local daemons of its own.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Run the command line; ends the process with the exit code."""
    # gRPC's core writes lines of its own to stderr; what they say is in our errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        failpoints.check()
        app()
    except RepSearchError as error:
        _say(str(error) if isinstance(error, StoppedError) else f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt as interrupt:
        _say("\n".join(["interrupted", *getattr(interrupt, "__notes__", [])]))
        sys.exit(INTERRUPTED)


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False) -> None:
    """Take the options before the command."""
    if version:
        print(repsearch.__version__)
        raise typer.Exit


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A run's configuration, a TOML file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=v", help="Set one value of the configuration; repeatable.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: the file's name and the next free number.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, start and write nothing.")] = False,
) -> None:
    """Run rounds of search and learning, and the baseline if the configuration asks for it."""
    with _interruptible():
        from orchestrator import execution
        from orchestrator.progress import make_display

        prepared = execution.prepare(config, set_ or [], name)
        console = _console()
        if dry_run:
            print_plan(console, prepared.name, prepared.main)
            return
        with make_display(console) as display:
            finished = execution.start(prepared, display)
        print_result(console, finished)


@app.command()
def study(
    kind: Annotated[str, typer.Argument(metavar="STUDY", help="scaling, diversity, targets or ensemble.")],
    config: Annotated[Path, typer.Argument(help="A run's configuration, a TOML file.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=v", help="Set one value of the configuration, or of the study (study.b=v); repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study; default: file, study and the next free number.")] = None,
    images: Annotated[int | None, typer.Option(help="Training images to search, the first ones.")] = None,
    strategies: Annotated[str | None, typer.Option(metavar="A,B", help="Strategies to compare; default: see docs/studies.md.")] = None,
) -> None:
    """Search the same images in many settings, or learn from many searches; figures and tables go to RUN/analysis and to MLflow."""
    with _interruptible():
        from orchestrator.progress import make_display
        from orchestrator.studies import running

        fields: dict[str, Any] = {} if images is None else {"images": images}
        if strategies is not None:
            fields["strategies"] = [part.strip() for part in strategies.split(",")]
        prepared = running.prepare(kind, config, set_ or [], name, fields)
        with make_display(_console()) as display:
            folder = running.start(prepared, display)
        print_study(_console(), folder)


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(help="A run's configuration with a table [sweep], a TOML file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=v", help="Set one value of the configuration, or of [sweep]; repeatable.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep; default: the file's name and the next free number.")] = None,
    jobs: JobsOption = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the space, start and write nothing.")] = False,
) -> None:
    """Try values of a configuration, and choose those that are best on validation."""
    with _interruptible():
        from orchestrator.progress import make_display
        from orchestrator.sweeps import running

        prepared, console = running.prepare(config, set_ or [], name, jobs), _console()
        if dry_run:
            print_sweep(console, prepared)
            return
        with make_display(console) as display:
            best = running.start(prepared, display)
        print_best(prepared.folder, prepared.sweep, best)


@app.command()
def reproduce(
    table: Annotated[
        str, typer.Argument(help="table1, table2, table2b, table3, loop, loop-augmented, candidates, rules or local; see docs/evidence.md.")
    ],
    dataset: Annotated[str, typer.Option(help="mnist or cifar10.")] = "mnist",
    images: Annotated[int | None, typer.Option(help="Training images; default: the fewest of the table.")] = None,
    scale: Annotated[str, typer.Option(help="cpu: narrow networks; gpu: the source paper's configuration.")] = "cpu",
    seeds: Annotated[int, typer.Option(help="Final runs per row, seeds from 0.")] = 3,
    trials: Annotated[int, typer.Option(help="Trials per row, from which its settings are chosen on validation.")] = 8,
    jobs: Annotated[int, typer.Option(help="Rows at a time, each on local daemons of one thread.")] = 2,
    data: Annotated[Path, typer.Option(help="Folder with MNIST/raw, and with the image folder cifar10.")] = Path("data"),
    root: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs/evidence"),
    out: Annotated[Path, typer.Option(help="Folder for results and page.")] = Path("evidence"),
    row: Annotated[list[str] | None, typer.Option("--row", help="Make this row alone; repeatable.")] = None,
    values_from: Annotated[Path | None, typer.Option(help="Result file whose chosen values are taken; no trials then.")] = None,
    equal_seconds: Annotated[str, typer.Option(help="Row of --values-from; make every row as long as it took there.")] = "",
    epochs: Annotated[int | None, typer.Option(help="Passes over the data, in place of the scale's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and estimate the time from runs that are there.")] = False,
    time: Annotated[bool, typer.Option("--time", help="Run the first trial of every row and estimate the time; the trials count.")] = False,
) -> None:
    """Make a table of evidence: every method's settings chosen on validation, then runs over seeds. Again: what is missing."""
    with _interruptible():
        from orchestrator.evidence.command import reproduce as perform
        from orchestrator.evidence.running import Order

        order = Order(
            table=table,
            dataset=dataset,
            images=images,
            scale=scale,
            seeds=seeds,
            trials=trials,
            jobs=jobs,
            data=data,
            root=root,
            out=out,
            only=tuple(row or ()),
            values_from=values_from,
            equal_seconds=equal_seconds,
            epochs=epochs,
        )
        perform(order, _console(), dry_run=dry_run, time=time)


@app.command()
def resume(
    run: RunArgument,
    jobs: JobsOption = 1,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="a.b=v", help="Change a value on which no result depends, such as addresses, or rounds.count to more."
        ),
    ] = None,
) -> None:
    """Go on with a run, a study or a sweep from what it committed, or with a run that is paused; `--jobs` is for a sweep.

    RUN may be the s3:// location of a run whose folder is lost.
    """
    with _interruptible():
        from orchestrator import execution
        from orchestrator.progress import make_display
        from orchestrator.remote import adopted, is_remote
        from orchestrator.runs import find_run, open_run
        from orchestrator.steering import ask, is_paused
        from orchestrator.sweeps import running as sweeps

        console = _console()
        if (found := sweeps.find_sweep(run)) is not None:
            _refuse_set(set_, "sweep")
            with make_display(console) as display:
                prepared = sweeps.reopen(found, jobs)
                print_best(found, prepared.sweep, sweeps.go_on(prepared, display))
            return
        folder = adopted(run) if is_remote(run) else find_run(run)
        if is_paused(folder):
            _refuse_set(set_, "run that is paused, which goes on as it is: stop it first")
            print(f"{ask(folder, 'go_on')} goes on with the run")
            return
        if open_run(folder).study:
            _refuse_set(set_, "study")
            from orchestrator.studies import running

            with make_display(console) as display:
                print_study(_console(), running.resume(folder, display))
            return
        with make_display(console) as display:
            finished = execution.resume(folder, display, set_ or [])
        print_result(console, finished)


@app.command()
def stop(
    run: RunArgument,
    now: Annotated[bool, typer.Option("--now", help="Cancel the jobs that run; what they have not committed is lost.")] = False,
) -> None:
    """End a run in order, from anywhere that sees its folder: when the jobs that run have committed what they have."""
    from orchestrator.runs import find_run
    from orchestrator.steering import ask

    who = ask(find_run(run), "stop_now" if now else "stop")
    print(f"{who} stops{' now' if now else ' when the jobs that run have committed'}; go on with: orchestrator resume {find_run(run)}")


@app.command()
def pause(run: RunArgument) -> None:
    """Let a run begin no more jobs until `orchestrator resume`, from anywhere that sees its folder; its daemons stay."""
    from orchestrator.runs import find_run
    from orchestrator.steering import ask

    print(f"{ask(find_run(run), 'pause')} pauses when the jobs that run have committed; go on with: orchestrator resume {find_run(run)}")


@app.command()
def status(run: RunArgument, as_json: JsonOption = False) -> None:
    """Say what a run is doing, also while it runs."""
    from orchestrator.runs import find_run
    from orchestrator.status import readable, status_of
    from orchestrator.tables import fields_table, print_table

    found = status_of(find_run(run))
    _print_json(found) if as_json else print_table(_console(), fields_table(readable(found)))


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs, as folders or names.")], as_json: JsonOption = False
) -> None:
    """Show runs side by side: the figures of the last round, and the settings that differ."""
    from orchestrator.compare import compare_runs
    from orchestrator.runs import find_run
    from orchestrator.tables import compare_table, print_table

    rows = compare_runs([find_run(run) for run in runs])
    _print_json(rows) if as_json else print_table(_console(), compare_table(rows))


@app.command()
def analyse(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Finished runs of the same data, as folders or names.")],
    examples: Annotated[int, typer.Option(min=1, help="Training images that representations are measured on, the first ones.")] = 1000,
    points: Annotated[int, typer.Option(min=2, help="Networks per curve, at most; those between are left out evenly.")] = 30,
    round: Annotated[int | None, typer.Option(min=0, help="Round to analyse; default: the last.")] = None,
    test: Annotated[bool, typer.Option("--test", help="Score on the test images instead of those of validation.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what runs learned, beside their baselines; figures and tables go to RUN/analysis and to MLflow."""
    with _interruptible():
        from orchestrator.analysing.command import Options
        from orchestrator.analysing.command import analyse as analyse_folders
        from orchestrator.progress import make_display
        from orchestrator.runs import find_run
        from orchestrator.tables import print_table, rows_table

        folders = [find_run(run) for run in runs]
        # Of JSON, stdout holds nothing else.
        with make_display(Console(highlight=False, stderr=as_json)) as display:
            found = analyse_folders(folders, Options(examples=examples, points=points, round=round, test=test), display)
        if as_json:
            _print_json(found.to_dict())
            return
        for rows in (found.scores, found.agreement):
            if rows:
                print_table(_console(), rows_table(rows))
        for folder in found.folders:
            for path in sorted(folder.iterdir()):
                print(path)


@app.command()
def verify(run: RunArgument, as_json: JsonOption = False) -> None:
    """Check that everything that a run refers to is there and unaltered; exit code 4 if not. RUN may be an s3:// location."""
    from orchestrator.remote import is_remote
    from orchestrator.runs import find_run
    from orchestrator.verify import verify as verify_store
    from repsearch.errors import StoreError

    folder = run if is_remote(run) else find_run(run)
    findings = verify_store(folder)
    if as_json:
        _print_json({"run": str(folder), "ok": not findings, "findings": findings})
    else:
        for finding in findings:
            print(finding["problem"])
        print(f"{folder}: {f'{len(findings)} findings' if findings else 'whole: everything it refers to is there and unaltered'}")
    if findings:
        raise typer.Exit(StoreError.exit_code)


@app.command()
def sync(
    run: RunArgument,
    uri: Annotated[str, typer.Option("--uri", help="MLflow tracking URI; default: the run's own.")] = "",
) -> None:
    """Bring MLflow up to date with a run's journal."""
    from orchestrator.runs import find_run
    from orchestrator.tracking import sync as sync_folder

    folder = find_run(run)
    result = sync_folder(folder, uri=uri)
    print(f"{folder}: {result.records} records are in MLflow at {result.uri}, run {result.mlflow_run_id}")


@app.command()
def metrics(
    root: Annotated[Path, typer.Argument(help="Folder that holds the runs.")] = Path("runs"),
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Loopback address to serve at.")] = "127.0.0.1:9400",
) -> None:
    """Serve the state of the runs in a folder to Prometheus, until interrupted; see docs/operations.md."""
    with _interruptible():
        from orchestrator.metrics import serve

        serve(root.expanduser().absolute(), listen)


@app.command()
def certs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for certificates and keys; an authority that is there signs.")],
    host: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME[,NAME...]", help="A daemon's host, by the names and addresses it is called by; repeatable."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days that the certificates are valid.")] = 365,
    token: Annotated[bool, typer.Option("--token", help="Make a token too.")] = False,
) -> None:
    """Make a private authority and certificates for daemons and orchestrator; see docs/security.md."""
    from orchestrator.certificates import Order, make_certificates, next_commands

    hosts = [[name.strip() for name in entry.split(",")] for entry in host or []]
    order = Order(folder=folder.expanduser().absolute(), hosts=hosts, days=days, token=token)
    for path in make_certificates(order):
        print(path)
    print(next_commands(order))


def _refuse_set(overrides: list[str] | None, what: str) -> None:
    if overrides:
        raise ConfigError(f"--set {overrides[0]!r}: not for a {what}")


@contextmanager
def _interruptible() -> Iterator[None]:
    from orchestrator import interrupts

    with interrupts.handled():
        try:
            yield
        except KeyboardInterrupt as interrupt:
            # typer would turn it into its own exit code.
            _say("\n".join(["interrupted", *getattr(interrupt, "__notes__", [])]))
            raise typer.Exit(INTERRUPTED) from None


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _console() -> Console:
    return Console(highlight=False)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
