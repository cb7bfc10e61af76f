"""Log lines on stderr: text for people, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from repsearch.errors import ConfigError

FORMATS = ("text", "json")
CONTEXT = ("run_id", "job_id", "kind")  # extras that records may carry


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, ISO 8601), level, logger, service, pid, message, and the record's context."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "service": self._service,
            "pid": record.process,
            "message": record.getMessage(),
        }
        fields.update({name: getattr(record, name) for name in CONTEXT if hasattr(record, name)})
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def configure(service: str, log_format: str) -> None:
    """Send every log record and warning of this process to stderr in `log_format`; ConfigError for an unknown format."""
    if log_format not in FORMATS:
        raise ConfigError(f"log format {log_format!r} is unknown; use one of {', '.join(FORMATS)}")
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter(f"%(asctime)s %(levelname)-7s {service} %(message)s", "%H:%M:%S")
    handler.setFormatter(JsonFormatter(service) if log_format == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    # A traceback for each message that is none, which whoever may call could fill the disk with; the caller is told.
    logging.getLogger("grpc._common").setLevel(logging.CRITICAL)


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
