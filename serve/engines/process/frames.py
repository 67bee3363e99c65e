"""Messages as bytes: msgpack with a length in front. Only data comes out of them, of the types that are named."""

from __future__ import annotations

import struct
from typing import Any, Generic, TypeVar

import msgspec

LENGTH = struct.Struct(">I")
LONGEST = 2**28  # bytes of a message

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()


def frame(message: Any) -> bytes:
    """A message on its way.

    Raises:
        ValueError: it holds what no message can: a number or a text out of range, or it is too large.
    """
    data = bytearray(LENGTH.size)
    LENGTH.pack_into(data, 0, _write(message, data))
    return bytes(data)


def packed(message: Any) -> bytes:
    """A message for what keeps messages apart by itself; no length in front.

    Raises:
        ValueError: as `frame`.
    """
    data = bytearray()
    _write(message, data)
    return bytes(data)


def _write(message: Any, data: bytearray) -> int:
    """Put a message behind the data: its bytes."""
    start = len(data)
    try:
        _encoder.encode_into(message, data, start)
    except OverflowError:
        raise ValueError("a number in the request is outside of 64 bits") from None
    except UnicodeEncodeError as error:
        where = f"see its character {error.start + 1}"
        raise ValueError(f"a text in the request is not valid Unicode: {where}") from None
    except RecursionError:
        raise ValueError("the request is nested too deeply") from None
    size = len(data) - start
    if size > LONGEST:
        raise ValueError(f"the request has {size} bytes, at most {LONGEST} are possible")
    return size


class FrameReader(Generic[T]):
    """Makes messages of the bytes that come in.

    Args:
        kinds: the types of messages that may come.
    """

    def __init__(self, kinds: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kinds)
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """The messages that are whole now.

        Raises:
            ValueError: the bytes are no such messages.
        """
        self._rest += data
        found, start, end = [], 0, len(self._rest)
        with memoryview(self._rest) as view:
            while end - start >= LENGTH.size:
                (size,) = LENGTH.unpack_from(view, start)
                if size > LONGEST:
                    raise ValueError(f"a message of {size} bytes: at most {LONGEST} are possible")
                first = start + LENGTH.size
                if end - first < size:
                    break
                with view[first : first + size] as part:
                    found.append(self._decoder.decode(part))
                start = first + size
        del self._rest[:start]
        return found
