"""Coverage-guided fuzzing of the RPC handlers over bytes: `make fuzz`, or `python -m tests.fuzz_rpc -max_total_time=600 FOLDER`.

FOLDER keeps the inputs that reach new code; messages that runs send are put there to begin with. Options are libFuzzer's. The first byte
chooses service and call, the rest is the message as it comes from the wire. A crash, an input that takes over 10 s, and memory beyond the
limit end it and leave the input in a file, which `python -m tests.fuzz_rpc FILE` repeats.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import atheris
from google.protobuf.message import Message

with atheris.instrument_imports(include=["repsearch.serving", "google.protobuf"]):
    from repsearch.serving import limits, paths, requests, servicer, table, terms  # noqa: F401 (instrumented)

from repsearch.rpc.v1 import jobs_pb2
from tests.rpc_fuzzing import METHODS, Handlers

HANDLERS = [Handlers(service) for service in ("searcher", "learner")]


def fuzz(data: bytes) -> None:
    """Call one handler with one message."""
    if data:
        method, service = METHODS[data[0] % len(METHODS)], HANDLERS[data[0] // len(METHODS) % len(HANDLERS)]
        service.call(method, data[1:])


def seeds() -> Iterator[bytes]:
    """Yield an input for every kind of request."""
    reference = jobs_pb2.Reference(path="rounds/00000/network", digest="0" * 64)
    search = jobs_pb2.SearchSpec(count=64, network=reference, output_path="rounds/00000/search/00000-a0", archive=[reference])
    learn = jobs_pb2.LearnSpec(shards=[reference], output_path="rounds/00000/learned", checkpoint_path="checkpoints/00000", epochs=3)
    start = {"request_id": "run/1/shard", "run_id": "run", "term": 1, "run_path": "run", "config_json": '{"run": {"seed": 3}}'}
    specs = {"check": {}, "initialise": {"output_path": "a/b"}, "search": search, "learn": learn, "stream_search": {}, "stream_learn": {}}
    yield from (_input("Start", jobs_pb2.StartRequest(**start, **{kind: spec})) for kind, spec in specs.items())
    for item in (jobs_pb2.Item(search=search), jobs_pb2.Item(learn=learn), jobs_pb2.Item(end={})):
        yield _input("Push", jobs_pb2.PushRequest(job_id=HANDLERS[0].job(), term=1, sequence=1, item=item))
    for method, kind in (("Get", jobs_pb2.GetRequest), ("Cancel", jobs_pb2.CancelRequest), ("Watch", jobs_pb2.WatchRequest)):
        yield _input(method, kind(job_id=HANDLERS[0].job()))


def _input(method: str, message: Message) -> bytes:
    return bytes([METHODS.index(method)]) + message.SerializeToString()


if __name__ == "__main__":
    if (folder := Path(sys.argv[-1])).is_dir():
        for number, seed in enumerate(seeds()):
            (folder / f"seed-{number}").write_bytes(seed)
    atheris.Setup([*sys.argv, "-timeout=10", "-rss_limit_mb=2048"], fuzz)
    atheris.Fuzz()
