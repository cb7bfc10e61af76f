"""How large a request may be: its message, its texts, its lists, its numbers, and the nesting of the configuration in it.

Checked before anything of a request is used, so that no caller makes a daemon hold, print or parse more than it can.
"""

from __future__ import annotations

import json
import re
from typing import Any

from google.protobuf.message import Message

from repsearch.serving.refusals import BadRequest

MESSAGE_BYTES = 4 * 1024 * 1024
"""Of a whole message; a list of 40,000 references fits."""
TEXT_LENGTH = 1024
"""Of an identifier, a path or a digest."""
CONFIG_LENGTH = 1024 * 1024
CONFIG_DEPTH = 32
"""Tables and lists inside one another; configurations have some six."""
LIST_LENGTH = 65_536
COUNTS = {"first": 2**40, "count": 2**31, "epochs": 10**6, "round": 10**9, "shard": 10**9, "attempt": 10**6}
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"')
_BRACKET = re.compile(r"[\[\]{}]")


def check_size(message: Message) -> None:
    """Refuse a message with a text, list or number beyond the limits."""
    for field, value in message.ListFields():
        name = field.name
        if name == "config_json":
            _check_config(value)
            continue
        values: Any = value if field.is_repeated else (value,)
        if len(values) > LIST_LENGTH:
            raise BadRequest(f"{name} has {len(values)} entries; at most {LIST_LENGTH} are taken: make shards larger")
        for each in values:
            if isinstance(each, Message):
                check_size(each)
            elif isinstance(each, str):
                _check_text(name, each)
            elif each > COUNTS.get(name, each):
                raise BadRequest(f"{name} is {each}; at most {COUNTS[name]} is taken")


def _check_text(name: str, text: str) -> None:
    if len(text) > TEXT_LENGTH:
        raise BadRequest(f"{name} has {len(text)} characters; at most {TEXT_LENGTH} are taken")
    if not text.isprintable():
        raise BadRequest(f"{name} {text[:80]!r} has characters that cannot be printed")


def _check_config(text: str) -> None:
    if len(text) > CONFIG_LENGTH:
        raise BadRequest(f"config_json has {len(text)} characters; at most {CONFIG_LENGTH} are taken")
    depth = deepest = 0
    for match in _BRACKET.finditer(_STRING.sub('""', text)):
        depth += 1 if match[0] in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > CONFIG_DEPTH:
        raise BadRequest(f"config_json is nested {deepest} deep; at most {CONFIG_DEPTH} is taken")
    try:
        json.loads(text or "{}")
    except ValueError as error:
        raise BadRequest(f"config_json is not JSON: {error}") from None
