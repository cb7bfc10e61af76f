"""The final network in MLflow: found from the run, loadable without our code, with the reported accuracy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.journal import Journal
from orchestrator.tracking import sync
from orchestrator.tracking.connect import connect
from repsearch.config import RunConfig, parse_config
from repsearch.datasets import load_data
from repsearch.networks import build_network, to_arrays
from store import open_store
from store.layout import learned_network_path
from store.parameters import write_parameters
from tests.tracking_helpers import EXPERIMENT, begin, database, end, held, report, results, whole_round

PATH = learned_network_path(0, 1)


def config_of(root: Path) -> RunConfig:
    """A run on digits with a narrow network."""
    tables = {"run": {"seed": 5}, "dataset": {"name": "digits"}, "network": {"name": "convnet", "width": 8, "blocks": 2}}
    return parse_config({**tables, "search": {"layers": [0, "logits"]}, "tracking": {"experiment": EXPERIMENT}})


def write_run(folder: Path, *, status: str = "FINISHED", damage: bool = False) -> float:
    """Write store and journal of a run of one round; return the test accuracy of its network."""
    config = config_of(folder.parent)
    data = load_data(config.dataset, seed=config.run.seed)
    network = build_network(config.network, data, seed=config.run.seed, purpose="other")
    folder.mkdir()
    reference = write_parameters(open_store(str(folder)), PATH, to_arrays(network), {"kind": "network"})
    digest = "0" * 64 if damage else reference.digest
    with Journal(folder) as journal:
        begin(journal, config=config.model_dump(mode="json"))
        whole_round(journal, 0)
        journal.append("network_ready", round=0, path=reference.path, digest=digest)
        end(journal, status)
    with torch.no_grad():
        return float((network(data.test.images).argmax(1) == data.test.labels).float().mean())


def models_of(uri: str) -> list[Any]:
    """The MLflow models of the experiment."""
    connection = connect(uri, EXPERIMENT)
    return list(connection.client.search_logged_models([connection.experiment_id]))


def test_the_model_is_linked_to_the_run_and_reproduces_the_accuracy_in_a_fresh_process(tmp_path: Path) -> None:
    uri = database(tmp_path)
    accuracy = write_run(tmp_path / "run")
    sync(tmp_path / "run")
    run = held(uri)
    [model] = models_of(uri)
    assert (model.source_run_id, model.name, str(model.status)) == (run["id"], "network", "READY")
    assert {metric.key: metric.value for metric in model.metrics}["test/accuracy"] == report(0).metrics["test/accuracy"]
    connection = connect(uri, EXPERIMENT)
    assert [output.model_id for output in connection.client.get_run(run["id"]).outputs.model_outputs] == [model.model_id]
    code = """
import sys
import mlflow
import mlflow.pytorch
mlflow.set_tracking_uri(sys.argv[1])
networks = [mlflow.pytorch.load_model(address) for address in sys.argv[2:]]
assert "repsearch" not in sys.modules
from repsearch.datasets import load_data
test = load_data({"name": "digits"}, seed=5).test
print(*[float((network(test.images).argmax(1) == test.labels).float().mean()) for network in networks])
images = test.images[:3].numpy()
assert mlflow.pyfunc.load_model(sys.argv[2]).predict(images).shape == (3, 10)
"""
    command = [sys.executable, "-c", code, uri, f"models:/{model.model_id}", f"runs:/{run['id']}/network"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [float(text) for text in done.stdout.split()[-2:]] == pytest.approx([accuracy, accuracy], abs=1e-9)


def test_the_model_is_logged_once_and_leaves_the_metrics_of_the_run_alone(tmp_path: Path) -> None:
    uri = database(tmp_path)
    write_run(tmp_path / "run")
    sync(tmp_path / "run")
    first = held(uri)
    (tmp_path / "run" / "tracking.json").unlink()
    sync(tmp_path / "run")
    assert results(held(uri)) == results(first)
    assert first["metrics"]["test/accuracy"] == [(0, report(0).metrics["test/accuracy"])]
    assert len(models_of(uri)) == 1


def test_a_resumed_run_logs_its_last_network(tmp_path: Path) -> None:
    uri = database(tmp_path)
    write_run(tmp_path / "run", status="KILLED")
    sync(tmp_path / "run")
    assert models_of(uri) == []
    with Journal(tmp_path / "run") as journal:
        begin(journal, resumed=True, term=2, config=config_of(tmp_path).model_dump(mode="json"))
        end(journal)
    sync(tmp_path / "run")
    assert len(models_of(uri)) == 1


def test_a_damaged_network_keeps_nothing_else_from_mlflow(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = database(tmp_path)
    write_run(tmp_path / "run", damage=True)
    sync(tmp_path / "run")
    assert models_of(uri) == []
    assert held(uri)["status"] == "FINISHED"
    assert PATH in caplog.text
