"""Which `Start` requests and which items of stream jobs a service accepts."""

from __future__ import annotations

from repsearch.rpc.v1 import jobs_pb2
from repsearch.serving.jobs import Service
from repsearch.serving.limits import check_size
from repsearch.serving.paths import check_item_paths, check_paths
from repsearch.serving.places import Place, place
from repsearch.serving.refusals import BadRequest

SPECS: dict[Service, tuple[str, ...]] = {
    "searcher": ("check", "search", "stream_search"),
    "learner": ("check", "initialise", "learn", "stream_learn"),
}
ITEMS: dict[Service, tuple[str, ...]] = {"searcher": ("search", "end"), "learner": ("learn", "end")}


def admit(service: Service, root: Place, request: jobs_pb2.StartRequest) -> jobs_pb2.StartRequest:
    """Return a copy of `request` whose run_path is absolute and inside `root`; a Refusal that says what is wrong with it otherwise."""
    check_size(request)
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


def admit_item(service: Service, run_path: str, request: jobs_pb2.PushRequest) -> jobs_pb2.PushRequest:
    """Return `request`, whose size was checked, if its item is one that the service takes and stays in the run's folder; else a Refusal."""
    kind = request.item.WhichOneof("kind")
    if kind not in ITEMS[service]:
        raise BadRequest(f"a {service} takes no item {kind or 'without a kind'}; it takes {', '.join(ITEMS[service])}")
    check_item_paths(place(run_path), request.item)
    return request
