"""How large a request may be, and that no path of one leads out of the store's root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from repsearch.errors import ConfigError, DaemonError
from repsearch.rpc.v1 import compute_pb2, jobs_pb2, jobs_pb2_grpc
from repsearch.serving import limits, record, table
from repsearch.serving.limits import check_size
from repsearch.serving.paths import check_item_paths, check_paths
from repsearch.serving.refusals import BadRequest, OutsideRoot, QueueFull, Refusal
from repsearch.serving.table import Table
from repsearch.serving.terms import Terms
from tests.serving_processes import daemon, request


def start(**fields: object) -> jobs_pb2.StartRequest:
    return jobs_pb2.StartRequest(**{"request_id": "r", "run_id": "run", "term": 1, "run_path": "run", **fields})


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (start(run_id="x" * 1025), "run_id has 1025 characters; at most 1024"),
        (start(run_id="a\nb"), "cannot be printed"),
        (start(run_path="x" * 5000), "run_path has 5000 characters"),
        (start(dataset_digest="x" * 2000), "dataset_digest has 2000 characters"),
        (start(config_json="[" * 33 + "]" * 33), "nested 33 deep; at most 32"),
        (start(config_json='{"a":' * 100_000), "nested 100000 deep"),
        (start(config_json='{"a": "\\"[[["' * 40), "nested 40 deep"),
        (start(config_json=" " * (1024 * 1024 + 1)), "config_json has 1048577 characters"),
        (start(config_json="{"), "config_json is not JSON"),
        (start(config_json="1" * 5000), "config_json is not JSON"),
        (start(search=jobs_pb2.SearchSpec(count=2**31 + 1)), f"count is {2**31 + 1}; at most {2**31}"),
        (start(search=jobs_pb2.SearchSpec(first=2**63)), "first is"),
        (start(learn=jobs_pb2.LearnSpec(epochs=2**20)), "epochs is 1048576"),
        (start(learn=jobs_pb2.LearnSpec(shards=[jobs_pb2.Reference()] * 65_537)), "shards has 65537 entries; at most 65536"),
        (start(learn=jobs_pb2.LearnSpec(shards=[jobs_pb2.Reference(path="x" * 1025)])), "path has 1025 characters"),
        (jobs_pb2.GetRequest(job_id="x" * 1025), "job_id has 1025"),
        (jobs_pb2.PushRequest(item=jobs_pb2.Item(search=jobs_pb2.SearchSpec(output_path="x" * 1025))), "output_path has 1025"),
    ],
)
def test_what_is_too_large_is_refused(message: Message, words: str) -> None:
    with pytest.raises(BadRequest, match=words) as error:
        check_size(message)
    assert len(str(error.value)) < 300


def test_what_runs_send_is_taken() -> None:
    nested = '{"text": "[[[[\\"{{{{", "a": ' + "[" * 31 + "]" * 31 + "}"
    shards = [jobs_pb2.Reference(path="rounds/00000/search/00000-a0", digest="0" * 64)] * 30_000
    message = start(config_json=nested, learn=jobs_pb2.LearnSpec(shards=shards, epochs=10_000, count=10**9))
    check_size(message)
    assert message.ByteSize() < limits.MESSAGE_BYTES


def test_every_call_is_bounded(tmp_path: Path) -> None:
    """Through gRPC: text, message size, and a job id that would not fit the headers of its refusal."""
    with daemon(tmp_path / "store") as server, grpc.insecure_channel(server.address) as channel:
        stub = jobs_pb2_grpc.SearcherStub(channel)
        long = "x" * 100_000
        for call in (
            lambda: stub.Start(request(long)),
            lambda: stub.Get(jobs_pb2.GetRequest(job_id=long)),
            lambda: stub.Cancel(jobs_pb2.CancelRequest(job_id=long)),
            lambda: stub.Push(jobs_pb2.PushRequest(job_id=long)),
            lambda: next(stub.Watch(jobs_pb2.WatchRequest(job_id=long))),
        ):
            with pytest.raises(grpc.RpcError, match="has 100000 characters") as error:
                call()
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError, match="larger than max") as error:
            stub.Get(jobs_pb2.GetRequest(job_id="x" * (limits.MESSAGE_BYTES + 1)))
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with server.client() as client, pytest.raises(DaemonError, match="the message is too large"):
            client.start(request("large", text="x" * (limits.MESSAGE_BYTES + 1)))


def path_fields(descriptor: Descriptor) -> Iterator[tuple[str, ...]]:
    """Yield where in a message there are paths."""
    for field in descriptor.fields:
        if field.message_type is not None:
            yield from ((field.name, *rest) for rest in path_fields(field.message_type))
        elif field.name.endswith("path"):
            yield (field.name,)


def with_path(message: Message, where: tuple[str, ...], path: str) -> Message:
    """Set the path at `where`; the other paths that a spec must have are good ones."""
    inner = message
    for name in where[:-1]:
        value = getattr(inner, name)
        inner = value.add() if inner.DESCRIPTOR.fields_by_name[name].is_repeated else value
        inner.SetInParent()
        for field in inner.DESCRIPTOR.fields:
            if field.name in ("output_path", "checkpoint_path"):
                setattr(inner, field.name, "out")
            if field.name == "network":
                inner.network.path = "in"
    setattr(inner, where[-1], path)
    return message


ESCAPES = ("../up", "a/../../up", "/etc/passwd", "s3://bucket/key", "file:///etc", "memory:", "link/up", "deep/link/x", "loop", "..")
START_PATHS = [where for where in path_fields(jobs_pb2.StartRequest.DESCRIPTOR) if where != ("run_path",)]
ITEM_PATHS = list(path_fields(jobs_pb2.Item.DESCRIPTOR))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store root with a run that has links out of itself, and one that leads to itself."""
    run = tmp_path / "root" / "run"
    (run / "deep").mkdir(parents=True)
    for place in (run, run / "deep"):
        (place / "link").symlink_to(tmp_path)
    (run / "loop").symlink_to("loop")
    (tmp_path / "root" / "away").symlink_to(tmp_path / "other")
    return (tmp_path / "root").resolve()


def test_there_are_paths_to_test() -> None:
    assert ("search", "archive", "path") in START_PATHS and ("learn", "shards", "path") in ITEM_PATHS
    assert len(START_PATHS) >= 11 and len(ITEM_PATHS) >= 8


@pytest.mark.parametrize("where", START_PATHS, ids=".".join)
def test_no_path_of_a_spec_leaves_the_run(root: Path, where: tuple[str, ...]) -> None:
    check_paths(root, with_path(start(), where, "a/b"))
    for path in ESCAPES:
        with pytest.raises((OutsideRoot, BadRequest)):
            check_paths(root, with_path(start(), where, path))


@pytest.mark.parametrize("where", ITEM_PATHS, ids=".".join)
def test_no_path_of_an_item_leaves_the_run(root: Path, where: tuple[str, ...]) -> None:
    check_item_paths(root / "run", with_path(jobs_pb2.Item(), where, "a/b"))
    for path in ESCAPES:
        with pytest.raises((OutsideRoot, BadRequest)):
            check_item_paths(root / "run", with_path(jobs_pb2.Item(), where, path))


@pytest.mark.parametrize(
    "path", ["..", "../root2/run", "/etc", "run/../..", "s3://b/r", "file:///r", "away", "away/run", "run/link/r", "", "a\0b"]
)
def test_no_run_lies_outside_the_root(root: Path, path: str) -> None:
    with pytest.raises((OutsideRoot, BadRequest)):
        check_paths(root, start(run_path=path))


def make_table() -> Table:
    return Table("incarnation", on_queue=lambda: None, on_cancel=lambda job_id: None, on_idle=lambda: None)


def test_items_to_do_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "ITEM_LIMIT", 3)
    jobs = make_table()
    job = jobs.submit(start(stream_search=jobs_pb2.StreamSearchSpec()))
    jobs.take()

    def push(sequence: int, path: str = "out") -> None:
        item = jobs_pb2.Item(search=jobs_pb2.SearchSpec(output_path=path))
        jobs.push(jobs_pb2.PushRequest(job_id=job.job_id, term=1, sequence=sequence, item=item))

    for sequence in (1, 2, 3):
        push(sequence)
    with pytest.raises(QueueFull, match="has 3 items to do already"):
        push(4)
    push(3)  # repeated, so that it is not one more
    jobs.item_done(jobs_pb2.ItemDone(sequence=1))
    monkeypatch.setattr(record, "ITEM_BYTES", 100)
    with pytest.raises(QueueFull):
        push(4, "x" * 100)
    push(4)


def test_finished_jobs_are_forgotten_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "KEEP_BYTES", 10_000)
    jobs = make_table()
    kept = []
    for number in range(10):
        kept.append(jobs.submit(start(request_id=str(number), config_json=" " * 3000)).job_id)
        jobs.take()
        jobs.finish(compute_pb2.Outcome(state=jobs_pb2.JOB_STATE_SUCCEEDED))
    for job_id in kept[:-3]:
        with pytest.raises(Refusal):
            jobs.get(job_id)
    assert [jobs.get(job_id).job_id for job_id in kept[-3:]] == kept[-3:]


def test_terms_of_many_runs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repsearch.serving.terms.KEEP_RUNS", 5)
    terms = Terms()
    for number in range(20):
        terms.fence("kept", 7)
        terms.fence(str(number), 1)
    assert len(terms) == 5
    with pytest.raises(Refusal, match="at term 7"):
        terms.fence("kept", 6)


@pytest.mark.parametrize("program", ["searcher", "learner"])
def test_a_configuration_that_is_none_fails_the_job_alone(program: str) -> None:
    """As an error of ours, after which the compute process goes on."""
    import importlib

    run_job = importlib.import_module(f"{program}.jobs").run_job
    for text in ("", "{}x", "[]", '{"run": {"seed": -1}}', '{"unknown": 1}', "[" * 5000, '{"run": "' + "x" * 100_000 + '"}'):
        with pytest.raises(ConfigError) as error:
            run_job(start(config_json=text), None)
        assert len(str(error.value)) < 3000
