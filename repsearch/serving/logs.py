"""Log lines on stderr: text for people, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from repsearch.errors import ConfigError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from repsearch.rpc.v1 import jobs_pb2

FORMATS = ("text", "json")
CONTEXT = ("run", "round", "shard", "attempt", "job", "kind")
"""Extras that records may carry: of which run, round, shard and attempt they are, of which job, and of which kind that is."""
_context: dict[str, Any] = {}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, ISO 8601), level, logger, service, incarnation, pid, message, and the record's context."""

    def __init__(self, service: str, incarnation: str) -> None:
        super().__init__()
        self._service, self._incarnation = service, incarnation

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "service": self._service,
            "incarnation": self._incarnation,
            "pid": record.process,
            "message": record.getMessage(),
        }
        known = {**_context, **record.__dict__}
        fields.update({name: known[name] for name in CONTEXT if name in known})
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def configure(service: str, log_format: str, incarnation: str = "") -> None:
    """Send every log record and warning of this process to stderr in `log_format`; ConfigError for an unknown format."""
    if log_format not in FORMATS:
        raise ConfigError(f"log format {log_format!r} is unknown; use one of {', '.join(FORMATS)}")
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter(f"%(asctime)s %(levelname)-7s {service} %(message)s", "%H:%M:%S")
    handler.setFormatter(JsonFormatter(service, incarnation) if log_format == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    # A traceback for each message that is none, which whoever may call could fill the disk with; the caller is told.
    logging.getLogger("grpc._common").setLevel(logging.CRITICAL)


def context_of(job_id: str, request: jobs_pb2.StartRequest) -> dict[str, Any]:
    """Return what records of a job carry."""
    kind = request.WhichOneof("spec") or ""
    return {"run": request.run_id, "job": job_id, "kind": kind, **_numbers(request, kind)}


def item_context(item: jobs_pb2.Item) -> dict[str, Any]:
    """Return what records of an item of a stream job carry beside."""
    return _numbers(item, item.WhichOneof("kind") or "")


def set_context(context: Mapping[str, Any]) -> None:
    """Have every record of this process carry `context` from now on, in the place of what it carried."""
    _context.clear()
    _context.update(context)


def _numbers(message: Message, kind: str) -> dict[str, int]:
    spec = getattr(message, kind, None)
    names = [] if spec is None else [field.name for field in spec.DESCRIPTOR.fields if field.name in CONTEXT]
    return {name: getattr(spec, name) for name in names}


def relay(line: str, log_format: str) -> None:
    """Write a line that the compute process wrote to its stderr: as it is, or as a JSON record if it must be one and is not."""
    if log_format == "json" and not _is_json(line):
        logging.getLogger("compute").info("%s", line)
        return
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _is_json(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
