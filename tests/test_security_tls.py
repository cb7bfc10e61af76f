"""Who may call a daemon, and what a refusal says; with real daemons, and certificates made by `orchestrator certs`."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orchestrator import cli
from orchestrator.client import DaemonClient
from orchestrator.roster import Roster
from orchestrator.security import ClientTls
from repsearch.errors import ConfigError, DaemonError, SecurityError
from repsearch.rpc.v1 import jobs_pb2
from repsearch.serving.protection import Protection, check_protection
from tests.orchestrator_runs import write_config
from tests.security_files import calling, folder, serving
from tests.serving_processes import ROOT, DaemonProcess, daemon, finish, request, until
from tests.serving_proxy import Proxy

pytestmark = pytest.mark.fault(18)
AT_ONCE_S = 8.0  # bounds are 10 s to connect and 3 s for the handshake; a refusal needs neither


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with daemon(tmp_path_factory.mktemp("mutual") / "store", *serving(folder())) as server:
        yield server


@pytest.fixture(scope="module")
def by_token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with daemon(tmp_path_factory.mktemp("token") / "store", *serving(folder(), ca=False, token=True)) as server:
        yield server


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with daemon(tmp_path_factory.mktemp("plain") / "store") as server:
        yield server


def refusal(address: str, tls: ClientTls | None) -> str:
    """Connect; return what the refusal says, which comes at once and is one that nobody tries again."""
    begin = time.monotonic()
    with DaemonClient(address, "searcher", tls=tls, connect_s=60.0) as client, pytest.raises(SecurityError) as error:
        client.connect()
    assert time.monotonic() - begin < AT_ONCE_S
    assert error.value.exit_code == 8
    assert str(error.value).startswith(f"searcher at {address}: ")
    return str(error.value)


def test_job_runs_by_mutual_tls(mutual: DaemonProcess) -> None:
    with DaemonClient(mutual.address, "searcher", tls=calling(folder())) as client:
        client.connect()
        assert finish(client, client.start(request()).job_id).state == jobs_pb2.JOB_STATE_SUCCEEDED
    assert "protection: TLS with client certificate" in mutual.log()


def test_job_runs_by_token(by_token: DaemonProcess) -> None:
    token = (folder() / "token").read_text().strip()
    with DaemonClient(by_token.address, "searcher", tls=calling(folder(), pair="", token=token)) as client:
        client.connect()
        assert finish(client, client.start(request()).job_id).state == jobs_pb2.JOB_STATE_SUCCEEDED
    assert token not in by_token.log()


def test_client_of_another_authority_is_refused(mutual: DaemonProcess) -> None:
    assert "does not take our client certificate; set tls.cert" in refusal(mutual.address, calling(folder(), own=folder("another")))


def test_daemon_of_another_authority_is_refused(mutual: DaemonProcess) -> None:
    assert "not of the authority in tls.ca; set tls.ca" in refusal(mutual.address, calling(folder("another")))


def test_missing_client_certificate_is_refused(mutual: DaemonProcess) -> None:
    assert "wants a client certificate, and we show none; set tls.cert" in refusal(mutual.address, calling(folder(), pair=""))


def test_daemon_certificate_does_not_open_another_daemon(mutual: DaemonProcess) -> None:
    assert "does not take our client certificate" in refusal(mutual.address, calling(folder(), pair="elsewhere"))


def test_expired_client_certificate_is_refused(mutual: DaemonProcess, tmp_path: Path) -> None:
    """Of the right authority, so that the date alone is wrong."""
    for name in ("ca.pem", "ca.key"):
        (tmp_path / name).write_bytes((folder() / name).read_bytes())
    expired = expire(tmp_path)
    assert "does not take our client certificate; set tls.cert and tls.key to one for the orchestrator, in date" in refusal(
        mutual.address, calling(folder(), own=expired)
    )


def test_expired_daemon_certificate_is_refused(tmp_path: Path) -> None:
    """Of the right authority and host, so that the date alone is wrong: told at once, and never tried again."""
    for name in ("ca.pem", "ca.key"):
        (tmp_path / name).write_bytes((folder() / name).read_bytes())
    reason = "its certificate has expired; have a new one made (orchestrator certs --help), and start the daemon with it"
    with daemon(tmp_path / "store", *serving(expire(tmp_path)), module="tests.expired_daemon") as server:
        assert refusal(server.address, calling(folder())) == f"searcher at {server.address}: {reason}"
        tries: list[DaemonClient] = []
        roster = Roster(lambda lost: [tries.append(lost), lost.connect()])
        with DaemonClient(server.address, "searcher", tls=calling(folder()), connect_s=60.0) as client:
            roster.lose(client, "it went silent")
            until(lambda: not any(thread.name == f"probe {server.address}" for thread in threading.enumerate()))
            [lost] = roster.lost([client])
            assert (lost.for_good, tries) == (True, [client]) and reason in lost.why


def expire(files: Path) -> Path:
    """Make certificates in `files`, by the authority there, that expired."""
    from datetime import UTC, datetime, timedelta

    from orchestrator.certificates import Order, make_certificates

    past = datetime.now(UTC) - timedelta(days=40)
    make_certificates(Order(folder=files, hosts=[("here", "127.0.0.1")], days=30, now=past))
    return files


def test_plaintext_to_tls_is_refused(mutual: DaemonProcess, by_token: DaemonProcess) -> None:
    for server in (mutual, by_token):
        assert "it speaks TLS, we call it in plaintext; set the table [tls]" in refusal(server.address, None)


def test_tls_to_plaintext_is_refused(plain: DaemonProcess) -> None:
    for pair in ("orchestrator", ""):
        assert "it answers in plaintext, we call it by TLS; start it with --tls-cert" in refusal(
            plain.address, calling(folder(), pair=pair)
        )


def test_wrong_host_name_is_refused(tmp_path: Path) -> None:
    with daemon(tmp_path / "store", *serving(folder(), "elsewhere")) as server:
        assert "its certificate is not for '127.0.0.1'" in refusal(server.address, calling(folder()))


@pytest.mark.parametrize(("given", "words"), [("", "wants a token"), ("not-the-token-of-it", "the token is not this daemon's")])
def test_token_that_is_wrong_or_missing_is_refused(by_token: DaemonProcess, given: str, words: str) -> None:
    said = refusal(by_token.address, calling(folder(), pair="", token=given))
    assert words in said and "set tls.token_file" in said
    assert (folder() / "token").read_text().strip() not in said and (not given or given not in said)


def test_health_needs_the_token_too(by_token: DaemonProcess) -> None:
    credentials = grpc.ssl_channel_credentials((folder() / "ca.pem").read_bytes())
    with grpc.secure_channel(by_token.address, credentials) as channel, pytest.raises(grpc.RpcError) as error:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_call_without_token_that_sends_no_message_is_answered(by_token: DaemonProcess) -> None:
    """A caller that never sends its message holds no thread of the daemon."""
    credentials = grpc.ssl_channel_credentials((folder() / "ca.pem").read_bytes())
    with grpc.secure_channel(by_token.address, credentials) as channel:
        silent = channel.stream_unary("/repsearch.rpc.v1.Searcher/Start")
        never = threading.Event()
        with pytest.raises(grpc.RpcError) as error:
            silent(iter(never.wait, True), timeout=10)
        never.set()
        assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.faults
def test_watch_is_not_taken_up_with_a_daemon_that_cannot_prove_itself(tmp_path: Path) -> None:
    """The address leads to a daemon of another authority after a cut: the watch ends at once, however long it may try."""
    with daemon(tmp_path / "one", *serving(folder())) as server:
        between = Proxy(server.address)
        with DaemonClient(between.address, "searcher", tls=calling(folder()), retry_s=60.0) as client:
            client.connect()
            events = client.watch(client.start(request(do="hold")).job_id)
            next(events)
            with daemon(tmp_path / "two", *serving(folder("another"))) as other:
                between.redirect(other.address)
                begin = time.monotonic()
                with pytest.raises(SecurityError, match="not of the authority"):
                    list(events)
                assert time.monotonic() - begin < AT_ONCE_S
        between.close()


@pytest.mark.faults
def test_silent_peer_is_not_taken_for_a_matter_of_tls() -> None:
    """Nothing answers: the bound of the connection holds, and the error is not about certificates."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with DaemonClient(address, "searcher", tls=calling(folder()), connect_s=1.0) as client, pytest.raises(DaemonError) as error:
            client.connect()
    assert not isinstance(error.value, SecurityError)


@pytest.mark.faults
def test_run_ends_before_anything_is_loaded_or_started(mutual: DaemonProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every daemon at fault is named; exit code 8, and nothing written."""
    tls = calling(folder("another"))
    settings = [
        f'searcher.addresses=["{mutual.address}"]',
        f"learner.address={mutual.address}",
        f"tls.ca={tls.ca}",
        "tls.loopback=true",
        "dataset.name=image_folder",
        "dataset.size=8",
        f"dataset.root={tmp_path / 'none'}",  # which is found later
    ]
    arguments = ["run", str(write_config(tmp_path)), *(part for setting in settings for part in ("--set", setting))]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["orchestrator", *arguments])
        cli.main()
    assert end.value.code == 8
    said = capsys.readouterr().err
    for service in ("searcher", "learner"):
        assert f"{service} at {mutual.address}: its certificate is not of the authority in tls.ca" in said
    assert not (tmp_path / "runs").exists()


def refused(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a daemon that does not start, and must not have loaded gRPC or torch."""
    code = (
        "import sys, searcher.cli as c\n"
        f"sys.argv = ['searcher', 'serve', *{arguments!r}]\n"
        "try:\n    c.main()\nfinally:\n    print(sorted({'torch', 'grpc', 'numpy'} & set(sys.modules)))\n"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


CERT, KEY = Path("c.pem"), Path("c.key")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "everybody who reaches it could run jobs"),
        ({"cert": CERT, "key": KEY}, "TLS alone lets everybody in"),
        ({"cert": CERT}, "--tls-cert and --tls-key belong together"),
        ({"token_file": CERT}, "--token-file needs TLS"),
        ({"ca": CERT}, "--tls-ca needs TLS"),
        ({"cert": CERT, "key": KEY, "ca": CERT, "insecure": True}, "exclude one another"),
    ],
)
def test_other_addresses_need_protection(options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_protection("0.0.0.0:0", Protection(**options))


def test_daemon_refuses_before_anything_is_loaded_or_written(tmp_path: Path) -> None:
    result = refused("--listen", "0.0.0.0:0", "--store", str(tmp_path / "store"))
    assert result.returncode == 2 and "everybody who reaches it could run jobs" in result.stderr and result.stderr.count("\n") == 1
    assert result.stdout == "[]\n"
    assert not (tmp_path / "store").exists()


def test_insecure_says_what_it_opens(tmp_path: Path) -> None:
    with daemon(tmp_path / "store", "--listen", "0.0.0.0:0", "--insecure", "--log-format", "json") as server:
        assert server.address.startswith("0.0.0.0:")
        [said] = [record for record in map(json.loads, server.log().splitlines()) if "INSECURE" in record["message"]]
    assert said["level"] == "warning"
    for words in ("whoever reaches this port can run jobs", str(tmp_path / "store"), "nothing on the way is encrypted"):
        assert words in said["message"]


def test_daemon_with_certificates_listens_for_other_machines(tmp_path: Path) -> None:
    with daemon(tmp_path / "store", "--listen", "0.0.0.0:0", *serving(folder())) as server:
        port = server.address.rpartition(":")[2]
        with DaemonClient(f"127.0.0.1:{port}", "searcher", tls=calling(folder())) as client:
            assert client.connect().service == "searcher"
        assert "INSECURE" not in server.log()
