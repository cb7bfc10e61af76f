"""Errors a user can act on: each says what was wrong, where, and the way out; each kind has an exit code.

Exit codes (documented in docs/errors.md): 0 success, 1 unexpected, 2 usage or configuration, 3 dataset, 4 store or run directory,
5 daemon (unreachable, wrong service, version or data), 6 job failed or no searcher left, 7 non-finite number, 8 daemon and orchestrator
do not trust one another, 9 stopped on request, 130 interrupted.
"""

from __future__ import annotations


class RepSearchError(Exception):
    """Base of every error that is reported to the user as one message, without a traceback."""

    exit_code = 1


class ConfigError(RepSearchError):
    """A configuration value is missing, unknown, out of range or inconsistent with another."""

    exit_code = 2


class DatasetError(RepSearchError):
    """A dataset is missing, empty, too small or unreadable."""

    exit_code = 3


class StoreError(RepSearchError):
    """A store or run directory cannot be used, or what it holds is missing, truncated or altered."""

    exit_code = 4


class DaemonError(RepSearchError):
    """A daemon cannot be reached, started or used for this run."""

    exit_code = 5


class JobError(RepSearchError):
    """A job failed on a daemon, or no daemon is left to run it."""

    exit_code = 6


class NumericalError(RepSearchError):
    """A fitness, loss or representation is not finite."""

    exit_code = 7


class SecurityError(DaemonError):
    """A daemon and its client do not trust one another: certificate, token, or TLS on one side alone. Trying again changes nothing."""

    exit_code = 8


class StoppedError(RepSearchError):
    """The run was asked to stop: not a fault, but it is not finished."""

    exit_code = 9


KINDS: dict[str, type[RepSearchError]] = {
    kind.__name__: kind for kind in (ConfigError, DatasetError, StoreError, DaemonError, JobError, NumericalError, SecurityError)
}


def from_kind(kind: str, message: str) -> RepSearchError:
    """Return the error of class name `kind` (as carried in RPC messages); unknown kinds become `JobError`."""
    return KINDS.get(kind, JobError)(message)
