"""Protobuf messages on a stream socket: four bytes of big-endian length, then the message. Nothing is pickled."""

from __future__ import annotations

import socket
import struct
from typing import TypeVar

from google.protobuf.message import Message

MessageT = TypeVar("MessageT", bound=Message)
_LENGTH = struct.Struct(">I")


def send(connection: socket.socket, message: Message) -> None:
    """Write `message` whole; OSError if the other side is gone. Not for concurrent use on one socket."""
    body = message.SerializeToString()
    connection.sendall(_LENGTH.pack(len(body)) + body)


def receive(connection: socket.socket, kind: type[MessageT]) -> MessageT | None:
    """Read the next message of type `kind`, or None when the other side is gone (also in the middle of a message)."""
    head = _read(connection, _LENGTH.size)
    if head is None:
        return None
    body = _read(connection, _LENGTH.unpack(head)[0])
    if body is None:
        return None
    message = kind()
    message.ParseFromString(body)
    return message


def _read(connection: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        try:
            part = connection.recv(count - len(parts))
        except OSError:
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)
