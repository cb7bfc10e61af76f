"""The learner's jobs from request to committed group, and a fit that is killed and resumed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner import jobs
from learner.jobs import run_job
from repsearch.config import RunConfig
from repsearch.datasets import cached_data
from repsearch.datasets.base import Data
from repsearch.errors import ConfigError, DaemonError, StoreError
from repsearch.networks import build_network, load_arrays
from repsearch.rpc.v1 import jobs_pb2
from repsearch.serving import JobCancelled, JobResult
from store import Reference, ZarrStore, files, layout
from store.local_files import LocalFiles
from store.parameters import read_parameters
from store.verification import verify_group
from tests.learner_support import Recorder, digits_config, made_up_targets, network_for, request_for, write_shards


def data_of(config: RunConfig) -> Data:
    return cached_data(config.dataset, seed=config.run.seed)


def learn_spec(shards: list[Reference], *, attempt: int = 1, epochs: int = 4, **fields: Any) -> jobs_pb2.LearnSpec:
    return jobs_pb2.LearnSpec(
        round=1,
        attempt=attempt,
        shards=[jobs_pb2.Reference(path=shard.path, digest=shard.digest) for shard in shards],
        output_path=layout.learned_network_path(1, attempt),
        checkpoint_path=layout.checkpoint_folder(1),
        epochs=epochs,
        digest="everything",
        **fields,
    )


def shards_in(root: Path, config: RunConfig) -> list[Reference]:
    data = data_of(config)
    return write_shards(ZarrStore(root / "run"), made_up_targets(network_for(data), data), data, [(0, 120), (120, 200)])


def learn(root: Path, config: RunConfig, spec: jobs_pb2.LearnSpec, context: Recorder | None = None) -> JobResult:
    request = request_for(config, dataset_digest=data_of(config).digest, learn=spec)
    return run_job(request, context or Recorder(store_root=root))


def test_check_returns_the_dataset_digest_and_writes_nothing(tmp_path: Path) -> None:
    config = digits_config()
    result = run_job(request_for(config, check=jobs_pb2.CheckSpec()), Recorder(store_root=tmp_path))
    assert result == JobResult(dataset_digest=data_of(config).digest)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"search": {"layers": [0, 5]}}, r"search\.layers: block 5 is not there; the network has blocks 0\.\.1"),
        ({"learn": {"objective": {"name": "regression", "layers": [2]}}}, r"learn\.objective\.layers: block 2 is not searched"),
        ({"search": {"network": {"width": 16}}}, r"search\.network: block outputs .* differ"),
        ({"learn": {"pad_crop": 9}}, r"learn\.pad_crop: 9"),
        ({"network": {"blocks": 4}}, r"network\.blocks: 4 blocks do not fit 8x8 images"),
    ],
)
def test_check_refuses_what_does_not_fit(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_job(request_for(digits_config(**sections), check=jobs_pb2.CheckSpec()), Recorder(store_root=tmp_path))


@pytest.mark.fault(17)
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"dataset_digest": "other", "check": jobs_pb2.CheckSpec()}, r"the learner's data have digest .*, the run's other"),
        ({"search": jobs_pb2.SearchSpec()}, r"a learner runs .* not 'search'"),
    ],
)
def test_requests_for_other_data_or_another_service_are_refused(tmp_path: Path, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(DaemonError, match=message):
        run_job(request_for(digits_config(), **spec), Recorder(store_root=tmp_path))


def test_initialise_writes_the_calibrated_network_and_repeats_itself(tmp_path: Path) -> None:
    config = digits_config()
    spec = jobs_pb2.InitialiseSpec(output_path=layout.initial_network_path())
    results = [run_job(request_for(config, initialise=spec), Recorder(store_root=tmp_path)) for _ in range(2)]
    assert results[0] == results[1]
    store = ZarrStore(tmp_path / "run")
    arrays = read_parameters(store, Reference(results[0].path, results[0].digest))
    assert store.manifest(results[0].path).attributes["kind"] == "network"
    fresh = build_network(config.search_network(), data_of(config), seed=0, purpose="searched")
    assert not np.array_equal(arrays["blocks.0.groups.0.norm1.running_mean"], fresh.state_dict()["blocks.0.groups.0.norm1.running_mean"])
    load_arrays(fresh, arrays)


@pytest.mark.fault(26)
@pytest.mark.parametrize(("place", "step"), [(jobs, "calibrate"), (files, "_write_temporary")], ids=["before it writes", "while it writes"])
def test_a_late_learner_leaves_the_initial_network_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, step: str) -> None:
    """Another overtakes it: what that one committed stays, and the late one comes to the same."""
    request = request_for(digits_config(), initialise=jobs_pb2.InitialiseSpec(output_path=layout.initial_network_path()))
    file = tmp_path / "run" / f"{layout.initial_network_path()}.pack"
    first: list[tuple[JobResult, int]] = []
    undisturbed = getattr(place, step)

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(place, step, undisturbed)
        first.append((run_job(request, Recorder(store_root=tmp_path)), file.stat().st_ino))
        for removing in ("remove", "remove_folder"):
            monkeypatch.setattr(LocalFiles, removing, None)
        return undisturbed(*arguments)

    monkeypatch.setattr(place, step, overtaken)
    for _ in range(2):
        assert (run_job(request, Recorder(store_root=tmp_path)), file.stat().st_ino) == first[0]
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [file]
    verify_group(ZarrStore(tmp_path / "run"), Reference(first[0][0].path, first[0][0].digest))


def test_an_initial_network_of_another_run_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    path = layout.initial_network_path()
    ZarrStore(tmp_path / "run").write(path, {"p": np.zeros(3)}, attributes={"kind": "network", "run_id": "other"})
    with pytest.raises(StoreError, match=r"network/initial: is there, of another run_id, dataset_digest, network; remove it"):
        run_job(request_for(digits_config(), initialise=jobs_pb2.InitialiseSpec(output_path=path)), Recorder(store_root=tmp_path))


def test_learn_writes_the_network_that_it_measured(tmp_path: Path) -> None:
    config, context = digits_config(), Recorder(store_root=tmp_path)
    result = learn(tmp_path, config, learn_spec(shards_in(tmp_path, config)), context)
    store, data = ZarrStore(tmp_path / "run"), data_of(config)
    attributes = store.manifest(Reference(result.path, result.digest)).attributes
    network = build_network(config.network, data, seed=5, purpose="any")
    load_arrays(network, read_parameters(store, result.path))
    with torch.no_grad():
        accuracy = float((network(data.test.images).argmax(1) == data.test.labels).double().mean())
    assert attributes["test_accuracy"] == pytest.approx(accuracy)
    expected = {"kind": "network", "run_id": "run", "term": 2, "round": 1, "attempt": 1, "learn_digest": "everything", "examples": 800}
    assert {name: attributes[name] for name in expected} == expected
    assert [record["epoch"] for record in attributes["epochs"]] == [1, 2, 3, 4]
    assert attributes["epochs"][-1]["validation_accuracy"] == attributes["validation_accuracy"]
    assert {"dataset_digest", "network", "seconds", "test_cross_entropy", "validation_cross_entropy"} <= attributes.keys()
    assert context.progressed[-1] == (4, 4, "epochs")
    assert store.committed(layout.checkpoint_folder(1)) == ["a01-e0003", "a01-e0004"]


def test_cross_entropy_learns_without_shards_and_regression_does_not(tmp_path: Path) -> None:
    baseline = digits_config(learn={"objective": {"name": "cross_entropy"}})
    assert learn(tmp_path, baseline, learn_spec([])).path
    with pytest.raises(ConfigError, match="'regression' needs searched targets, and the round has none"):
        learn(tmp_path, digits_config(), learn_spec([], attempt=2))


def test_what_is_apart_for_fitness_is_measured(tmp_path: Path) -> None:
    config = digits_config(dataset={"fitness": 60}, learn={"objective": "cross_entropy", "epochs": 2})
    result = learn(tmp_path, config, learn_spec([], epochs=2))
    measured = ZarrStore(tmp_path / "run").manifest(Reference(result.path, result.digest)).attributes
    assert 0 < measured["fitness_accuracy"] < 1 and measured["fitness_cross_entropy"] > 0
    assert len({measured[f"{split}_cross_entropy"] for split in ("fitness", "validation", "test")}) == 3


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_network_is_measured_on_fitness_alone_where_that_is_asked(keep: str, tmp_path: Path) -> None:
    config = digits_config(dataset={"fitness": 60}, learn={"objective": "cross_entropy", "epochs": 2, "keep": keep})
    found = []
    for folder, alone in (("whole", False), ("alone", True)):
        done = learn(tmp_path / folder, config, learn_spec([], epochs=2, fitness_alone=alone))
        found.append(ZarrStore(tmp_path / folder / "run").manifest(Reference(done.path, done.digest)).attributes)
    everything, measured = found
    assert {name.split("_")[0] for name in measured if name.endswith("_accuracy")} == {"fitness"}
    assert measured["fitness_cross_entropy"] == everything["fitness_cross_entropy"]
    # Validation within the rounds is for choosing an epoch.
    assert all(("validation_accuracy" in epoch) == (keep == "best") for epoch in measured["epochs"])


def test_learning_starts_from_the_network_it_is_given(tmp_path: Path) -> None:
    config = digits_config(learn={"objective": {"name": "cross_entropy"}, "optimiser": {"name": "sgd", "lr": 1e-12}})
    first = learn(tmp_path, config, learn_spec([]))
    other = digits_config(run={"seed": 1}, learn=config.learn.model_dump())
    warm = jobs_pb2.Reference(path=first.path, digest=first.digest)
    second = learn(tmp_path, other, learn_spec([], attempt=2, initial_network=warm, epochs=1))
    store = ZarrStore(tmp_path / "run")
    start, end = (read_parameters(store, result.path)["head.linear.weight"] for result in (first, second))
    assert np.allclose(start, end, atol=1e-6)


def test_a_committed_network_is_not_overwritten(tmp_path: Path) -> None:
    config = digits_config(learn={"objective": {"name": "cross_entropy"}})
    learn(tmp_path, config, learn_spec([], epochs=1))
    with pytest.raises(StoreError, match="learned-a1"):
        learn(tmp_path, config, learn_spec([], epochs=1))


def test_a_cancelled_job_writes_no_network(tmp_path: Path) -> None:
    config = digits_config(learn={"objective": {"name": "cross_entropy"}})

    def cancel() -> None:
        raise JobCancelled("job")

    with pytest.raises(JobCancelled):
        learn(tmp_path, config, learn_spec([]), Recorder(store_root=tmp_path, on_check=cancel))
    assert ZarrStore(tmp_path / "run").committed(layout.network_folder(1)) == []


def parameters(root: Path, reference: Reference | JobResult) -> dict[str, np.ndarray]:
    return read_parameters(ZarrStore(root / "run"), Reference(reference.path, reference.digest))


def test_the_seed_of_learning_sets_initial_parameters_and_batches_but_not_the_data(tmp_path: Path) -> None:
    labels = {"objective": {"name": "cross_entropy"}}
    found = []
    for number, fields in enumerate(({}, {"seed": 0}, {"seed": 5})):
        # A folder each: the made-up digest would let one go on from another's checkpoint.
        root = tmp_path / str(number)
        found.append([*parameters(root, learn(root, digits_config(learn={**labels, **fields}), learn_spec([], epochs=1))).values()])
    unset, same, other = found
    assert all(np.array_equal(one, two) for one, two in zip(unset, same, strict=True))
    assert not all(np.array_equal(one, two) for one, two in zip(unset, other, strict=True))


def test_snapshots_are_the_networks_of_their_epochs_whichever_attempt_wrote_them(tmp_path: Path) -> None:
    config = digits_config(learn={"objective": {"name": "cross_entropy"}, "schedule": "constant", "snapshots": 2})
    context = Recorder(store_root=tmp_path)

    def stop() -> None:
        if context.progressed[-1][0] == 3:
            raise JobCancelled("job")

    context.on_check = stop
    with pytest.raises(JobCancelled):
        learn(tmp_path, config, learn_spec([], epochs=5), context)
    assert ZarrStore(tmp_path / "run").committed("rounds/00001/epochs") == ["a01-e0002"]
    result = learn(tmp_path, config, learn_spec([], attempt=2, epochs=5))
    listed = ZarrStore(tmp_path / "run").manifest(result.path).attributes["snapshots"]
    assert [(entry["epoch"], entry["path"]) for entry in listed] == [
        (2, "rounds/00001/epochs/a01-e0002"), (4, "rounds/00001/epochs/a02-e0004"), (5, "rounds/00001/epochs/a02-e0005"),
    ]  # fmt: skip
    short = learn(tmp_path / "short", config, learn_spec([], epochs=2))
    for reference, root, expected in ((listed[0], tmp_path / "short", short), (listed[2], tmp_path, result)):
        found = parameters(tmp_path, Reference(reference["path"], reference["digest"]))
        wanted = parameters(root, expected)
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_the_last_epoch_is_a_snapshot_where_learning_stops_early(tmp_path: Path) -> None:
    learned = {"objective": {"name": "cross_entropy"}, "optimiser": {"name": "sgd", "lr": 1e-12}, "snapshots": 50, "patience": 2}
    result = learn(tmp_path, digits_config(learn=learned), learn_spec([], epochs=20))
    attributes = ZarrStore(tmp_path / "run").manifest(result.path).attributes
    assert [entry["epoch"] for entry in attributes["snapshots"]] == [len(attributes["epochs"])] == [attributes["kept_epoch"]]
    assert len(attributes["epochs"]) < 20


def test_without_snapshots_none_are_kept(tmp_path: Path) -> None:
    result = learn(tmp_path, digits_config(learn={"objective": {"name": "cross_entropy"}}), learn_spec([], epochs=2))
    store = ZarrStore(tmp_path / "run")
    assert store.manifest(result.path).attributes["snapshots"] == []
    assert store.committed("rounds/00001/epochs") == []


PROCESS = """
import sys
from pathlib import Path
from learner import jobs
from learner.jobs import run_job
from repsearch.rpc.v1 import jobs_pb2
from tests.learner_support import Recorder

class Printing(Recorder):
    def points(self, points):
        print(points[0][1], flush=True)

request = jobs_pb2.StartRequest.FromString(sys.stdin.buffer.read())
run_job(request, Printing(store_root=Path(sys.argv[1])))
"""


@pytest.mark.fault(3)
@pytest.mark.timeout(120)
def test_a_learner_killed_in_a_random_epoch_and_resumed_gives_the_same_bits(tmp_path: Path) -> None:
    epochs, rng = 16, random.Random(time.time_ns())
    config = digits_config(learn={"epochs": epochs, "pad_crop": 1})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = learn(whole, config, learn_spec(shards_in(whole, config), epochs=epochs))
    shards = shards_in(killed, config)
    request = request_for(config, dataset_digest=data_of(config).digest, learn=learn_spec(shards, epochs=epochs))
    epoch, delay = rng.randrange(1, 7), rng.uniform(0, 0.05)
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(killed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(request.SerializeToString())
        process.stdin.close()
        while int(process.stdout.readline()) < epoch:
            pass
        time.sleep(delay)  # anywhere in what follows: a step, an evaluation, the writing of a checkpoint
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, f"epoch {epoch}, {delay:.3f} s"
    context = Recorder(store_root=killed)
    resumed = learn(killed, config, learn_spec(shards, attempt=2, epochs=epochs), context)
    stores = ZarrStore(whole / "run"), ZarrStore(killed / "run")
    first, second = (read_parameters(store, result.path) for store, result in zip(stores, (expected, resumed), strict=True))
    assert all(np.array_equal(first[name], second[name]) for name in first), f"epoch {epoch}, {delay:.3f} s"
    histories = [store.manifest(result.path).attributes["epochs"] for store, result in zip(stores, (expected, resumed), strict=True)]
    assert histories[0] == histories[1]
    assert len({done for done, _, _ in context.progressed}) <= epochs - epoch + 1  # it did go on, not start again
