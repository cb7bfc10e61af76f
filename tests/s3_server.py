"""An S3 server in this process (moto) that fails on demand.

`S3Server.fail` adds a fault; the first that fits a request is done to it, until it was done as often as it says. Faults:

    status 500, code "InternalError"       the request is refused with this answer and not carried out
    after=True                             it is carried out, and then answered so
    cut=True                               it is not carried out, and the connection ends without an answer (with `after`: carried out)
    hang                                   it is answered when `release` is called; not carried out
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "runs"
_BODY = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"


@dataclass
class Fault:
    """What is done to requests of `method` (a regular expression) for paths that `path` is found in; `done` counts them."""

    method: str
    path: str
    times: int
    status: int = 500
    code: str = "InternalError"
    after: bool = False
    cut: bool = False
    hang: bool = False
    done: int = 0


@dataclass
class S3Server:
    """The server; `requests` lists method and path of those that came. `careless`: it overwrites what was to be created."""

    port: int = 0
    careless: bool = False
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _released: threading.Event = field(default_factory=threading.Event)

    def fail(self, method: str = ".*", path: str = "", *, times: int = 1, **fault: Any) -> Fault:
        """Add a fault."""
        self.faults.append(Fault(method, path, times, **fault))
        return self.faults[-1]

    def heal(self) -> None:
        """Take all faults away; answer what hangs."""
        self._released.set()
        self.faults.clear()
        self.careless = False
        self._released = threading.Event()

    def environment(self) -> dict[str, str]:
        """Return the variables by which a client finds the server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def serve(self, app: Callable[..., Iterable[bytes]], environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request, by a fault if one fits."""
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        fault = self._fault(method, path)
        if self.careless:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if fault is None:
            return app(environ, start)
        if fault.hang:
            self._released.wait(60)
        if fault.after:
            list(app(environ, lambda *_: None))
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if fault.cut:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        body = b"" if method == "HEAD" else _BODY.format(code=fault.code, message="a fault of the test").encode()
        start(f"{fault.status} Fault", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    def _fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.done < fault.times and re.fullmatch(fault.method, method) and fault.path in path:
                    fault.done += 1
                    return fault
        return None


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        """Say nothing."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""


@contextmanager
def running() -> Iterator[S3Server]:
    """Start a server with an empty bucket."""
    app, served = DomainDispatcherApplication(create_backend_app), S3Server()
    server = make_server("127.0.0.1", 0, lambda environ, start: served.serve(app, environ, start), threaded=True, request_handler=_Handler)
    served.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, name="s3", daemon=True)
    thread.start()
    names = served.environment()
    keys = {"aws_access_key_id": names["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": names["AWS_SECRET_ACCESS_KEY"]}
    client = boto3.client("s3", endpoint_url=names["AWS_ENDPOINT_URL"], region_name=names["AWS_REGION"], **keys)
    client.create_bucket(Bucket=BUCKET)
    client.close()
    yield served
    served.heal()
    server.shutdown()
    thread.join()
    server.server_close()
