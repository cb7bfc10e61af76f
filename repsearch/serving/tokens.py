"""Calls without the token are refused before anything of them is read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import grpc

from repsearch.serving.protection import same_token

HEADER = "authorization"
SCHEME = "Bearer "
TELL_S = 60.0
log = logging.getLogger("daemon")


class TokenInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """Lets calls through that carry the token, of every service, health and reflection included."""

    def __init__(self, token: str) -> None:
        self._expected = SCHEME + token
        self._told = -TELL_S

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        given = [str(value) for key, value in details.invocation_metadata if key == HEADER]
        if any(same_token(self._expected, value) for value in given):
            return continuation(details)
        if (now := time.monotonic()) - self._told >= TELL_S:
            self._told = now
            log.warning(
                "refused a call %s; further ones within %g s are not logged", "with a wrong token" if given else "without a token", TELL_S
            )
        return REFUSE_WRONG if given else REFUSE_MISSING


def _refusal(text: str) -> Any:
    def refuse(requests: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, text)

    # As a stream, whatever the call is: one that takes a message would first wait for it, for as long as the caller likes.
    return grpc.stream_stream_rpc_method_handler(refuse)


REFUSE_WRONG = _refusal("the token is not this daemon's")
REFUSE_MISSING = _refusal("this daemon wants a token")
