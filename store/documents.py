"""Documents as bytes: JSON beside its own digest, so that alteration shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from repsearch.errors import NumericalError, StoreError

INDENTED = 10_000
"""Characters of content up to which a document is indented for people: that takes Python's own encoder, a millisecond for as many."""


def encode(path: str, document: Mapping[str, Any], *, compact: bool = False) -> tuple[bytes, str]:
    """Return the bytes of `document` and the hex SHA-256 of its content; `path` is for the messages.

    compact: on one line, as large documents are in any case.


    Raises `NumericalError` for a number that is not finite and `StoreError` for a value that is not JSON.
    """
    try:
        content = json.dumps(document, separators=(",", ":"), allow_nan=False, default=_plain)
    except ValueError as error:
        raise NumericalError(f"{path}: holds a number that is not finite ({error})") from None
    except TypeError as error:
        raise StoreError(f"{path}: holds a value that JSON cannot ({error})") from None
    digest = hashlib.sha256(content.encode()).hexdigest()
    if compact or len(content) > INDENTED:
        return f'{{"sha256":"{digest}","document":{content}}}\n'.encode(), digest
    text = json.dumps({"sha256": digest, "document": json.loads(content)}, indent=1)
    return (text + "\n").encode(), digest


def decode(path: str, data: bytes) -> dict[str, Any]:
    """Return the document that `data` holds; raises `StoreError` naming `path` if it is not whole and unaltered."""
    try:
        parsed = json.loads(data)
        document, digest = parsed["document"], parsed["sha256"]
        content = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        raise StoreError(f"{path}: is not a whole document; restore it from a copy") from None
    if not isinstance(document, dict) or hashlib.sha256(content).hexdigest() != digest:
        raise StoreError(f"{path}: is not what was written (its digest differs); restore it from a copy")
    return document


def require_schema(path: str, document: Mapping[str, Any], schema: int) -> None:
    """Raise `StoreError` unless the document at `path` is of version `schema` of its form."""
    found = document.get("schema")
    if found != schema:
        raise StoreError(f"{path}: has schema {found!r}, this version reads {schema}; use the version that wrote the run")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} {value!r}")
