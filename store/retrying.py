"""Requests to an object store: tried again while a fault may pass, refused with its reason and the way out when it will not.

obstore's own retries are off: they do not say whether a request that failed may have been carried out, which decides who created a file.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import TypeVar

from store.patience import Patience

T = TypeVar("T")

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]+)</Message>")
_REGION = re.compile(r"<Region>([\w-]+)</Region>")
_PASSING_STATUS = (408, 409, 429, 500, 502, 503, 504)
_PASSING_CODES = ("RequestTimeout", "SlowDown", "InternalError", "ConditionalRequestConflict", "OperationAborted")
_CREDENTIALS = "give credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or a role to this machine"
_EXPIRED = "renew the credentials, restart the daemons that have the old ones, and resume the run"
_RIGHTS = "allow these credentials s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject there"
_PLACE = "check AWS_ENDPOINT_URL and AWS_REGION"
_HINTS = {
    **dict.fromkeys(("ExpiredToken", "TokenRefreshRequired", "ExpiredTokenException"), _EXPIRED),
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"), "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "RequestTimeTooSkewed": "set the clock of this machine",
    "NoSuchBucket": "make the bucket, or name another",
    "InvalidBucketName": "name another bucket",
    "EntityTooLarge": "choose a smaller store.chunk_mb",
    **dict.fromkeys(("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"), _PLACE),
}


class RemoteError(OSError):
    """A request that an object store refused, or did not answer in time; `hint` is the way out, `passing` whether to try again."""

    def __init__(self, reason: str, hint: str, *, passing: bool = False) -> None:
        super().__init__(errno.EIO, reason)
        self.hint, self.passing = hint, passing


def answered(request: Callable[[], T], patience: Patience) -> T:
    """Return what `request` returns; raises `FileNotFoundError`, `FileExistsError` or `RemoteError`."""
    pauses, tries = patience.pauses(), 1
    while True:
        try:
            return request()
        except Exception as error:
            refusal = explained(error)
            if not isinstance(refusal, RemoteError):
                raise refusal from None
            again = next(pauses, 0) if refusal.passing else 0
            if not again:
                # The whole of what obstore says is in the chain, for a traceback.
                raise _after(refusal, tries) from error
            tries = again


def explained(error: Exception) -> Exception:
    """Return what an error of obstore means; an error of another kind as it is."""
    from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError

    text = str(error)
    code = match[1] if (match := _CODE.search(text)) else ""
    if isinstance(error, AlreadyExistsError):
        return FileExistsError(errno.EEXIST, "the object is there already")
    if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
        return FileNotFoundError(errno.ENOENT, "there is no such object")
    if not isinstance(error, BaseError | FileNotFoundError):
        return error
    if "/latest/api/token" in text or "/latest/meta-data" in text or "InstanceCredential" in text:
        return RemoteError("no credentials: the environment has none, and this machine has no role", _CREDENTIALS)
    status = int(found[1]) if (found := _STATUS.search(text)) else 0
    reason = _reason(text, status, code)
    if code in _HINTS:
        region = _REGION.search(text)
        return RemoteError(reason, f"set AWS_REGION={region[1]}" if region else _HINTS[code])
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in (401, 403):
        return RemoteError(reason, _RIGHTS)
    if "redirect" in text.lower():
        return RemoteError("the bucket is in another region", _PLACE)
    if status in _PASSING_STATUS or code in _PASSING_CODES:
        return RemoteError(reason, "try again when the store answers", passing=True)
    if not status:
        return RemoteError(reason, f"check the network, {_PLACE.removeprefix('check ')}", passing=True)
    return RemoteError(reason, _PLACE)


def _reason(text: str, status: int, code: str) -> str:
    if not status:
        detail = re.search(r"HTTP error: ([^\n]+)", text)
        causes = re.findall(r'(?:message|kind): "?([A-Za-z][\w ]+)"?,', text)
        found = ", ".join(dict.fromkeys([*([detail[1]] if detail else [text.splitlines()[0]]), *causes]))
        return f"no answer ({found})"
    message = f": {match[1]}" if (match := _MESSAGE.search(text)) else ""
    return f"{status} {code}{message}".replace(" :", ":").rstrip()


def _after(refusal: RemoteError, tries: int) -> RemoteError:
    return refusal if tries == 1 else RemoteError(f"{refusal.strerror}, {tries} times", refusal.hint)
