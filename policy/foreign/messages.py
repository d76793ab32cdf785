"""Messages of foreign protocols: msgpack with arrays in objects that are marked as such."""

import io
import math
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from policy.http_protocol import RemoteError, one_line
from policy.interface import MOST_STEPS, Contract

SPARE_BYTES = 1 << 20
"""Bytes allowed in an answer in addition to its actions."""

Encode = Callable[[npt.NDArray[Any]], dict[Any, Any]]
Decode = Callable[[dict[Any, Any]], Any]


def answer_bytes(contract: Contract, many: int = 1) -> int:
    """Return the size limit, in bytes, of an answer to `many` observations."""
    return many * 8 * MOST_STEPS * len(contract.action) + SPARE_BYTES


def pack(message: Any, encode: Encode) -> bytes:
    """Return a message as msgpack; `encode` turns an array into what the protocol sends."""

    def default(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return encode(value)
        raise TypeError(f"a {type(value).__name__} cannot be sent")

    packed: bytes = msgpack.packb(message, default=default)
    return packed


def unpack(data: bytes, decode: Decode, most_bytes: int, where: str) -> Any:
    """Return a message; `decode` turns an object that is an array into one, and leaves others alone.

    Raises RemoteError, which names the server as `where`, if the message is too large or not valid.
    """
    if len(data) > most_bytes:
        raise RemoteError(f"{where} answered with more than {most_bytes} bytes")
    try:
        return msgpack.unpackb(
            data, object_hook=decode, strict_map_key=False, max_ext_len=0, max_array_len=1 << 16
        )
    except Exception as error:  # msgpack and numpy raise many types for a hostile message
        raise RemoteError(f"{where} sent no valid message ({one_line(error)})") from None


def plain_array(data: Any, dtype: Any, shape: Any) -> npt.NDArray[Any]:
    """Return the array of plain numbers with these bytes. Raises ValueError or TypeError if it is none."""
    kind = np.dtype(str(dtype))
    sizes = tuple(int(side) for side in shape)
    if kind.kind not in "biuf" or min(sizes, default=0) < 0:
        raise ValueError(f"an array of {kind} {sizes}")
    if len(data) != math.prod(sizes) * kind.itemsize:
        raise ValueError(f"an array of {kind} {sizes} with {len(data)} bytes")
    return np.frombuffer(data, kind).reshape(sizes)


def npy_array(data: bytes) -> npt.NDArray[Any]:
    """Return the array of plain numbers in a .npy file. Raises ValueError if it is none."""
    values: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"an array of {values.dtype}")
    return values


def npy_bytes(values: npt.NDArray[Any]) -> bytes:
    """Return an array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()
