"""Units and compose file: their commands are ones that the programs take, and health checks say what is so."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

import learner.cli
import searcher.cli
from tests.security_files import folder, serving
from tests.serving_processes import ROOT, daemon

DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
PROGRAMS = {"searcher": searcher.cli.app, "learner": learner.cli.app}


def settings(unit: Path) -> list[tuple[str, str]]:
    lines = [line for line in unit.read_text().splitlines() if line and not line.startswith(("#", "["))]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


def check_command(command: str) -> None:
    """Fail unless the program takes these arguments."""
    words = [
        re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word).replace("%i", "0") for word in shlex.split(command) if not re.fullmatch(r"\$\w+", word)
    ]
    program, verb, *arguments = words
    if (app := PROGRAMS.get(Path(program).name)) is None:
        assert Path(program).name in ("mlflow", "python")
        return
    group = typer.main.get_command(app)
    with group.make_context(program, [verb, *arguments]) as context:
        _, found, rest = group.resolve_command(context, [verb, *arguments])
        found.make_context(verb, rest)


@pytest.mark.parametrize("unit", UNITS, ids=[unit.name for unit in UNITS])
def test_units_run_commands_that_there_are(unit: Path) -> None:
    found = settings(unit)
    commands = [value for name, value in found if name.startswith("Exec")]
    for command in commands:
        check_command(command)
    values = dict(found)
    assert values["User"] == "repsearch" and values["NoNewPrivileges"] == "true" and values["Restart"] == "on-failure"
    if "mlflow" not in unit.name:
        assert any(" health " in command for command in commands)
        [grace] = re.findall(r"--grace (\d+)", commands[0])
        assert int(values["TimeoutStopSec"]) > int(grace) + 10  # a job's last safe point, and the streams' end
        assert {"2", "3", "4", "8"} == set(values["RestartPreventExitStatus"].split())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_units_are_what_systemd_takes(tmp_path: Path) -> None:
    units = []
    for unit in UNITS:
        copy = tmp_path / unit.name.replace("@.", "@0.")
        copy.write_text(unit.read_text().replace("/opt/repsearch/.venv/bin/", "/bin/true /"))
        units.append(str(copy))
    result = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60, check=False)
    said = [line for line in result.stderr.splitlines() if line.startswith("repsearch-")]
    assert said == []


def test_compose_file_runs_commands_that_there_are() -> None:
    services = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["services"]
    assert set(services) == {"searcher", "learner", "mlflow"}
    for service in services.values():
        check_command(service["command"])
        check_command(service["healthcheck"]["test"])
        assert service["network_mode"] == "host"
        assert re.search(r"--(listen|host) 127\.0\.0\.1", service["command"])
        [grace] = re.findall(r"--grace (\d+)", service["command"]) or ["0"]
        assert int(service["stop_grace_period"].removesuffix("s")) > int(grace) + 10


def health(*arguments: str, program: str = "searcher") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", program, "health", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_health_says_whether_jobs_can_be_run(tmp_path: Path) -> None:
    with daemon(tmp_path / "store") as server:
        assert health(server.address, "--wait", "20").returncode == 0
        assert health(server.address, program="learner").returncode == 0
    result = health(server.address)
    assert result.returncode == 5 and server.address in result.stderr and "unavailable" in result.stderr


def test_health_by_tls_and_token(tmp_path: Path) -> None:
    files = folder()
    ours = ["--tls-ca", files / "ca.pem", "--tls-cert", files / "orchestrator.pem", "--tls-key", files / "orchestrator.key"]
    with daemon(tmp_path / "store", *serving(files, token=True)) as server:
        assert health(server.address, *map(str, ours), "--token-file", str(files / "token")).returncode == 0
        refused = health(server.address, *map(str, ours))
        assert refused.returncode == 8 and "this daemon wants a token" in refused.stderr
        assert health(server.address).returncode == 5
    assert health(server.address, "--token-file", "t").returncode == 2
