"""Certificates, keys and tokens in files: read, and refused with the way out where they cannot serve.

`at` names the option or the configuration field that the file was given by. What a file holds is in no message.
"""

from __future__ import annotations

import logging
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

from repsearch.errors import ConfigError

TOKEN_LENGTH = 16
"""Fewest characters of a token."""
SOON = timedelta(days=14)
log = logging.getLogger("credentials")


def read_token(path: Path, *, at: str) -> str:
    """Return the token in `path`, a file of one line that others cannot read."""
    token = _read(path, at, private=True).decode(errors="replace").strip()
    if len(token) < TOKEN_LENGTH or not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError(
            f"{at}: {path} holds no token: one line of at least {TOKEN_LENGTH} letters, digits and signs; "
            "make one with: orchestrator certs DIR --token"
        )
    return token


def read_pair(cert: Path, key: Path, *, at: tuple[str, str]) -> tuple[bytes, bytes]:
    """Return certificate (with its chain) and private key, which belong together; `at` names both."""
    certificate, secret = _read(cert, at[0]), _read(key, at[1], private=True)
    _check_dates(certificate, cert, at[0])
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, ValueError, OSError):
        raise ConfigError(f"{at[1]}: {key} is not the private key, in PEM without a password, of the certificate {cert}") from None
    return certificate, secret


def read_authority(path: Path, *, at: str) -> bytes:
    """Return the certificates of the authorities in `path`."""
    authority = _read(path, at)
    _check_dates(authority, path, at)
    return authority


def _read(path: Path, at: str, *, private: bool = False) -> bytes:
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{at}: {path} cannot be read: {error.strerror or error}") from None
    if private and mode & stat.S_IRWXO:
        raise ConfigError(f"{at}: everybody on this machine may read or write {path}; keep it to yourself: chmod 600 {path}")
    if private and mode & stat.S_IRWXG:
        log.warning("%s: the group may read or write %s; keep it to yourself: chmod 600 %s", at, path, path)
    return content


def _check_dates(pem: bytes, path: Path, at: str) -> None:
    """Refuse what is no certificate, or not one now; warn of one that soon is not."""
    from cryptography import x509

    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigError(f"{at}: {path} is not a certificate in PEM") from None
    now = datetime.now(UTC)
    for certificate in certificates:
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if now > end:
            raise ConfigError(f"{at}: the certificate {path} expired on {end:%Y-%m-%d}; have a new one made: orchestrator certs --help")
        if now < begin:
            raise ConfigError(f"{at}: the certificate {path} is valid from {begin:%Y-%m-%d} on; is this machine's clock right?")
        if now > end - SOON:
            log.warning("%s: the certificate %s expires on %s; have a new one made: orchestrator certs --help", at, path, f"{end:%Y-%m-%d}")
