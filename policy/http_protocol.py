"""Wire format of observations and actions: .npz files of plain arrays, which any language can write. Nothing
is pickled.

The body of POST /act (`policy/http_server.py`) holds B observations (`policy.interface.Observation`):
    images/CAMERA   (B, H, W, 3) uint8, one array per camera of the contract
    proprio         (B, P) float32, finite
    noise_seeds     (B,) int64, not negative
    instructions    uint8: the UTF-8 bytes of a JSON list of B sentences
and for a policy that states needs (`policy.interface.PolicyNeeds`; the server's GET /contract says so)
    episodes        uint8: the UTF-8 bytes of a JSON list of B different session ids
    steps           (B,) int64, not negative: control steps since the reset
and for one that takes N > 1 observations at once, with the N - 1 preceding ones, oldest first
    history/images/CAMERA   (B, N - 1, H, W, 3) uint8, one array per camera of the contract
    history/proprio         (B, N - 1, P) float32, finite
The answer holds B chunks (`policy.interface.ActionChunk`):
    actions         (B, T, A) float32, finite
    execute         (B,) int64, each between 1 and T
An .npz is a zip of .npy files, as numpy.savez writes it; compressed (deflate) files are read too. B is at
most MOST_OBSERVATIONS and T at most `policy.interface.MOST_STEPS`, so the contract bounds the size of every
body.
"""

import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from policy.errors import DemoscaleError
from policy.interface import MOST_STEPS, PRESENT_ONLY, ActionChunk, Contract, Observation, PolicyNeeds
from policy.untrusted import clean_text, printable, read_json

MOST_BYTES = 1 << 30
"""Size limit of a body in bytes, packed or unpacked, under any contract."""
MOST_OBSERVATIONS = 256
"""Maximum number of observations in one request."""
SENTENCE_BYTES = 4096
"""Size limit of one instruction in bytes, as JSON; the sentences of a request share it on average."""
MOST_SESSION_NAME = 256
"""Maximum characters of a session's id."""
SESSION_BYTES = 6 * MOST_SESSION_NAME + 8
"""Size limit of one session's id in bytes, as JSON, and of a step; the ids of a request share it on
average.
"""
SPARE_BYTES = 1 << 16
"""Bytes allowed for the headers of a zip file and its arrays."""
MOST_MEMBERS = 1024
_MEMBER = b"PK\x01\x02"  # begins each entry of a zip file's table of contents

_READ_MAGIC: Any = np.lib.format.read_magic
_READ_HEADER: Any = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

Arrays = dict[str, npt.NDArray[Any]]


class RemoteError(DemoscaleError):
    """Failure between the caller and a remote policy; the message is one sentence with the cause."""


class Announced(NamedTuple):
    """Header of an array, known before its values are read."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    """Whether the values are in Fortran (column-major) order."""


def pack(arrays: Arrays) -> bytes:
    """Return the arrays as the bytes of an .npz."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def request_bytes(contract: Contract, most_bytes: int = MOST_BYTES, needs: PolicyNeeds = PRESENT_ONLY) -> int:
    """Return the size in bytes of the largest body of POST /act that a contract and needs allow."""
    seen = len(contract.cameras) * math.prod(contract.image_size) * 3 + 8 * len(contract.proprio)
    session = SESSION_BYTES if needs != PRESENT_ONLY else 0
    return min(
        most_bytes,
        MOST_OBSERVATIONS * (needs.observation_steps * seen + 8 + SENTENCE_BYTES + session)
        + SPARE_BYTES
        + 2 * _names_bytes(contract),
    )


def answer_bytes(contract: Contract, many: int, most_bytes: int = MOST_BYTES) -> int:
    """Return the size in bytes of the largest answer to `many` observations that a contract allows."""
    return min(most_bytes, many * (8 * MOST_STEPS * len(contract.action) + 8) + SPARE_BYTES)


def _names_bytes(contract: Contract) -> int:
    return sum(2 * len(camera.encode()) + 512 for camera in contract.cameras)


def _accept(announced: Mapping[str, Announced]) -> None:
    """Accept any plain arrays."""


def unpack(
    body: bytes, most_bytes: int = MOST_BYTES, accept: Callable[[Mapping[str, Announced]], None] = _accept
) -> Arrays:
    """Return the arrays of an .npz.

    Raises RemoteError if the body is no .npz, unpacks to more than `most_bytes`, or holds anything but plain
    values. accept: raises RemoteError for unexpected names, types or shapes; called before any values are
    read and take memory.
    """
    # zipfile allocates an object per member on opening, so count the members first: each has this signature
    # in the central directory.
    if (members := body.count(_MEMBER)) > MOST_MEMBERS:
        raise RemoteError(
            f"the body is not an .npz of plain arrays: it has about {members} members; at most {MOST_MEMBERS}"
            " are allowed"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            infos = _members(archive)
            if sum(info.file_size for info in infos.values()) > most_bytes:
                raise RemoteError(f"the arrays are larger than {most_bytes} bytes")
            headers = {name: _header(archive, info) for name, info in infos.items()}
            accept({name: announced for name, (announced, _) in headers.items()})
            return {name: _values(archive, infos[name], *headers[name]) for name in infos}
    except RemoteError:
        raise
    except Exception as error:  # zipfile and numpy raise many types for a hostile body
        raise RemoteError(f"the body is not an .npz of plain arrays: {one_line(error)}") from None


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name == info.filename:
            raise ValueError(f"its member {printable(repr(name), 80)} is no .npy file")
        if name in infos:
            raise ValueError(f"it has two members named {printable(repr(name), 80)}")
        # other methods may need gigabytes to unpack a byte
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"its member {printable(repr(name), 80)} is compressed by another method than deflate"
            )
        infos[name] = info
    return infos


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[Announced, int]:
    """Return the array header of a member, and the number of bytes before its values."""
    with archive.open(info) as member:
        version = _READ_MAGIC(member)
        if version not in _READ_HEADER:
            raise ValueError(
                f"{printable(info.filename, 80)} is of .npy version {version}; write version (1, 0) or (2, 0)"
            )
        shape, fortran, dtype = _READ_HEADER[version](member)
        before = member.tell()
    if dtype.hasobject:
        raise ValueError(
            f"{printable(info.filename, 80)} holds Python objects, which are not read (allow_pickle=False)"
        )
    if dtype.kind not in "biuf":
        raise ValueError(
            f"{printable(info.filename, 80)} is of type {printable(str(dtype), 40)}; only numbers are read"
        )
    if min(shape, default=0) < 0 or before + math.prod(shape) * dtype.itemsize != info.file_size:
        raise ValueError(
            f"{printable(info.filename, 80)} announces {printable(str(shape), 80)} {dtype}, which is not the"
            " size of its values"
        )
    return Announced(dtype, tuple(shape), fortran), before


def _values(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, announced: Announced, before: int
) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = np.empty(math.prod(announced.shape), announced.dtype)
    with archive.open(info) as member:
        member.read(before)
        filled, view = 0, values.view(np.uint8)
        while filled < len(view) and (some := member.read(min(1 << 18, len(view) - filled))):
            view[filled : filled + len(some)] = np.frombuffer(some, np.uint8)
            filled += len(some)
        if filled < len(view) or member.read(1):  # the last read also makes zipfile verify the checksum
            raise ValueError(f"{printable(info.filename, 80)} ends early")
    return values.reshape(announced.shape, order="F" if announced.fortran else "C")


def pack_observations(
    observations: Sequence[Observation], cameras: Sequence[str], needs: PolicyNeeds = PRESENT_ONLY
) -> bytes:
    """Return the body of POST /act for a policy with these needs.

    Raises RemoteError if a camera is missing, shapes differ, or a history is not as long as the policy needs.
    """
    preceding = needs.observation_steps - 1
    for seen in observations:
        if preceding and len(seen.history) != preceding:
            raise RemoteError(
                f"these observations cannot be sent: one has a history of {len(seen.history)} observations,"
                f" and the policy takes {preceding}"
            )
    try:
        arrays: Arrays = {f"images/{camera}": _stacked(observations, camera) for camera in cameras}
        arrays["proprio"] = np.stack([o.proprio for o in observations])
        if preceding:
            for camera in cameras:
                arrays[f"history/images/{camera}"] = np.stack(
                    [_stacked(o.history, camera) for o in observations]
                )
            arrays["history/proprio"] = np.stack(
                [np.stack([seen.proprio for seen in o.history]) for o in observations]
            )
    except (KeyError, ValueError) as error:
        raise RemoteError(f"these observations cannot be sent: {one_line(error)}") from None
    arrays["noise_seeds"] = np.array([o.noise_seed for o in observations], np.int64)
    arrays["instructions"] = _json_bytes([o.instruction for o in observations])
    if needs != PRESENT_ONLY:
        arrays["episodes"] = _json_bytes([o.episode for o in observations])
        arrays["steps"] = np.array([o.step for o in observations], np.int64)
    return pack(arrays)


def _stacked(observations: Sequence[Observation], camera: str) -> npt.NDArray[np.uint8]:
    return np.stack([seen.images[camera] for seen in observations])


def _json_bytes(texts: list[str]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(json.dumps(texts).encode(), np.uint8)


def unpack_observations(
    body: bytes, contract: Contract, most_bytes: int = MOST_BYTES, needs: PolicyNeeds = PRESENT_ONLY
) -> list[Observation]:
    """Return the observations in the body of POST /act; raise RemoteError if they violate the contract or the
    needs, or unpack to more than `most_bytes`.
    """
    names = {f"images/{camera}": camera for camera in contract.cameras}
    preceding = needs.observation_steps - 1
    wanted = {*names, "proprio", "noise_seeds", "instructions"}
    if needs != PRESENT_ONLY:
        wanted |= {"episodes", "steps"}
    if preceding:
        wanted |= {f"history/{name}" for name in (*names, "proprio")}

    def accept(announced: Mapping[str, Announced]) -> None:
        if announced.keys() != wanted:
            raise RemoteError(
                f"the arrays sent are {_listed(announced)}; the policy takes {', '.join(sorted(wanted))}"
            )
        many = _length(announced["noise_seeds"])
        if not many:
            raise RemoteError(
                "noise_seeds must have one number per observation, and there must be at least one"
            )
        if many > MOST_OBSERVATIONS:
            raise RemoteError(
                f"the request holds {many} observations; send at most {MOST_OBSERVATIONS} at once"
            )
        for prefix, leading in {"": (many,), "history/": (many, preceding)}.items():
            if not prefix or preceding:
                for name in names:
                    shape = (*leading, *contract.image_size, 3)
                    _check(f"{prefix}{name}", announced[f"{prefix}{name}"], np.uint8, shape)
                shape = (*leading, len(contract.proprio))
                _check(f"{prefix}proprio", announced[f"{prefix}proprio"], np.floating, shape)
        for name in ("noise_seeds", "steps"):
            if name in wanted:
                _check(name, announced[name], np.integer, (many,))
        for name, each in {"instructions": SENTENCE_BYTES, "episodes": SESSION_BYTES}.items():
            if name in wanted and _bytes(announced[name]) > many * each:
                raise RemoteError(f"{_wanted_texts(name, many)}, at most {many * each} bytes in all")

    arrays = unpack(body, request_bytes(contract, most_bytes, needs), accept)
    many = len(arrays["noise_seeds"])
    sentences = _texts("instructions", arrays, many)
    seeds = _not_negative("noise_seeds", arrays)
    proprio = _finite("proprio", arrays)
    episodes, steps = [""] * many, [0] * many
    if needs != PRESENT_ONLY:
        episodes, steps = _sessions(arrays, many), _not_negative("steps", arrays)
    past = _finite("history/proprio", arrays) if preceding else None

    def history(i: int) -> tuple[Observation, ...]:
        if past is None:
            return ()
        return tuple(
            Observation(
                {camera: arrays[f"history/{name}"][i, k] for name, camera in names.items()},
                past[i, k],
                sentences[i],
                seeds[i],
                episodes[i],
                max(0, steps[i] - preceding + k),
            )
            for k in range(preceding)
        )

    return [
        Observation(
            {camera: arrays[name][i] for name, camera in names.items()},
            proprio[i],
            sentences[i],
            seeds[i],
            episodes[i],
            steps[i],
            history(i),
        )
        for i in range(many)
    ]


def _bytes(announced: Announced) -> int:
    return math.prod(announced.shape) * announced.dtype.itemsize


def _not_negative(name: str, arrays: Arrays) -> list[int]:
    numbers: list[int] = arrays[name].tolist()
    if not all(0 <= number < 1 << 63 for number in numbers):
        raise RemoteError(f"{name} holds a number outside 0 to 2^63 - 1")
    return numbers


def _finite(name: str, arrays: Arrays) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        values = arrays[name].astype(np.float32)
    if not np.isfinite(values).all():
        raise RemoteError(f"{name} holds a value that is not finite")
    return values


def _sessions(arrays: Arrays, many: int) -> list[str]:
    episodes = _texts("episodes", arrays, many)
    for i, episode in enumerate(episodes):
        try:
            clean_text(episode, f"episodes[{i}]", MOST_SESSION_NAME)
        except ValueError as error:
            raise RemoteError(str(error)) from None
    if len(set(episodes)) < many:
        twice = next(name for i, name in enumerate(episodes) if name in episodes[:i])
        raise RemoteError(
            f"episodes holds {printable(repr(twice), 80)} twice; a request holds one observation per session"
        )
    return episodes


def _wanted_texts(name: str, many: int) -> str:
    kind = "sentences" if name == "instructions" else "session ids"
    return f"{name} must be the UTF-8 bytes of a JSON list of {many} {kind}"


def _texts(name: str, arrays: Arrays, many: int) -> list[str]:
    wanted, data = _wanted_texts(name, many), arrays[name].tobytes()
    try:
        texts = read_json(data, len(data))
    except ValueError as error:
        raise RemoteError(f"{wanted}: {error}") from None
    if not isinstance(texts, list) or len(texts) != many or not all(isinstance(text, str) for text in texts):
        raise RemoteError(wanted)
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RemoteError(f"{wanted}: one holds half a surrogate pair") from None
    return texts


def pack_chunks(
    chunks: Sequence[ActionChunk], contract: Contract | None = None, many: int | None = None
) -> bytes:
    """Return the answer to POST /act.

    Raises RemoteError if the chunks differ in length, hold a value that is not finite, or do not match the
    contract and `many`.
    """
    if many is not None and len(chunks) != many:
        raise RemoteError(f"the policy answered {many} observations with {len(chunks)} chunks")
    if len({chunk.actions.shape for chunk in chunks}) > 1:
        raise RemoteError("the policy's chunks are not equally long, so they cannot be sent in one answer")
    with np.errstate(over="ignore"):
        actions = np.stack([chunk.actions for chunk in chunks]).astype(np.float32)
    execute = np.array([chunk.execute for chunk in chunks], np.int64)
    if contract is not None:
        shape = (len(chunks), actions.shape[1] if actions.ndim > 1 else 0, len(contract.action))
        _check("actions", Announced(actions.dtype, actions.shape, False), np.floating, shape)
    _check_chunks(actions, execute)
    return pack({"actions": actions, "execute": execute})


def unpack_chunks(body: bytes, many: int, contract: Contract) -> list[ActionChunk]:
    """Return the chunks of an answer to `many` observations; raise RemoteError if they do not match the
    contract and `many`.
    """

    def accept(announced: Mapping[str, Announced]) -> None:
        if not {"actions", "execute"} <= announced.keys():
            raise RemoteError(
                f"the answer has the arrays {_listed(announced)}; it must have actions and execute"
            )
        steps = announced["actions"].shape[1] if len(announced["actions"].shape) > 1 else 0
        _check("actions", announced["actions"], np.floating, (many, steps, len(contract.action)))
        _check("execute", announced["execute"], np.integer, (many,))
        if not 1 <= steps <= MOST_STEPS:
            raise RemoteError(f"a chunk has {steps} steps; it must have between 1 and {MOST_STEPS}")

    arrays = unpack(body, answer_bytes(contract, many), accept)
    with np.errstate(over="ignore"):
        actions = arrays["actions"].astype(np.float32)
    _check_chunks(actions, arrays["execute"])
    return [
        ActionChunk(chunk, int(execute)) for chunk, execute in zip(actions, arrays["execute"], strict=True)
    ]


def _check_chunks(actions_BTA: npt.NDArray[np.float32], execute_B: npt.NDArray[Any]) -> None:
    steps = actions_BTA.shape[1] if actions_BTA.ndim > 1 else 0
    if not (np.all(execute_B >= 1) and np.all(execute_B <= steps)):
        raise RemoteError(f"execute must lie between 1 and the {steps} steps of a chunk")
    if not np.isfinite(actions_BTA).all():
        chunk, step, dimension = np.argwhere(~np.isfinite(actions_BTA))[0].tolist()
        value = actions_BTA[chunk, step, dimension]
        raise RemoteError(
            f"actions holds {value} in chunk {chunk}, step {step}, dimension {dimension}; every action must"
            " be finite"
        )


def _length(announced: Announced) -> int:
    return announced.shape[0] if announced.shape else 0


def _listed(names: Mapping[str, Any]) -> str:
    shown = [printable(name, 60) for name in sorted(names)[:12]]
    return (", ".join(shown) or "none") + (
        f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    )


def _check(name: str, announced: Announced, kind: type[Any], shape: tuple[int, ...]) -> None:
    if not np.issubdtype(announced.dtype, kind) or announced.shape != shape:
        raise RemoteError(
            f"{name} is {announced.dtype} {printable(str(announced.shape), 120)}, and must be {kind.__name__}"
            f" {shape}"
        )


def one_line(error: BaseException) -> str:
    """Return the type of an error and the last line of its message, safe to print."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {printable(lines[-1])}" if lines else type(error).__name__


def checked_contract(data: Any) -> Contract:
    """Return the contract of a policy that acts: as `Contract.from_json`, with at least one action dimension.

    Raises ValueError or TypeError, with one sentence, for anything else.
    """
    contract = Contract.from_json(data)
    if not contract.action:
        raise ValueError("action is empty; the contract of a policy names at least one action dimension")
    return contract


def contract_json(contract: Contract, needs: PolicyNeeds) -> dict[str, Any]:
    """Return the answer to GET /contract: the fields of the contract, and `needs` if the policy has any."""
    return contract.to_json() | ({"needs": asdict(needs)} if needs != PRESENT_ONLY else {})


def checked_needs(data: Any) -> PolicyNeeds:
    """Return the needs in the answer to GET /contract; none if it does not name any.

    Raises ValueError, with one sentence, if they are not valid or this version does not know one.
    """
    needs = data.get("needs", {}) if isinstance(data, dict) else {}
    if not isinstance(needs, dict):
        raise ValueError(f"needs must be an object, not {printable(repr(needs), 40)}")
    known = [field.name for field in fields(PolicyNeeds)]
    if unknown := [name for name in needs if name not in known]:
        raise ValueError(
            f"needs holds {printable(repr(unknown[0]), 60)}, which this version does not know; known are"
            f" {', '.join(known)}"
        )
    return PolicyNeeds(**needs)
