"""Runs and daemons whose store is in an object store: what is named where, and what is refused before anything is written."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import cli
from orchestrator.daemons import run_path
from orchestrator.remote import location_of
from orchestrator.runs import Run, create_folder, find_run, open_run, save_run
from repsearch.config import parse_config, search_digest
from repsearch.errors import ConfigError, DaemonError, StoreError
from repsearch.serving.paths import inside
from repsearch.serving.places import place
from repsearch.serving.refusals import Refusal
from store import layout, open_store
from store.object_files import ObjectFiles
from tests.orchestrator_runs import write_config
from tests.s3_server import S3Server


def run_of(folder: Path, store_root: str, name: str = "r") -> Run:
    config = parse_config({"run": {"root": str(folder)}, "store": {"root": store_root}})
    dataset = {"name": "digits", "digest": "0" * 64}
    return Run(folder=folder / name, run_id="id", name=name, term=1, config=config, dataset=dataset, digests={}, versions={}, created=0.0)


def test_a_run_has_its_documents_in_both_places_and_its_name_once(s3_location: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", s3_location)
    assert run.location == f"{s3_location}/r"
    create_folder(run, b"# mine")
    assert location_of(run.folder) == run.location
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.toml", "run.json", "store.txt"]
    assert ObjectFiles(run.location).below("") == ["config.json", "run.json"]
    save_run(replace(run, term=2))
    assert open_run(run.folder).term == open_store(run.location).read_document(layout.RUN_DOCUMENT)["term"] == 2
    other = run_of(tmp_path / "b", s3_location)
    with pytest.raises(StoreError, match=r"/r: the run name is taken; choose another with --name, or resume it"):
        create_folder(other, b"")
    assert not other.folder.exists()


def test_the_place_of_the_store_changes_no_digest() -> None:
    config = parse_config({})
    assert search_digest(config) == search_digest(parse_config({"store": {"root": "s3://bucket/runs"}}))


@pytest.mark.parametrize(
    "root", ["/shared", "s3:/bucket", "s3://b", "s3://bucket/", "s3://bucket/a//b", "s3://bucket/../x", "gs://bucket/x"]
)
def test_roots_that_name_no_object_store(root: str) -> None:
    with pytest.raises(ConfigError, match=r"store\.root"):
        parse_config({"store": {"root": root}})


@pytest.mark.parametrize(
    "path", ["../other", "a/../../other", "s3://bucket/other", "s3://bucket/runs2", "/etc", "gs://bucket/runs/a", "a//b", "."]
)
def test_a_daemon_serves_nothing_outside_its_place(path: str) -> None:
    root = place("s3://bucket/runs/")
    with pytest.raises(Refusal):
        inside(root, path, what="run_path")
    assert str(inside(root, "mnist-1", what="run_path")) == str(inside(root, "s3://bucket/runs/mnist-1", what="run_path"))


def test_daemon_and_run_have_to_agree_on_the_store(tmp_path: Path) -> None:
    remote, local = run_of(tmp_path, "s3://bucket/runs"), run_of(tmp_path, "")
    assert run_path(remote, "host:1", "s3://bucket/runs") == "r"
    assert run_path(remote, "host:1", "s3://bucket") == "runs/r"
    for run, store_root in ((remote, str(tmp_path)), (remote, "s3://bucket/other"), (local, "s3://bucket/runs")):
        with pytest.raises(DaemonError, match=r"host:1: its --store is .*; start it with --store "):
            run_path(run, "host:1", store_root)


def refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["orchestrator", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(str(ended.value.code)), capsys.readouterr().err


@pytest.mark.fault(23)
def test_bad_stores_are_refused_before_anything_is_written(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("store.opening.CHECK_S", 0.5)
    config = str(write_config(tmp_path))

    def run(*sets: str) -> tuple[int, str]:
        return refused(["run", config, *(part for text in sets for part in ("--set", text))], monkeypatch, capsys)

    code, text = run("store.root=s3://absent-bucket/runs")
    assert code == 4 and "s3://absent-bucket/runs" in text and "NoSuchBucket" in text and "make the bucket" in text
    code, text = run("store.root=/shared/runs")
    assert code == 2 and "store.root" in text
    for fault, hint in (({"status": 403, "code": "AccessDenied"}, "s3:ListBucket"), ({"status": 400, "code": "ExpiredToken"}, "renew")):
        injected = s3.fail("GET", times=1000, **fault)
        code, text = run("store.root=s3://runs/refused")
        assert code == 4 and fault["code"] in text and hint in text and injected.done
        s3.heal()
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    code, text = run("store.root=s3://runs/refused")
    assert code == 4 and "pip install 'repsearch[s3]'" in text
    monkeypatch.undo()
    assert not (tmp_path / "runs").exists()


@pytest.mark.fault(23)
@pytest.mark.faults
def test_a_daemon_refuses_a_store_that_it_cannot_use(s3: S3Server) -> None:
    command = [sys.executable, "-m", "searcher", "serve", "--listen", "127.0.0.1:0", "--store"]
    done = subprocess.run([*command, "s3://absent-bucket/runs"], capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert done.returncode == 4 and done.stdout == ""
    assert done.stderr.startswith("error: store s3://absent-bucket/runs: cannot be used: 404 NoSuchBucket") and done.stderr.count("\n") == 1


def test_an_object_store_is_no_run_for_commands_that_need_its_folder() -> None:
    with pytest.raises(StoreError, match="orchestrator resume s3://bucket/runs/r"):
        find_run("s3://bucket/runs/r")


@pytest.mark.parametrize(("command", "what"), [("sweep", "a sweep"), ("study scaling", "a study")])
def test_sweeps_and_studies_stay_in_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, what: str
) -> None:
    config = write_config(tmp_path)
    if command == "sweep":
        config.write_text(f'{config.read_text()}\n[sweep]\ntrials = 1\nspace = {{"learn.epochs" = [1]}}\n')
    code, text = refused([*command.split(), str(config), "--set", "store.root=s3://bucket/runs"], monkeypatch, capsys)
    assert code == 2 and f"{what} keeps what it writes in run.root; leave store.root out" in text
