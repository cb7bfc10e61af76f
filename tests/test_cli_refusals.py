"""Bad input through the command line: exit code, message, and nothing started or written."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from orchestrator import cli
from orchestrator.runs import RunLock
from tests.orchestrator_runs import write_config
from tests.serving_processes import daemon

CASES: dict[str, tuple[list[str], int, str]] = {
    "unknown key": (["search.strategy.populaton=3"], 2, "search.strategy.populaton: unknown key 'populaton'; did you mean 'population'"),
    "unknown member": (["dataset.name=digit"], 2, "did you mean 'digits'"),
    "out of range": (["rounds.count=0"], 2, "rounds.count"),
    "malformed override": (["rounds.count"], 2, "expected a.b=v"),
    "layer that is not there": (["search.layers=[0, 7]"], 2, "search.layers: layer 7 is not there: the network has blocks 0 to 1"),
    "layers out of order": (['search.layers=[1, 0, "logits"]'], 2, "not in increasing order"),
    "schedule of another length": (["search.layers=[0, 1]"], 2, "search.strategy.generations: 3 values"),
    "small population": (["search.strategy.population=2"], 2, "population 2 is smaller than parents"),
    "supervised block not searched": (
        ['learn.objective={name="regression", layers=[5]}'],
        2,
        "learn.objective.layers: block 5 is not searched",
    ),
    "network too deep": (["network.blocks=9"], 2, "network.blocks: 9 blocks do not fit 8x8 images"),
    "another searched shape": (["search.network.width=16"], 2, "search.network"),
    "batch larger than the data": (["learn.batch_size=201"], 2, "learn.batch_size: 201 is more than the 200 training examples"),
    "result that is not there": (["learn.targets=1"], 2, "learn.targets: result 1 is not there: images have 1"),
    "isolated block without a target": (
        ['learn.objective={name="regression", layers=[1], isolate=true}'],
        2,
        "learn.objective.isolate: block 0 has no target to learn from",
    ),
    "searched network of batch statistics": (["network.batchnorm=batch"], 2, 'set search.network.batchnorm = "running"'),
    "closed loop over batch statistics": (
        ["network.batchnorm=batch", "search.network.batchnorm=running"],
        2,
        "network: the learned network, which round 1 searches",
    ),
    "match that the network cannot serve": (
        [
            'learn.objective={name="regression", match="last_activation_dropped"}',
            'network={name="torchvision", stages=["layer1", "layer2"]}',
        ],
        2,
        "learn.objective.match: the network's blocks do not give",
    ),
    "policy without targets": (["rounds.policy=learn_only"], 2, "rounds.policy: learn_only searches nothing"),
    "objective without targets": (["learn.objective=cross_entropy"], 2, "learns from labels alone"),
    "one shot of many rounds": (["rounds.policy=one_shot"], 2, "set rounds.count = 1"),
    "scheduled layers of another number": (
        ["rounds.schedule=[{from_round=1, search={layers=[1]}}]"],
        2,
        'round 1, with {"layers": [1]}: search.strategy.generations: 3 values [6, 6, 2] for 1 search layers',
    ),
    "scheduled layer that is not there": (
        ["rounds.schedule=[{from_round=1, search={layers=[0, 1, 7]}}]"],
        2,
        "search.layers: layer 7 is not there: the network has blocks 0 to 1",
    ),
    "search too wide for its memory": (
        ["search.memory_mb=60", "rounds.plateau=1", "rounds.at_plateau=widen", "rounds.widen_by=500.0"],
        2,
        "search.memory_mb: search.micro_batch = 16 images at a time need",
    ),
    "schedule beyond the last round": (["rounds.schedule=[{from_round=2, epochs=1}]"], 2, "but the last round is 1; lower it"),
    "more examples than exist": (["dataset.train=99999"], 3, "99999"),
    "missing folder": (["dataset.name=image_folder", "dataset.root=nowhere", "dataset.size=8", "dataset.channels=1"], 3, "nowhere"),
    "missing device": (["searcher.device=cuda:77"], 5, "searcher.device: device 'cuda:77' is not there"),
    "certificate that is not there": (["tls.ca=nowhere.pem"], 2, "tls.ca: nowhere.pem cannot be read: No such file"),
    "key without certificate": (["tls.key=k.pem"], 2, "tls.key is of no use without TLS"),
    "daemon named twice": (['searcher.addresses=["127.0.0.1:1", "127.0.0.1:1"]'], 2, "named twice"),
}


def refuse(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run the command line; return its exit code and what it wrote to stderr."""
    monkeypatch.setattr(sys, "argv", ["orchestrator", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return int(str(ended.value.code)), error


@pytest.mark.parametrize("case", CASES)
def test_bad_configuration(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    overrides, code, message = CASES[case]
    monkeypatch.chdir(tmp_path)
    arguments = ["run", str(write_config(tmp_path)), "--set", "learner.address=127.0.0.1:1"]
    for override in overrides:
        arguments += ["--set", override]
    exit_code, error = refuse(arguments, monkeypatch, capsys)
    assert message in error
    assert exit_code == code
    assert not list(tmp_path.glob("runs/*/run.json"))


def folder_of_images(folder: Path, classes: Sequence[str]) -> Path:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(20):
            Image.new("L", (8, 8), number).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("fault", ["one class", "broken image", "empty"])
def test_bad_images(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_of_images(tmp_path / "data", {"one class": ["a"], "broken image": ["a", "b"], "empty": []}[fault])
    data.mkdir(exist_ok=True)
    if fault == "broken image":
        (data / "b" / "broken.png").write_bytes(b"not an image")
    table = f'dataset={{name="image_folder", root="{data}", size=8, channels=1, validation=5, test=5}}'
    code, error = refuse(["run", str(write_config(tmp_path)), "--set", table], monkeypatch, capsys)
    assert code == 3
    assert ("broken.png" if fault == "broken image" else str(data)) in error


def test_missing_configuration(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = refuse(["run", "nowhere.toml"], monkeypatch, capsys)
    assert (code, "nowhere.toml: no such file" in error) == (2, True)


def test_root_that_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").write_text("")
    code, error = refuse(["run", str(write_config(tmp_path))], monkeypatch, capsys)
    assert code == 4
    assert "run.root" in error


def test_name_taken_also_by_a_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(write_config(tmp_path))
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/b-baseline").mkdir()
    assert refuse(["run", config, "--name", "a"], monkeypatch, capsys)[0] == 4
    code, error = refuse(["run", config, "--name", "b", "--set", "run.baseline=true"], monkeypatch, capsys)
    assert (code, "name is taken" in error) == (4, True)
    assert refuse(["run", config, "--name", "../a"], monkeypatch, capsys)[0] == 2


def test_nobody_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = [
            "run",
            str(write_config(tmp_path)),
            "--set",
            f'searcher.addresses=["{address}"]',
            "--set",
            "learner.address=127.0.0.1:1",
        ]
        code, error = refuse(arguments, monkeypatch, capsys)
    assert code == 5
    assert address in error
    assert not list(tmp_path.glob("runs/*/run.json"))


def test_another_service_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with daemon(tmp_path / "store", service="learner") as learner:
        arguments = ["run", str(write_config(tmp_path)), "--set", f'searcher.addresses=["{learner.address}"]']
        code, error = refuse([*arguments, "--set", f"learner.address={learner.address}"], monkeypatch, capsys)
    assert code == 5
    assert "it is a learner" in error


@pytest.mark.parametrize("verb", ["resume", "status", "verify", "compare", "sync"])
def test_no_such_run(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    code, error = refuse([verb, "nothing"], monkeypatch, capsys)
    assert (code, "no such run" in error) == (4, True)


def test_lock_names_its_owner(tmp_path: Path) -> None:
    from repsearch.errors import StoreError

    with RunLock(tmp_path), pytest.raises(StoreError, match=r"in use by process \d+ on host"), RunLock(tmp_path):
        pass
    with RunLock(tmp_path):
        pass
