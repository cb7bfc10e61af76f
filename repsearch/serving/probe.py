"""Whether a daemon can run jobs now, by the standard health service: for service managers and containers."""

from __future__ import annotations

import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from repsearch.errors import DaemonError, SecurityError
from repsearch.serving.protection import Secrets
from repsearch.serving.tokens import HEADER, SCHEME

CALL_S = 5.0
PAUSE_S = 0.5


def check_health(address: str, secrets: Secrets, *, wait_s: float) -> None:
    """Return if the daemon at `address` serves, now or within `wait_s`; a DaemonError says why not."""
    give_up_at = time.monotonic() + wait_s
    with _channel(address, secrets) as channel:
        while (fault := _fault(channel, secrets)) is not None:
            if isinstance(fault, SecurityError) or time.monotonic() + PAUSE_S > give_up_at:
                raise type(fault)(f"{address}: {fault}")
            time.sleep(PAUSE_S)


def _fault(channel: grpc.Channel, secrets: Secrets) -> DaemonError | None:
    metadata = [] if secrets.token is None else [(HEADER, SCHEME + secrets.token)]
    try:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=CALL_S, metadata=metadata)
    except grpc.RpcError as error:
        what = f"{error.code().name.lower().replace('_', ' ')}: {error.details()}"
        return SecurityError(what) if error.code() == grpc.StatusCode.UNAUTHENTICATED else DaemonError(what)
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return None
    return DaemonError("it runs, and cannot run jobs now: its compute process is starting, or it is being stopped")


def _channel(address: str, secrets: Secrets) -> grpc.Channel:
    if secrets.ca is None:
        return grpc.insecure_channel(address)
    certificate, key = secrets.pair or (None, None)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(secrets.ca, key, certificate))
