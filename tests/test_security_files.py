"""Certificates, keys and tokens in files: what is refused before anything starts, and where the token never is."""

from __future__ import annotations

import contextlib
import hmac
import logging
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.certificates import Order, make_certificates
from orchestrator.security import client_tls, tls_by_address
from repsearch.config import RunConfig, learn_digest, parse_config, search_digest
from repsearch.credentials import read_token
from repsearch.errors import ConfigError
from repsearch.serving.protection import Protection, check_protection, is_loopback, read_secrets, same_token
from tests.orchestrator_runs import Orchestrator, write_config
from tests.security_files import folder, serving
from tests.serving_processes import DaemonProcess, daemon


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder(), tmp_path / "files"))


def config(files: Path, **fields: object) -> RunConfig:
    table = {"ca": str(files / "ca.pem"), "cert": str(files / "orchestrator.pem"), "key": str(files / "orchestrator.key"), **fields}
    table = {key: value for key, value in table.items() if value is not None}
    return parse_config({"tls": table, "searcher": {"addresses": ["host-b:7001", "127.0.0.1:7001"]}})


def protection(files: Path) -> Protection:
    return Protection(cert=files / "here.pem", key=files / "here.key", ca=files / "ca.pem", token_file=files / "token")


Spoil = Callable[[Path, str], object]
"""Makes a file of a folder useless; the string is the name of the certificate in question."""


def expire(files: Path, host: str) -> None:
    for suffix in (".pem", ".key"):
        (files / f"{host}{suffix}").unlink()
    hosts = [] if host == "orchestrator" else [[host]]
    make_certificates(Order(folder=files, hosts=hosts, days=1, now=datetime.now(UTC) - timedelta(days=3)))


SPOILT: list[tuple[str, Spoil, str]] = [
    ("token", lambda files, _: (files / "token").chmod(0o604), "everybody on this machine may read .*keep it to yourself: chmod 600"),
    ("token", lambda files, _: (files / "token").write_text("short"), "token holds no token"),
    ("token", lambda files, _: (files / "token").write_text("two words that are long"), "token holds no token"),
    ("token", lambda files, _: (files / "token").unlink(missing_ok=True), "token cannot be read: No such file"),
    ("key", lambda files, host: (files / f"{host}.key").chmod(0o604), "everybody on this machine may read"),
    ("key", lambda files, host: shutil.copy(files / "ca.key", files / f"{host}.key"), "is not the private key"),
    ("key", lambda files, host: (files / f"{host}.key").write_text("nothing"), "is not the private key"),
    ("cert", lambda files, host: (files / f"{host}.pem").write_text("nothing"), "is not a certificate in PEM"),
    ("cert", expire, "expired on .*; have a new one made"),
    ("ca", lambda files, _: (files / "ca.pem").write_text("nothing"), "is not a certificate in PEM"),
]
OPTIONS = {"token": "--token-file", "key": "--tls-key", "cert": "--tls-cert", "ca": "--tls-ca"}
FIELDS = {"token": "tls.token_file", "key": "tls.key", "cert": "tls.cert", "ca": "tls.ca"}


@pytest.mark.parametrize(("what", "spoil", "words"), SPOILT)
def test_files_that_cannot_serve_are_refused(files: Path, what: str, spoil: Spoil, words: str) -> None:
    for host in ("here", "orchestrator"):
        spoil(files, host)
    with pytest.raises(ConfigError, match=f"^{OPTIONS[what]}: .*{words}"):
        read_secrets(protection(files))
    with pytest.raises(ConfigError, match=f"^{FIELDS[what]}: .*{words}"):
        client_tls(config(files, token_file=str(files / "token")))


def test_files_that_the_group_may_read_are_warned_of(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    (files / "token").chmod(0o640)
    with caplog.at_level(logging.WARNING):
        assert read_token(files / "token", at="--token-file") == (files / "token").read_text().strip()
    assert "the group may read or write" in caplog.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ca": None, "cert": None, "key": None, "token_file": "t"}, "tls.token_file is of no use without TLS"),
        ({"ca": None}, "tls.cert is of no use without TLS"),
        ({"key": None}, "tls.cert and tls.key belong together"),
    ],
)
def test_tables_that_do_not_fit_are_refused(files: Path, fields: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        client_tls(config(files, **fields))


def test_loopback_daemons_are_called_in_plaintext_unless_asked_for(files: Path) -> None:
    assert list(tls_by_address(config(files))) == ["host-b:7001"]
    assert list(tls_by_address(config(files, loopback=True))) == ["host-b:7001", "127.0.0.1:7001"]
    assert tls_by_address(parse_config({})) == {}


def test_tls_is_in_no_digest(files: Path) -> None:
    for digest in (search_digest, learn_digest):
        assert digest(config(files)) == digest(parse_config({}))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "[::1]", "localhost"])
def test_loopback_needs_nothing(host: str) -> None:
    assert is_loopback(host)
    check_protection(f"{host}:7001", Protection())


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1", "[::ffff:7f00:1]", "no-such-host.invalid", "10.0.0.1"])
def test_other_addresses_are_no_loopback(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="unprotected"):
        check_protection(f"{host}:7001", Protection())
    check_protection(f"{host}:7001", Protection(insecure=True))


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return hmac.compare_digest(left, right)

    monkeypatch.setattr("repsearch.serving.protection.hmac", SimpleNamespace(compare_digest=compare))
    assert same_token("a" * 40, "a" * 40)
    assert not same_token("a" * 40, "a" * 39)
    assert not same_token("a", "\udcff")
    assert compared == [(32, 32)] * 3  # digests, whatever the lengths


@pytest.fixture
def protected(files: Path, tmp_path: Path) -> Iterator[list[DaemonProcess]]:
    """A searcher and a learner that want certificate and token, and say everything that they do."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                daemon(tmp_path / "runs", "--log-format", "json", *serving(files, token=True), service=service, module=service)
            )
            for service in ("searcher", "learner")
        ]


@pytest.mark.slow
def test_token_is_nowhere_but_in_its_file(files: Path, tmp_path: Path, protected: list[DaemonProcess]) -> None:
    """A whole run, tracked in MLflow, by TLS: the token is in no file of it, in no log, no output, no command line, no environment."""
    searcher, learner = protected
    settings = [
        f'searcher.addresses=["{searcher.address}"]',
        f"learner.address={learner.address}",
        *(f"tls.{field}={files / name}" for field, name in TABLE.items()),
        "tls.loopback=true",
        "tracking.enabled=true",
        "rounds.count=1",
        "learn.epochs=1",
    ]
    arguments = [part for setting in settings for part in ("--set", setting)]
    command = Orchestrator(["run", str(write_config(tmp_path)), "--name", "one", *arguments], tmp_path)
    seen = [Path(f"/proc/{process.pid}/{what}").read_bytes() for process in (command.process, searcher.process) for what in PROCESS]
    assert command.wait() == 0, command.text()
    secret = (files / "token").read_bytes().strip()
    places = [path for path in tmp_path.rglob("*") if path.is_file() and path != files / "token"]
    assert {"run.json", "journal.jsonl", "mlflow.db", "runs-searcher.log", "runs-learner.log"} <= {path.name for path in places}
    assert [path for path in places if secret in path.read_bytes()] == []
    assert not any(secret in text for text in seen)


TABLE = {"ca": "ca.pem", "cert": "orchestrator.pem", "key": "orchestrator.key", "token_file": "token"}
PROCESS = ("cmdline", "environ")
