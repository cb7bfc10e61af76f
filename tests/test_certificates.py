"""`orchestrator certs`: what it makes, for whom, for how long, and what it does not touch."""

from __future__ import annotations

import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from orchestrator.certificates import Order, make_certificates
from orchestrator.cli import app
from repsearch.errors import ConfigError

MADE = ["ca.key", "ca.pem", "host-a.key", "host-a.pem", "orchestrator.key", "orchestrator.pem"]


def order(folder: Path, *hosts: str, days: int = 30, token: bool = False) -> Order:
    return Order(folder=folder, hosts=[host.split(",") for host in hosts], days=days, token=token)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def extension(path: Path, kind: type) -> x509.ExtensionType:
    return certificate(path).extensions.get_extension_for_class(kind).value


def test_command_makes_the_files_and_prints_the_next_commands(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    result = CliRunner().invoke(app, ["certs", str(folder), "--host", "host-a,192.0.2.7", "--host", "host-b", "--days", "90", "--token"])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in folder.iterdir()) == sorted([*MADE, "host-b.key", "host-b.pem", "token"])
    for line in (
        "searcher serve --listen 0.0.0.0:7001 --store RUNS --tls-cert host-a.pem --tls-key host-a.key --tls-ca ca.pem --token-file token",
        f'ca = "{folder / "ca.pem"}"',
        f'token_file = "{folder / "token"}"',
        f"{folder / 'ca.key'} signs certificates that every daemon trusts",
    ):
        assert line in result.output
    assert (folder / "token").read_text().strip() not in result.output


def test_keys_and_token_are_their_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    for path in make_certificates(order(folder, "host-a", token=True)):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0 if path.suffix != ".pem" else mode & 0o022 == 0, path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_names_and_addresses_are_in_the_certificate(tmp_path: Path) -> None:
    make_certificates(order(tmp_path, "host-a,host-a.example,192.0.2.7,2001:db8::7"))
    names = extension(tmp_path / "host-a.pem", x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.DNSName) == ["host-a", "host-a.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("192.0.2.7"), ip_address("2001:db8::7")]


def test_certificates_serve_one_purpose_each(tmp_path: Path) -> None:
    make_certificates(order(tmp_path, "host-a"))
    assert list(extension(tmp_path / "host-a.pem", x509.ExtendedKeyUsage)) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert list(extension(tmp_path / "orchestrator.pem", x509.ExtendedKeyUsage)) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert extension(tmp_path / "ca.pem", x509.BasicConstraints).ca
    for name in ("host-a", "orchestrator"):
        assert not extension(tmp_path / f"{name}.pem", x509.BasicConstraints).ca
        certificate(tmp_path / f"{name}.pem").verify_directly_issued_by(certificate(tmp_path / "ca.pem"))


def test_certificates_are_valid_for_the_days_asked_for(tmp_path: Path) -> None:
    make_certificates(order(tmp_path, "host-a", days=90))
    left = certificate(tmp_path / "host-a.pem").not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=89) < left <= timedelta(days=90)
    make_certificates(order(tmp_path, "host-b", days=3650))
    assert certificate(tmp_path / "host-b.pem").not_valid_after_utc <= certificate(tmp_path / "ca.pem").not_valid_after_utc


def test_further_hosts_are_signed_by_the_authority_that_is_there(tmp_path: Path) -> None:
    make_certificates(order(tmp_path, "host-a"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert [path.name for path in make_certificates(order(tmp_path, "host-b"))] == ["host-b.key", "host-b.pem"]
    certificate(tmp_path / "host-b.pem").verify_directly_issued_by(certificate(tmp_path / "ca.pem"))
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())


def lose_a_key(folder: Path) -> None:
    (folder / "ca.key").unlink()


def change_the_key(folder: Path) -> None:
    (folder / "ca.key").write_bytes((folder / "host-a.key").read_bytes())


def spoil_the_authority(folder: Path) -> None:
    (folder / "ca.pem").write_text("nothing")


@pytest.mark.parametrize(
    ("hosts", "spoil", "words"),
    [
        ("host-a", lambda folder: None, "host-a.pem is there already and is not written over"),
        ("host-b", lambda folder: (folder / "host-b.key").symlink_to("nowhere"), "host-b.key is there already"),
        ("host-b", lose_a_key, "has ca.pem without ca.key"),
        ("host-b", change_the_key, "ca.key is not the key of ca.pem"),
        ("host-b", spoil_the_authority, "are not those of an authority"),
        ("host b", lambda folder: None, "'host b' is neither a host name nor an address"),
        ("../host", lambda folder: None, "neither a host name"),
        ("192.0.2.300", lambda folder: None, "neither a host name"),
        ("host-b:7001", lambda folder: None, "without a port"),
        ("", lambda folder: None, "neither a host name"),
        ("ca", lambda folder: None, "--host ca: the name is taken"),
        ("orchestrator", lambda folder: None, "the name is taken"),
    ],
)
def test_refusals_write_nothing(tmp_path: Path, hosts: str, spoil: Callable[[Path], object], words: str) -> None:
    make_certificates(order(tmp_path, "host-a"))
    spoil(tmp_path)
    before = {path.name: path.lstat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=words):
        make_certificates(order(tmp_path, hosts))
    assert {path.name: path.lstat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_two_hosts_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give each host once"):
        make_certificates(order(tmp_path / "certs", "host-a", "host-a,192.0.2.7"))
    assert not (tmp_path / "certs").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/certs: cannot be written"):
        make_certificates(order(tmp_path / "file" / "certs", "host-a"))


def test_an_expired_authority_signs_nothing(tmp_path: Path) -> None:
    past = datetime.now(UTC) - timedelta(days=4000)
    make_certificates(Order(folder=tmp_path, hosts=[], days=30, now=past))
    with pytest.raises(ConfigError, match="the authority expired on"):
        make_certificates(order(tmp_path, "host-a"))
