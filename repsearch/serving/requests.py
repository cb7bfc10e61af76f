"""Which `Start` requests a service accepts."""

from __future__ import annotations

from pathlib import Path

from repsearch.rpc.v1 import jobs_pb2
from repsearch.serving.jobs import Service
from repsearch.serving.paths import check_paths
from repsearch.serving.refusals import BadRequest

SPECS: dict[Service, tuple[str, ...]] = {"searcher": ("check", "search"), "learner": ("check", "initialise", "learn")}


def admit(service: Service, root: Path, request: jobs_pb2.StartRequest) -> jobs_pb2.StartRequest:
    """Return a copy of `request` whose run_path is absolute and inside `root`; a Refusal that says what is wrong with it otherwise."""
    for name in ("request_id", "run_id"):
        if not getattr(request, name):
            raise BadRequest(f"{name} is empty")
    spec = request.WhichOneof("spec")
    if spec not in SPECS[service]:
        raise BadRequest(f"a {service} does not run {spec or 'requests without a spec'}; it runs {', '.join(SPECS[service])}")
    admitted = jobs_pb2.StartRequest()
    admitted.CopyFrom(request)
    admitted.run_path = str(check_paths(root, request))
    return admitted
