"""Why a call is refused, without a word of gRPC; `servicer` gives each its status code."""

from __future__ import annotations


class Refusal(Exception):  # noqa: N818 (the call is answered, nothing is broken)
    """A call that is answered with a reason instead of a result."""


class BadRequest(Refusal):
    """The request cannot be understood or does not fit this service."""


class OutsideRoot(Refusal):
    """The request names a path outside the daemon's store root."""


class StaleTerm(Refusal):
    """A higher term of the run was seen: another orchestrator has taken over."""


class QueueFull(Refusal):
    """As many jobs as the daemon keeps are waiting."""


class RequestReused(Refusal):
    """The request_id was used for a different request of the same run and term."""


class UnknownJob(Refusal):
    """No such job: another incarnation's, or forgotten."""


class OutOfRange(Refusal):
    """The sequence to watch from was never reached."""


class Draining(Refusal):
    """The daemon takes no more jobs."""


class TooManyStreams(Refusal):
    """As many streams as the daemon serves are open."""
