"""What daemons and runs tell Prometheus, over HTTP and as it parses it; and that the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
import ssl
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.journal import Journal
from orchestrator.metrics import RunsCollector
from orchestrator.runs import Run, RunLock, create_folder
from repsearch.config import parse_config
from repsearch.errors import ConfigError
from repsearch.serving.metrics import check_metrics, serve_metrics
from repsearch.serving.protection import Protection
from tests.security_files import folder
from tests.serving_processes import ROOT, DaemonProcess, daemon, finish, request, until

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
DASHBOARD = ROOT / "deploy" / "grafana-dashboard.json"


def scrape(address: str) -> Samples:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def metrics_address(server: DaemonProcess) -> str:
    found = re.search(r"metrics are at (\S+)/metrics", server.log())
    assert found, server.log()
    return found[1]


def test_a_daemon_tells_its_jobs(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with daemon(store, "--metrics", "127.0.0.1:0") as server, server.client() as client:
        address = metrics_address(server)
        finish(client, client.start(request("one")).job_id)
        finish(client, client.start(request("two", do="refuse")).job_id)
        held = client.start(request("three", do="hold"))
        client.start(request("four"))
        until(lambda: (store / "run" / "started").exists())
        samples = scrape(address)
        assert value(samples, "repsearch_daemon_jobs_total", kind="check", state="succeeded") == 1
        assert value(samples, "repsearch_daemon_jobs_total", kind="check", state="failed") == 1
        assert value(samples, "repsearch_daemon_job_running", kind="check") == 1
        assert value(samples, "repsearch_daemon_jobs_waiting") == 1
        assert value(samples, "repsearch_daemon_ready") == 1
        assert value(samples, "repsearch_daemon_job_seconds_without_progress") > 0
        assert value(samples, "process_open_fds") > 0
        [facts] = [dict(labels) for name, labels in samples if name == "repsearch_daemon_info"]
        assert facts["service"] == "searcher" and facts["incarnation"] == server.ready["incarnation"]
        (store / "run" / "release").touch()
        finish(client, held.job_id)
        counting = client.start(request("five", do="count", count=1000, pause=0.02))
        until(lambda: value(scrape(address), "repsearch_daemon_job_done") > 3)
        samples = scrape(address)
        assert value(samples, "repsearch_daemon_job_total") == 1000
        assert value(samples, "repsearch_daemon_job_seconds_without_progress") < 10
        client.cancel(counting.job_id, 1)
        finish(client, counting.job_id)
        assert "repsearch_daemon_job_running" not in {name for name, _ in scrape(address)}


@pytest.mark.parametrize("protection", [Protection(), Protection(cert=Path("c"), key=Path("k"), token_file=Path("t"))])
def test_metrics_for_other_machines_need_certificates(protection: Protection) -> None:
    with pytest.raises(ConfigError, match="other addresses than loopback need --tls-cert, --tls-key and --tls-ca"):
        check_metrics("0.0.0.0:9400", protection)


def test_metrics_for_other_machines_ask_for_certificates() -> None:
    files = folder()
    protection = Protection(cert=files / "here.pem", key=files / "here.key", ca=files / "ca.pem")
    check_metrics("0.0.0.0:0", protection)
    address, stop = serve_metrics([], "0.0.0.0:0", protection)
    url = f"https://127.0.0.1:{address.rpartition(':')[2]}/metrics"
    try:
        context = ssl.create_default_context(cafile=files / "ca.pem")
        with pytest.raises(OSError, match=r"CERTIFICATE_REQUIRED|certificate required|reset|EOF"):
            urllib.request.urlopen(url, timeout=10, context=context)
        context.load_cert_chain(files / "orchestrator.pem", files / "orchestrator.key")
        with urllib.request.urlopen(url, timeout=10, context=context) as answer:
            assert b"process_" in answer.read()
    finally:
        stop()


@contextmanager
def served(root: Path) -> Iterator[str]:
    address, stop = serve_metrics([RunsCollector(root)], "127.0.0.1:0", Protection())
    try:
        yield address
    finally:
        stop()


def make_run(root: Path, name: str) -> Path:
    run = Run(
        folder=root / name,
        run_id=name,
        name=name,
        term=2,
        config=parse_config({"rounds": {"count": 7}}),
        dataset={"name": "digits", "digest": "d", "train": 200},
        digests={},
        versions={},
        created=time.time(),
    )
    create_folder(run, b"")
    return run.folder


def test_runs_are_told_while_they_run_and_how_they_ended(tmp_path: Path) -> None:
    running, other = make_run(tmp_path, "running"), make_run(tmp_path, "other")
    with served(tmp_path) as address:
        with RunLock(running), Journal(running) as journal:
            journal.append("round_started", round=3, plan={"search": True, "epochs": 4})
            samples = scrape(address)
            assert value(samples, "repsearch_run_state", run="running", state="running") == 1
            assert value(samples, "repsearch_run_round", run="running") == 3
            assert value(samples, "repsearch_run_rounds_planned", run="running") == 7
            assert value(samples, "repsearch_run_term", run="running") == 2
            assert not any(dict(labels).get("run") == other.name for _, labels in samples)
        samples = scrape(address)
        assert value(samples, "repsearch_run_state", run="running", state="interrupted") == 1
        assert value(samples, "repsearch_run_state", run="running", state="running") == 0


def test_the_dashboard_asks_for_metrics_that_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path, "running")
    with served(tmp_path) as address, RunLock(run), Journal(run) as journal:
        journal.append("round_started", round=0, plan={"search": True, "epochs": 4})
        known = {name for name, _ in scrape(address)} | {f"repsearch_run_{name}" for name in RUNS}
    with daemon(tmp_path / "store", "--metrics", "127.0.0.1:0") as server, server.client() as client:
        finish(client, client.start(request()).job_id)
        known |= {name for name, _ in scrape(metrics_address(server))} | {"repsearch_daemon_job_running"}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {name for panel in panels for target in panel["targets"] for name in re.findall(r"\b(?:repsearch|process)_\w+", target["expr"])}
    assert len(panels) >= 8 and len(asked) >= 10
    assert asked <= known


RUNS = ("examples_per_second", "seconds_left", "test_accuracy", "searcher_waited_seconds", "learner_waited_seconds")
"""Told of runs that are far enough."""


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"pip install 'repsearch\[metrics\]'"):
        check_metrics("127.0.0.1:0", Protection())
