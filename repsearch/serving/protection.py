"""Who may call a daemon: on loopback every user of the machine; elsewhere whoever shows a certificate or knows a token.

Everything here is checked before anything heavy is loaded.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from repsearch.credentials import read_authority, read_pair, read_token
from repsearch.errors import ConfigError

_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:]+\]|[^:\[\]/\s]+):(?P<port>\d{1,5})")
OPENED = (
    "whoever reaches this port can run jobs on this machine, stop those of others, read, change and delete every run in {store}, and read "
    "data sets anywhere that this process may read; nothing on the way is encrypted"
)


@dataclass(frozen=True, kw_only=True)
class Protection:
    """What a daemon was told of its clients: its certificate and key, the authority that signs theirs, the token they know; or nothing.

    insecure: it was told to listen without any of it.
    """

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    token_file: Path | None = None
    insecure: bool = False

    @property
    def tls(self) -> bool:
        """Whether the daemon speaks TLS."""
        return self.cert is not None

    def text(self) -> str:
        """Return in a few words how clients are known."""
        wanted = [*(["client certificate"] if self.ca else []), *(["token"] if self.token_file else [])]
        return f"TLS with {' and '.join(wanted)}" if wanted else "TLS" if self.tls else "none"


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """What the files of a `Protection` hold, not for printing; `text` says in a few words how clients are known."""

    text: str = "none"
    pair: tuple[bytes, bytes] | None = None
    ca: bytes | None = None
    token: str | None = None

    def __repr__(self) -> str:
        return "Secrets(...)"


def split_address(listen: str) -> tuple[str, int]:
    """Return host and port of "host:port"; ConfigError for anything else."""
    match = _ADDRESS.fullmatch(listen)
    if match is None or int(match["port"]) > 65535:
        raise ConfigError(f"cannot listen on {listen!r}: give host:port, for example 127.0.0.1:7001 (port 0 chooses a free one)")
    return match["host"], int(match["port"])


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`: a loopback address, or a name of nothing but such."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        pass
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def check_protection(listen: str, protection: Protection) -> None:
    """Refuse, by a ConfigError, options that do not fit one another, and to listen for other machines without knowing who calls."""
    host, _ = split_address(listen)
    if (protection.cert is None) != (protection.key is None):
        raise ConfigError("--tls-cert and --tls-key belong together; give both")
    for option, given in (("--tls-ca", protection.ca), ("--token-file", protection.token_file)):
        if given is not None and not protection.tls:
            raise ConfigError(f"{option} needs TLS; give --tls-cert and --tls-key too")
    if protection.insecure and protection.tls:
        raise ConfigError("--insecure and TLS exclude one another; leave one of them out")
    known = protection.ca is not None or protection.token_file is not None
    if not (known or protection.insecure or is_loopback(host)):
        why = "TLS alone lets everybody in" if protection.tls else "everybody who reaches it could run jobs and change every run"
        raise ConfigError(
            f"cannot listen on {listen} unprotected: {why}. Give --tls-cert, --tls-key and --tls-ca (mutual TLS), or --tls-cert, --tls-key "
            "and --token-file; `orchestrator certs DIR --host NAME` makes them. Loopback, such as 127.0.0.1:7001, needs nothing; "
            "--insecure listens without"
        )


def read_secrets(protection: Protection) -> Secrets:
    """Return what the files hold; ConfigError for one that cannot serve."""
    pair = None
    if protection.cert is not None and protection.key is not None:
        pair = read_pair(protection.cert, protection.key, at=("--tls-cert", "--tls-key"))
    return Secrets(
        text=protection.text(),
        pair=pair,
        ca=None if protection.ca is None else read_authority(protection.ca, at="--tls-ca"),
        token=None if protection.token_file is None else read_token(protection.token_file, at="--token-file"),
    )


def same_token(expected: str, given: str) -> bool:
    """Compare in a time that tells nothing of either, not even of their lengths."""
    digests = (hashlib.sha256(text.encode(errors="surrogateescape")).digest() for text in (expected, given))
    return hmac.compare_digest(*digests)
