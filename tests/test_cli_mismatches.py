"""Daemons that do not fit the run, and numbers that are not finite, through the command line: exit code and message."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from repsearch.serving import PROTOCOL_VERSION
from tests.orchestrator_runs import orchestrator, write_config

SEARCHER = "from searcher.cli import main; main()"


@contextmanager
def searcher(runs: Path, *, program: str = SEARCHER, folder: Path | None = None) -> Iterator[str]:
    """Address of a searcher that runs `program` in `folder`."""
    runs.mkdir(exist_ok=True)
    command = [sys.executable, "-c", program, "serve", "--listen", "127.0.0.1:0", "--store", str(runs)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["address"]
        finally:
            process.kill()


def refused(folder: Path, *settings: str) -> tuple[int, str]:
    """Exit code and output of a run of the tiny configuration with `settings`; nothing of the run may have been written."""
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    with orchestrator("run", str(write_config(folder)), *arguments, folder=folder) as process:
        code = process.wait()
        assert not list(folder.glob("runs/*/run.json")), process.text()
        return code, process.text()


@pytest.mark.fault(17, 30)
@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ("import repsearch; repsearch.__version__ = '9.9.9'", "it is version 9.9.9, we are"),
        ("import repsearch.serving as serving; serving.PROTOCOL_VERSION = 99", f"it speaks protocol 99, we speak {PROTOCOL_VERSION}"),
    ],
)
def test_another_version_is_refused(patch: str, message: str, tmp_path: Path) -> None:
    with searcher(tmp_path / "runs", program=f"{patch}\n{SEARCHER}") as address:
        code, output = refused(tmp_path, f'searcher.addresses=["{address}"]')
    assert code == 5
    assert f"{address}: {message}" in output
    assert "install the same version on both" in output


@pytest.mark.fault(17)
def test_other_data_are_refused(tmp_path: Path) -> None:
    """The same relative `root` is another folder for a searcher that was started elsewhere."""
    here, there = tmp_path, tmp_path / "there"
    for folder, shade in ((here, 0), (there, 1)):
        for name in ("a", "b"):
            (folder / "data" / name).mkdir(parents=True)
            for number in range(40):
                Image.new("L", (8, 8), 3 * number + shade).save(folder / "data" / name / f"{number:02}.png")
    table = 'dataset={name="image_folder", root="data", size=8, channels=1, train=50, validation=10, test=10}'
    with searcher(tmp_path / "runs", folder=there) as address:
        code, output = refused(here, table, f'searcher.addresses=["{address}"]')
    assert code == 5
    assert f"{address}: its data differ from the orchestrator's: dataset digest" in output
    assert "give both the same files" in output


@pytest.mark.fault(10)
def test_a_fitness_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    arguments = ["run", str(write_config(tmp_path)), "--set", "search.input_noise=3e38"]
    with orchestrator(*arguments, folder=tmp_path) as process:
        assert process.wait() == 7
        assert "fitness is not finite: training image 0, block0, generation 0" in process.text()
        assert "orchestrator resume" in process.text()
