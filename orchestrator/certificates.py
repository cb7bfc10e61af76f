"""A private authority and the certificates it signs, for people who have none: one per daemon host, one for the orchestrator.

Files of the folder: `ca.pem` and `ca.key`; `NAME.pem` and `NAME.key` for each host; `orchestrator.pem` and `orchestrator.key`; `token`.
A host's certificate serves a daemon and nothing else, the orchestrator's a client and nothing else, so that one daemon's key does not
open another daemon. Keys and token are readable by their owner alone. What is there is never written over.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from repsearch.errors import ConfigError

ORCHESTRATOR = "orchestrator"
AUTHORITY = "ca"
KNOWN_BY = "token"
CA_DAYS = 3650
_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_BEFORE = timedelta(minutes=10)  # for clocks that are behind ours


@dataclass(frozen=True)
class Authority:
    """Who signs: certificate and private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be made in `folder`: a certificate for each of `hosts`, a list of names and addresses of which the first names the
    files; valid for `days` from `now`; and a token, if wanted."""

    folder: Path
    hosts: Sequence[Sequence[str]]
    days: int
    token: bool = False
    now: datetime = field(default_factory=lambda: datetime.now(UTC))


def make_certificates(order: Order) -> list[Path]:
    """Write what is missing and return the files written; ConfigError, with nothing written, where a file to be made is there."""
    for host in order.hosts:
        for name in host:
            _alternative(name)
    folder = order.folder
    names = [host[0] for host in order.hosts]
    reserved = [name for name in names if name in (ORCHESTRATOR, AUTHORITY, KNOWN_BY) or names.count(name) > 1]
    if reserved:
        raise ConfigError(f"--host {reserved[0]}: the name is taken; give each host once, under another name than {reserved[0]!r}")
    has_authority = _both_or_none(folder, AUTHORITY)
    new = [*names, *([] if _both_or_none(folder, ORCHESTRATOR) else [ORCHESTRATOR])]
    _refuse_existing(folder, [f"{name}{suffix}" for name in names for suffix in (".pem", ".key")] + ([KNOWN_BY] if order.token else []))
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        written = []
        authority = _read_authority(folder, order.now) if has_authority else _new_authority(order.now)
        if not has_authority:
            written += _write_pair(folder, AUTHORITY, authority)
        alternatives = {host[0]: host for host in order.hosts}
        for name in new:
            written += _write_pair(folder, name, _signed(authority, name, alternatives.get(name, ()), order))
        if order.token:
            written.append(_write(folder / KNOWN_BY, secrets.token_urlsafe(32).encode() + b"\n", 0o600))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}; name a folder that can") from None
    return written


def _refuse_existing(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if os.path.lexists(folder / name):
            raise ConfigError(f"{folder / name} is there already and is not written over; move it away, or name another folder or host")


def _both_or_none(folder: Path, name: str) -> bool:
    """Return whether certificate and key of `name` are there; ConfigError for one without the other."""
    there = [os.path.lexists(folder / f"{name}{suffix}") for suffix in (".pem", ".key")]
    if there[0] != there[1]:
        here, missing = (".pem", ".key") if there[0] else (".key", ".pem")
        raise ConfigError(f"{folder} has {name}{here} without {name}{missing}; put that back, or name another folder")
    return there[0]


def _read_authority(folder: Path, now: datetime) -> Authority:
    try:
        certificate = x509.load_pem_x509_certificate((folder / f"{AUTHORITY}.pem").read_bytes())
        key = load_pem_private_key((folder / f"{AUTHORITY}.key").read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{folder}: {AUTHORITY}.pem and {AUTHORITY}.key are not those of an authority: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"{folder}: {AUTHORITY}.key is not the key of {AUTHORITY}.pem; put back the one that is, or name another folder")
    if certificate.not_valid_after_utc <= now:
        raise ConfigError(
            f"{folder}: the authority expired on {certificate.not_valid_after_utc:%Y-%m-%d}; make a new one in another folder"
        )
    return Authority(certificate, key)


def _new_authority(now: datetime) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("RepSearch private authority " + secrets.token_hex(4))
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = _builder(name, name, key, now, now + timedelta(days=CA_DAYS)).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return Authority(builder.sign(key, hashes.SHA256()), key)


def _signed(authority: Authority, name: str, alternatives: Sequence[str], order: Order) -> Authority:
    """Return certificate and key of a daemon host with these names and addresses or, without any, of the orchestrator."""
    key = ec.generate_private_key(ec.SECP256R1())
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if alternatives else ExtendedKeyUsageOID.CLIENT_AUTH
    end = min(order.now + timedelta(days=order.days), authority.certificate.not_valid_after_utc)
    builder = _builder(_name(name), authority.certificate.subject, key, order.now, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(issuer, critical=False)
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(each) for each in alternatives]), critical=False)
    return Authority(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    return builder.serial_number(x509.random_serial_number()).not_valid_before(now - _BEFORE).not_valid_after(end)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _alternative(name: str) -> x509.GeneralName:
    """Return a host name or an address as it stands in a certificate; ConfigError for what is neither."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        pass
    if len(name) > 253 or not _HOST.fullmatch(name) or re.fullmatch(r"[0-9.]+", name):
        raise ConfigError(
            f"--host {name!r} is neither a host name nor an address; give it as the orchestrator names the daemon, without a port"
        )
    return x509.DNSName(name)


def _write_pair(folder: Path, name: str, pair: Authority) -> list[Path]:
    secret = pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return [
        _write(folder / f"{name}.key", secret, 0o600),
        _write(folder / f"{name}.pem", pair.certificate.public_bytes(Encoding.PEM), 0o644),
    ]


def _write(path: Path, content: bytes, mode: int) -> Path:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    return path


def next_commands(order: Order) -> str:
    """Return what to do with the files: which go where, and the commands that use them."""
    folder, lines = order.folder, list[str]()
    for number, (name, *_) in enumerate(order.hosts):
        kept = f"{name}.pem {name}.key and ca.pem" + (" and token" if order.token else "")
        lines += [
            f"on {name}, with {kept} copied there:",
            f"  searcher serve --listen 0.0.0.0:{7001 + number} --store RUNS --tls-cert {name}.pem --tls-key {name}.key --tls-ca ca.pem"
            + (" --token-file token" if order.token else ""),
        ]
    lines += [
        "in the run's configuration:",
        "  [tls]",
        f'  ca = "{folder / "ca.pem"}"',
        f'  cert = "{folder / "orchestrator.pem"}"',
        f'  key = "{folder / "orchestrator.key"}"',
        *([f'  token_file = "{folder / KNOWN_BY}"'] if order.token else []),
        f"{folder / 'ca.key'} signs certificates that every daemon trusts: copy it nowhere, and keep it for further hosts",
    ]
    return "\n".join(lines)
