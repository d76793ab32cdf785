"""How observations and actions travel: .npz files of plain arrays, which any language can write. Nothing is pickled.

Of B observations (`policy.interface.Observation`), the body of POST /act (`policy/remote.py`):
    images/CAMERA   (B, H, W, 3) uint8, one array per camera of the contract
    proprio         (B, P) float32
    noise_seeds     (B,) int64
    instructions    uint8: the UTF-8 bytes of a JSON list of B sentences
Of the B chunks that answer them (`policy.interface.ActionChunk`):
    actions         (B, T, A) float32
    execute         (B,) int64, each between 1 and T
An .npz is a zip of .npy files, as numpy.savez writes it; compressed ones are read too.
"""

import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from policy.interface import ActionChunk, Contract, Observation

MOST_BYTES = 1 << 30
"""Size limit of a body in bytes, packed or unpacked."""

Arrays = dict[str, npt.NDArray[Any]]


class RemoteError(Exception):
    """One sentence: what is wrong between here and the policy at the other end."""


def pack(arrays: Arrays) -> bytes:
    """As an .npz."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def unpack(body: bytes, most_bytes: int = MOST_BYTES) -> Arrays:
    """Return the arrays of an .npz; RemoteError if it is none, unpacks to more than `most_bytes`, or holds anything but plain values."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size <= most_bytes:
            with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # whatever a hostile body makes zipfile and numpy raise
        raise RemoteError(f"the body is not an .npz of plain arrays: {one_line(error)}") from None
    raise RemoteError(f"the arrays are larger than {most_bytes} bytes")


def pack_observations(observations: Sequence[Observation], cameras: Sequence[str]) -> bytes:
    """The body of POST /act."""
    try:
        pictures = {f"images/{camera}": np.stack([o.images[camera] for o in observations]) for camera in cameras}
        proprio = np.stack([o.proprio for o in observations])
    except (KeyError, ValueError) as error:
        raise RemoteError(f"these observations cannot be sent: {one_line(error)}") from None
    seeds = np.array([o.noise_seed for o in observations], np.int64)
    sentences = np.frombuffer(json.dumps([o.instruction for o in observations]).encode(), np.uint8)
    return pack({**pictures, "proprio": proprio, "noise_seeds": seeds, "instructions": sentences})


def unpack_observations(body: bytes, contract: Contract, most_bytes: int = MOST_BYTES) -> list[Observation]:
    """Return the observations in the body of POST /act; RemoteError if they do not match the contract, or unpack to more than `most_bytes`."""
    arrays = unpack(body, most_bytes)
    names = {f"images/{camera}": camera for camera in contract.cameras}
    wanted = {*names, "proprio", "noise_seeds", "instructions"}
    if arrays.keys() != wanted:
        raise RemoteError(f"the arrays sent are {', '.join(sorted(arrays)) or 'none'}; the policy takes {', '.join(sorted(wanted))}")
    many = len(arrays["noise_seeds"]) if arrays["noise_seeds"].ndim else 0
    if not many:
        raise RemoteError("noise_seeds must have one number per observation, and there must be at least one")
    for name in names:
        _check(name, arrays[name], np.uint8, (many, *contract.image_size, 3))
    _check("proprio", arrays["proprio"], np.floating, (many, len(contract.proprio)))
    _check("noise_seeds", arrays["noise_seeds"], np.integer, (many,))
    try:
        sentences = json.loads(arrays["instructions"].tobytes())
    except (ValueError, RecursionError):
        sentences = None
    if not isinstance(sentences, list) or len(sentences) != many or not all(isinstance(sentence, str) for sentence in sentences):
        raise RemoteError(f"instructions must be the UTF-8 bytes of a JSON list of {many} sentences")
    proprio = arrays["proprio"].astype(np.float32)
    return [
        Observation({camera: arrays[name][i] for name, camera in names.items()}, proprio[i], sentences[i], int(arrays["noise_seeds"][i]))
        for i in range(many)
    ]


def pack_chunks(chunks: Sequence[ActionChunk]) -> bytes:
    """The answer to POST /act; one answer's chunks must be equally long."""
    if len({chunk.actions.shape for chunk in chunks}) > 1:
        raise RemoteError("the policy's chunks are not equally long, so they cannot be sent in one answer")
    actions = np.stack([chunk.actions for chunk in chunks]).astype(np.float32)
    return pack({"actions": actions, "execute": np.array([chunk.execute for chunk in chunks], np.int64)})


def unpack_chunks(body: bytes, many: int, contract: Contract) -> list[ActionChunk]:
    """What came back for `many` observations; RemoteError if it is not what was asked for."""
    arrays = unpack(body)
    if not {"actions", "execute"} <= arrays.keys():
        raise RemoteError(f"the answer has the arrays {', '.join(sorted(arrays)) or 'none'}; it must have actions and execute")
    steps = arrays["actions"].shape[1] if arrays["actions"].ndim > 1 else 0
    _check("actions", arrays["actions"], np.floating, (many, steps, len(contract.action)))
    _check("execute", arrays["execute"], np.integer, (many,))
    if not (np.all(arrays["execute"] >= 1) and np.all(arrays["execute"] <= steps)):
        raise RemoteError(f"execute must lie between 1 and the {steps} steps of a chunk")
    actions = arrays["actions"].astype(np.float32)
    return [ActionChunk(chunk, int(execute)) for chunk, execute in zip(actions, arrays["execute"], strict=True)]


def _check(name: str, array: npt.NDArray[Any], kind: type[Any], shape: tuple[int, ...]) -> None:
    if not np.issubdtype(array.dtype, kind) or array.shape != shape:
        raise RemoteError(f"{name} is {array.dtype} {array.shape}, and must be {kind.__name__} {shape}")


def one_line(error: BaseException) -> str:
    """What kind of error, and the last line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1][:500]}" if lines else type(error).__name__
