"""Why a daemon cannot be reached, if TLS is the reason: gRPC shows every such failure as UNAVAILABLE, mostly "Socket closed".

A handshake of our own, bounded in time, tells them apart.
"""

from __future__ import annotations

import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from socket import create_connection, socket

from orchestrator.security import ClientTls, tls_by_address
from repsearch.config import RunConfig
from repsearch.errors import SecurityError

WITHIN_S = 3.0
PLAINTEXT = (
    "it answers in plaintext, we call it by TLS; start it with --tls-cert and --tls-key, or take its address out of TLS (docs/security.md)"
)
WRONG_CA = "its certificate is not of the authority in tls.ca; set tls.ca to the ca.pem that the daemon's certificate was made with"
_VERIFY = {
    9: "its certificate is not valid yet; are the clocks right?",
    10: "its certificate has expired; have a new one made (orchestrator certs --help), and start the daemon with it",
    18: WRONG_CA,
    19: WRONG_CA,
    20: WRONG_CA,
    21: WRONG_CA,
    7: WRONG_CA,
}
_HOST = (62, 64)
_MISSING = (
    "it wants a client certificate, and we show none; set tls.cert and tls.key to one of the authority that the daemon has in --tls-ca"
)
_REFUSED = (
    "it does not take our client certificate; set tls.cert and tls.key to one for the orchestrator, in date, of the authority that the "
    "daemon has in --tls-ca"
)
_SPEAKS_TLS = "it speaks TLS, we call it in plaintext; set the table [tls] of the configuration (and tls.loopback for a loopback address)"


def fault(address: str, tls: ClientTls | None, *, within_s: float = WITHIN_S) -> str:
    """Return what is wrong with TLS between us and the daemon at `address`, and the way out; "" if nothing is, or nobody is there."""
    host, _, port = address.rpartition(":")
    host, end = host.strip("[]"), time.monotonic() + within_s
    try:
        connection = create_connection((host, int(port)), timeout=within_s)
    except (OSError, ValueError):
        return ""
    with connection:
        connection.settimeout(max(end - time.monotonic(), 0.1))
        return _fault_of_plaintext(connection) if tls is None else _fault_of_tls(connection, host, tls, end)


def check_handshakes(config: RunConfig) -> None:
    """Raise `SecurityError` for a configured daemon that does not trust us, or that we do not; nothing if it is not there (yet)."""
    tls = tls_by_address(config)
    daemons = [("searcher", address) for address in config.searcher.addresses]
    daemons += [("learner", config.learner.address)] if config.learner.address else []
    if not daemons:
        return
    with ThreadPoolExecutor(len(daemons)) as pool:
        found = pool.map(lambda daemon: fault(daemon[1], tls.get(daemon[1])), daemons)
        faults = [f"{service} at {address}: {text}" for (service, address), text in zip(daemons, found, strict=True) if text]
    if faults:
        raise SecurityError("\n".join(faults))


def _fault_of_plaintext(connection: socket) -> str:
    # Only asks which language is spoken: nothing is sent, and nothing that is read is used.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(connection):
            return _SPEAKS_TLS
    except ssl.SSLError as error:
        return _SPEAKS_TLS if "ALERT" in (error.reason or "") else ""
    except OSError:
        return ""


def _fault_of_tls(connection: socket, host: str, tls: ClientTls, end: float) -> str:
    context = ssl.create_default_context(cafile=tls.ca)
    if tls.pair is not None:
        context.load_cert_chain(*tls.pair)
    context.set_alpn_protocols(["h2"])
    shaken = False
    try:
        with context.wrap_socket(connection, server_hostname=host) as wrapped:
            shaken = True
            # A server tells only now, in TLS 1.3, what it thinks of our certificate; one that takes it begins HTTP/2 by itself.
            wrapped.settimeout(max(end - time.monotonic(), 0.1))
            return "" if wrapped.recv(1) else _of_client(tls)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _HOST:
            return f"its certificate is not for {host!r} ({error.verify_message}); call it by a name in it, or have one made for this name"
        return _VERIFY.get(error.verify_code, f"its certificate is refused: {error.verify_message}; see docs/security.md")
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            return _of_client(tls)
        return _of_client(tls) if shaken else PLAINTEXT
    except TimeoutError:
        return ""
    except OSError:
        return _of_client(tls) if shaken else ""


def _of_client(tls: ClientTls) -> str:
    return _MISSING if tls.pair is None else _REFUSED
