"""Certificates and tokens for tests, made once, and daemons that use them."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from orchestrator.certificates import Order, make_certificates
from orchestrator.security import ClientTls

HOSTS = (("here", "127.0.0.1", "localhost"), ("elsewhere", "host-b.example"))


@functools.cache
def folder(name: str = "ours", *, days_ago: int = 0) -> Path:
    """Return a folder of certificates for this machine (`here`) and another (`elsewhere`), valid for 30 days from `days_ago`.

    Another `name` is another authority's.
    """
    place = Path(tempfile.mkdtemp(prefix=f"repsearch-{name}-"))
    now = datetime.now(UTC)
    make_certificates(Order(folder=place, hosts=[], days=30, now=now - timedelta(days=days_ago)))
    for path in place.glob("orchestrator.*"):
        path.unlink()
    make_certificates(Order(folder=place, hosts=HOSTS, days=30, token=True, now=now - timedelta(days=days_ago)))
    return place


def serving(files: Path, host: str = "here", *, ca: bool = True, token: bool = False) -> Sequence[str]:
    """Return the options of a daemon that uses the certificates in `files`."""
    options = ["--tls-cert", files / f"{host}.pem", "--tls-key", files / f"{host}.key"]
    options += ["--tls-ca", files / "ca.pem"] if ca else []
    options += ["--token-file", files / "token"] if token else []
    return [str(option) for option in options]


def calling(files: Path, *, pair: str = "orchestrator", own: Path | None = None, token: str = "") -> ClientTls:
    """Return how a client calls that trusts the authority in `files` and shows the certificate `pair` of `own`, if any."""
    own = own or files
    return ClientTls(ca=files / "ca.pem", pair=(own / f"{pair}.pem", own / f"{pair}.key") if pair else None, token=token)
