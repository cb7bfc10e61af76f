"""How the orchestrator shows who it is, and knows its daemons: the table `[tls]` of the configuration, read and checked.

Daemons that it starts itself, and those at loopback addresses unless `tls.loopback`, are called in plaintext. The token goes to daemons
whose certificate was verified, and nowhere else: not into the configuration's values, logs, journal or MLflow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from repsearch.config import RunConfig
from repsearch.credentials import read_authority, read_pair, read_token
from repsearch.errors import ConfigError
from repsearch.serving.protection import is_loopback


@dataclass(frozen=True, kw_only=True)
class ClientTls:
    """Files to call a daemon with, checked: the authority that signed its certificate, and ours to show, if any; token: to say, if any."""

    ca: Path
    pair: tuple[Path, Path] | None = None
    token: str = ""

    def __repr__(self) -> str:
        return f"ClientTls(ca={str(self.ca)!r}, pair={self.pair and str(self.pair[0])!r})"


def client_tls(config: RunConfig) -> ClientTls | None:
    """Return what the table `[tls]` says, None for plaintext; ConfigError for files that cannot serve."""
    tls = config.tls
    if not tls.ca:
        for field in ("cert", "key", "token_file"):
            if getattr(tls, field):
                raise ConfigError(f"tls.{field} is of no use without TLS; set tls.ca to the certificate of the daemons' authority")
        return None
    if bool(tls.cert) != bool(tls.key):
        raise ConfigError("tls.cert and tls.key belong together; set both")
    ca = _path(tls.ca)
    read_authority(ca, at="tls.ca")
    pair = (_path(tls.cert), _path(tls.key)) if tls.cert else None
    if pair is not None:
        read_pair(*pair, at=("tls.cert", "tls.key"))
    token = read_token(_path(tls.token_file), at="tls.token_file") if tls.token_file else ""
    return ClientTls(ca=ca, pair=pair, token=token)


def tls_by_address(config: RunConfig) -> dict[str, ClientTls]:
    """Return how to call each of the configured daemons that are to be called by TLS."""
    tls = client_tls(config)
    if tls is None:
        return {}
    addresses = [address for address in (*config.searcher.addresses, config.learner.address) if address]
    return {address: tls for address in addresses if config.tls.loopback or not is_loopback(address.rpartition(":")[0])}


def open_channel(address: str, tls: ClientTls | None, options: list[tuple[str, Any]]) -> Any:
    """Return a gRPC channel to `address`, by TLS or in plaintext."""
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    certificate, key = (None, None) if tls.pair is None else (path.read_bytes() for path in tls.pair)
    credentials = grpc.ssl_channel_credentials(root_certificates=tls.ca.read_bytes(), private_key=key, certificate_chain=certificate)
    channel = grpc.secure_channel(address, credentials, options=options)
    return grpc.intercept_channel(channel, _Bearer(tls.token)) if tls.token else channel


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[misc]
    """Adds the token to every call."""

    def __init__(self, token: str) -> None:
        self._entry = ("authorization", f"Bearer {token}")

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(self._with_token(details), request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(self._with_token(details), request)

    def _with_token(self, details: Any) -> _Details:
        metadata = [*(details.metadata or ()), self._entry]
        return _Details(details.method, details.timeout, metadata, details.credentials, details.wait_for_ready, details.compression)


def _path(text: str) -> Path:
    return Path(text).expanduser()
