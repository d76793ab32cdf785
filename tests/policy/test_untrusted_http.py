"""Untrusted requests to a policy server, and untrusted answers of one: each refused with a status and one
sentence.
"""

import io
import json
import random
import socket
import struct
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import Any

import numpy as np
import pytest

from fuzzing import mutated, peak, peak_reset
from http_policies import CONTRACT, Digest, Remembering, look, random_observation, same, served
from policy import http_server
from policy.http_policy import RemotePolicy
from policy.http_protocol import (
    MOST_OBSERVATIONS,
    RemoteError,
    pack,
    pack_chunks,
    pack_observations,
    request_bytes,
    unpack_chunks,
)
from policy.interface import ActionChunk, Contract, Observation, needs_of

GOOD = pack_observations([random_observation(0)], CONTRACT.cameras)
ARRAYS = dict(np.load(io.BytesIO(GOOD)))
SESSION = pack_observations([look(0, "a", 0)], CONTRACT.cameras, needs_of(Remembering()))
SESSIONS = pack_observations([look(0, "a", 0), look(1, "b", 0)], CONTRACT.cameras, needs_of(Remembering()))
CARRIED = "Content-Type: application/octet-stream\r\n"


def exchange(url: str, request: bytes, timeout_s: float = 10.0) -> tuple[int, str]:
    """Return status and text of the answer to raw bytes, sent as they are; (0, "") if there is none."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout_s) as connection:
        connection.sendall(request)
        with suppress(OSError):  # the server may have refused the connection by now
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while some := connection.recv(1 << 16):
            answer += some
    if not answer:
        return 0, ""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode(errors="replace")


def text(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def request(body: bytes, headers: str = CARRIED, size: object = None, path: str = "/act") -> bytes:
    length = len(body) if size is None else size
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}Content-Length: {length}\r\n\r\n".encode(
            "latin-1"
        )
        + body
    )


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(Digest()) as url:
        yield url


def test_policy_server_answers_a_valid_request(url: str) -> None:
    assert exchange(url, request(GOOD))[0] == 200
    assert exchange(url, request(GOOD, ""))[0] == 200, "a program that names no Content-Type"


REQUESTS: dict[str, tuple[bytes, int, str]] = {
    "text": (request(GOOD, "Content-Type: text/plain\r\n"), 415, "application/octet-stream"),
    "form": (
        request(GOOD, "Content-Type: application/x-www-form-urlencoded\r\n"),
        415,
        "application/octet-stream",
    ),
    "multipart": (
        request(GOOD, "Content-Type: multipart/form-data; boundary=x\r\n"),
        415,
        "application/octet-stream",
    ),
    "capitals": (
        request(GOOD, "Content-Type: TEXT/PLAIN;charset=utf-8\r\n"),
        415,
        "application/octet-stream",
    ),
    "origin": (request(GOOD, CARRIED + "Origin: https://evil.example\r\n"), 403, "another origin"),
    "origin null": (request(GOOD, CARRIED + "Origin: null\r\n"), 403, "another origin"),
    "another port": (request(GOOD, CARRIED + "Origin: http://127.0.0.1:3000\r\n"), 403, "another origin"),
    "origin, no type": (request(GOOD, "Origin: https://evil.example\r\n"), 403, "another origin"),
    "own origin": (request(GOOD, CARRIED + "Origin: http://127.0.0.1\r\n"), 200, "PK"),
    "superscript": (request(b"", size="²"), 400, "one whole number"),
    "negative": (request(b"", size="-1"), 400, "one whole number"),
    "many digits": (request(b"", size="9" * 5000), 413, "the body is larger than"),
    "too large": (request(b"", size=request_bytes(CONTRACT) + 1), 413, "the body is larger than"),
    "two lengths": (request(GOOD, CARRIED + "Content-Length: 3\r\n"), 400, "one whole number"),
    "chunked": (request(GOOD, CARRIED + "Transfer-Encoding: chunked\r\n"), 411, "Content-Length"),
    "no length": (b"POST /act HTTP/1.1\r\n\r\n", 411, "Content-Length"),
    "another path": (request(GOOD, path="/else"), 404, "POST /act"),
    "cut short": (request(GOOD[:100], size=len(GOOD)), 400, "ends after 100 of"),
    "long line": (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414, "first line"),
    "many headers": (b"GET /contract HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431, "headers"),
    "long headers": (
        b"GET /contract HTTP/1.1\r\n" + (b"A: " + b"b" * 60_000 + b"\r\n") * 3 + b"\r\n",
        431,
        "head of the request",
    ),
    "delete": (b"DELETE /contract HTTP/1.1\r\n\r\n", 501, "GET /contract and POST /act"),
    "options": (
        b"OPTIONS /act HTTP/1.1\r\nOrigin: https://evil.example\r\n\r\n",
        501,
        "GET /contract and POST /act",
    ),
    "no HTTP": (b"\x1b[31mGET\x00\r\n\r\n", 400, "Bad request syntax"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_policy_server_refuses_a_bad_request_with_status_and_sentence(url: str, name: str) -> None:
    raw, status, says = REQUESTS[name]
    got, said = exchange(url, raw)
    assert (got, says in said) == (status, True), said
    assert status == 200 or ("\n" not in said and "\x1b" not in said)


def test_policy_server_refuses_a_rebound_host_name(url: str) -> None:
    """DNS rebinding: the page's own name, which its owner points to this machine, is both Host and Origin."""
    raw = b"GET /contract HTTP/1.1\r\nHost: evil.example:8000\r\nOrigin: http://evil.example:8000\r\n\r\n"
    assert exchange(url, raw)[0] == 403


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_S", 0.6)
    monkeypatch.setattr(http_server, "BODY_S", 0.6)


@pytest.mark.parametrize(
    "before",
    [b"", b"POST /act HTTP/1.1\r\nContent-Length: 5000\r\n" + CARRIED.encode() + b"\r\n"],
    ids=["head", "body"],
)
def test_policy_server_ends_a_slow_request_in_time(
    url: str, monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    slow(monkeypatch)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 5) as connection:
        began = time.monotonic()
        connection.sendall(before or b"GET /")
        connection.settimeout(0.1)
        answer = b""
        while time.monotonic() - began < 30 and b"complete" not in answer:
            with suppress(TimeoutError, BrokenPipeError):  # the server may close between two calls
                if not answer:
                    connection.sendall(b"a")
            with suppress(TimeoutError):
                answer += connection.recv(1 << 16)
    assert b" 408 " in answer
    assert time.monotonic() - began < 30


def test_policy_server_refuses_connections_over_the_limit() -> None:
    server = http_server.make_server(Digest(), port=0, most_connections=2)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        held = [socket.create_connection(server.server_address[:2], 5) for _ in range(2)]
        deadline = time.monotonic() + 10
        while (status := exchange(url, b"")[0]) != 503 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert status == 503
        for connection in held:
            connection.close()
        while (status := exchange(url, request(GOOD))[0]) != 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert status == 200
    finally:
        server.shutdown()
        server.server_close()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def announcing(shape: str, kind: str = "<i8") -> bytes:
    """Return a .npy file without values whose header announces some."""
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


PARTS = {f"{name}.npy": npy(array) for name, array in ARRAYS.items()}


def twice() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("proprio.npy", PARTS["proprio.npy"])
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("proprio.npy", PARTS["proprio.npy"])
    return buffer.getvalue()


BODIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "many members": (lambda: zipped({f"{i:x}.npy": b"" for i in range(10_000)}), "10000 members"),
    "an announced terabyte": (
        lambda: zipped(PARTS | {"noise_seeds.npy": announcing("(1000000000000,)")}),
        "is not the size of its values",
    ),
    "an announced negative": (
        lambda: zipped(PARTS | {"noise_seeds.npy": announcing("(-1,)")}),
        "is not the size of its values",
    ),
    "a type of a gigabyte": (
        lambda: zipped(PARTS | {"noise_seeds.npy": announcing("()", "V1000000000")}),
        "only numbers are read",
    ),
    "no array": (lambda: zipped(PARTS | {"evil.txt": b"x"}), "is no .npy file"),
    "another array": (lambda: zipped(PARTS | {"\x1b[2J.npy": npy(np.zeros(1))}), r"\x1b[2J"),
    "an array twice": (twice, "two members named 'proprio'"),
    "another compression": (lambda: zipped(PARTS, zipfile.ZIP_LZMA), "another method than deflate"),
    "a bomb": (
        lambda: zipped({"proprio.npy": npy(np.zeros(1 << 20))}, zipfile.ZIP_DEFLATED),
        "the arrays are larger than",
    ),
    "too many looks": (
        lambda: pack({**ARRAYS, "noise_seeds": np.zeros(MOST_OBSERVATIONS + 1, np.int64)}),
        "at most 256 at once",
    ),
    "NaN": (lambda: pack({**ARRAYS, "proprio": ARRAYS["proprio"] * np.nan}), "not finite"),
    "too large for float32": (lambda: pack({**ARRAYS, "proprio": np.full((1, 3), 1e300)}), "not finite"),
    "a negative seed": (lambda: pack({**ARRAYS, "noise_seeds": np.array([-1])}), "outside 0 to 2^63"),
    "half a character": (
        lambda: pack({**ARRAYS, "instructions": np.frombuffer(rb'["\ud800"]', np.uint8)}),
        "half a surrogate pair",
    ),
    "a long sentence": (
        lambda: pack({**ARRAYS, "instructions": np.full(5000, 32, np.uint8)}),
        "JSON list of 1 sentences, at most 4096 bytes in all",
    ),
    "a flipped bit": (
        lambda: (data := bytearray(zipped(PARTS)), data.__setitem__(200, data[200] ^ 1))[0],
        "not an .npz",
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_policy_server_refuses_a_hostile_body_in_bounded_memory(url: str, name: str) -> None:
    make, says = BODIES[name]
    body = make()
    before, began = peak_reset(), time.monotonic()
    status, said = exchange(url, request(bytes(body)))
    assert (status, says in said) == (400, True), said
    assert "\n" not in said
    assert "\x1b" not in said
    assert time.monotonic() - began < 30
    assert peak() - before < 50 * 2**20


class Answers(Digest):
    """A policy that answers every observation with the same chunk."""

    def __init__(self, make: Callable[[], ActionChunk]) -> None:
        super().__init__()
        self._make = make

    def _one(self, seen: Observation) -> ActionChunk:
        return self._make()


def chunk(shape: tuple[int, ...], execute: int, value: float = 0.0) -> Callable[[], ActionChunk]:
    return lambda: ActionChunk(np.full(shape, value, np.float32), execute)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (chunk((5, 2), 0), "execute must lie between 1 and the 5 steps"),
        (chunk((5, 2), -1), "execute must lie between 1 and the 5 steps"),
        (chunk((0, 2), 0), "a chunk of actions is empty"),
        (chunk((5, 0), 1), "a chunk of actions is empty"),
        (chunk((5,), 1), "must be \\(steps, action dimensions\\)"),
        (chunk((5, 3), 1), "actions is float32"),
        (
            chunk((5, 2), 1, np.nan),
            "actions holds nan in chunk 0, step 0, dimension 0; every action must be finite",
        ),
        (chunk((5, 2), 1, -np.inf), "actions holds -inf"),
    ],
)
def test_policy_server_refuses_invalid_chunks_of_the_policy(
    make: Callable[[], ActionChunk], says: str
) -> None:
    with served(Answers(make)) as url, pytest.raises(RemoteError, match=says):
        RemotePolicy(url).act([random_observation(0)])


BAD_SESSIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no session": ({"episodes": None}, "the policy takes episodes, history/images/front"),
    "no history": ({"history/proprio": None}, "the policy takes episodes, history/images/front"),
    "short history": (
        {"history/proprio": np.zeros((2, 1, 3), np.float32)},
        "history/proprio is float32 (2, 1, 3)",
    ),
    "long history": (
        {"history/images/front": np.zeros((2, 99, 6, 8, 3), np.uint8)},
        "history/images/front is",
    ),
    "NaN": (
        {"history/proprio": np.full((2, 2, 3), np.nan)},
        "history/proprio holds a value that is not finite",
    ),
    "steps below 0": ({"steps": np.array([-1, 0])}, "steps holds a number outside"),
    "steps of floats": ({"steps": np.zeros(2)}, "steps is float64"),
    "one step": ({"steps": np.zeros(1, np.int64)}, "steps is int64 (1,)"),
    "no JSON": ({"episodes": text(b"{")}, "episodes must be the UTF-8 bytes of a JSON list of 2 session ids"),
    "one session": ({"episodes": text(b'["a"]')}, "JSON list of 2 session ids"),
    "numbers": ({"episodes": text(b"[1, 2]")}, "JSON list of 2 session ids"),
    "twice": ({"episodes": text(b'["a", "a"]')}, "episodes holds 'a' twice"),
    "long": ({"episodes": text(json.dumps(["a", "b" * 300]).encode())}, "episodes[1] has 300 characters"),
    "huge": ({"episodes": text(b" " * (1 << 20))}, "at most"),
    "control": (
        {"episodes": text(json.dumps(["a", "\x1b[2J"]).encode())},
        "episodes[1] holds a control character",
    ),
    "surrogate": ({"episodes": text(b'["a", "\\ud800"]')}, "half a surrogate pair"),
    "object": ({"episodes": np.array([{}], object)}, "Python objects"),
}


@pytest.mark.parametrize("name", BAD_SESSIONS)
def test_policy_server_refuses_invalid_sessions_and_histories(name: str) -> None:
    changed, says = BAD_SESSIONS[name]
    arrays = dict(np.load(io.BytesIO(SESSIONS))) | changed
    buffer = io.BytesIO()
    np.savez(buffer, **{key: value for key, value in arrays.items() if value is not None})
    policy = Remembering()
    with served(policy) as url:
        status, said = exchange(url, request(buffer.getvalue()))
        assert status == 400
        assert says in said
        assert not policy.sizes, "the policy is not asked"
        assert exchange(url, request(SESSIONS))[0] == 200


def test_chunk_may_be_executed_whole() -> None:
    assert ActionChunk(np.zeros((1, 1), np.float32), 1).execute == 1
    with served(Answers(chunk((5, 2), 5))) as url:
        assert RemotePolicy(url).act([random_observation(0)])[0].execute == 5


def test_remote_policy_splits_observations_over_the_limit() -> None:
    policy = Digest()
    looks = [random_observation(seed) for seed in range(3)] * 90
    with served(policy) as url:
        assert same(RemotePolicy(url).act(looks), Digest().act(looks))
    assert policy.sizes == [MOST_OBSERVATIONS, len(looks) - MOST_OBSERVATIONS]


# -- an untrusted server -------------------------------------------------------------------------------------


@contextmanager
def answering(answer: Callable[[socket.socket, bytes], object]) -> Iterator[str]:
    """Serve `answer(connection, head)` after each whole request; the connection is closed if it returns
    False.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as incoming:
            try:
                while head := b"".join(
                    takewhile(lambda line: line not in (b"", b"\r\n"), iter(incoming.readline, None))
                ):
                    sizes = [
                        line.split(b":")[1]
                        for line in head.split(b"\r\n")
                        if line.lower().startswith(b"content-length")
                    ]
                    incoming.read(int(sizes[0]) if sizes else 0)
                    if answer(connection, head) is False:
                        return
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def plain(
    body: bytes, status: bytes = b"200 OK", head: bytes = b""
) -> Callable[[socket.socket, bytes], object]:
    whole = b"HTTP/1.1 " + status + b"\r\n" + head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    return lambda connection, _: connection.sendall(whole)


def raw(data: bytes) -> Callable[[socket.socket, bytes], object]:
    def answer(connection: socket.socket, _: bytes) -> bool:
        connection.sendall(data)
        return False

    return answer


def endless(first: bytes, more: bytes, pause_s: float = 0.0) -> Callable[[socket.socket, bytes], object]:
    def answer(connection: socket.socket, _: bytes) -> bool:
        connection.sendall(first)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            connection.sendall(more)
            time.sleep(pause_s)
        return False

    return answer


SPACE = b" " * (1 << 16)
OK = b"HTTP/1.1 200 OK\r\n"


SERVERS: dict[str, tuple[Any, str]] = {
    "endless": (endless(OK + b"\r\n", SPACE), "more than 1048576 bytes"),
    "endless chunks": (
        endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + SPACE + b"\r\n"),
        "more than 1048576 bytes",
    ),
    "endless chunk heads": (
        endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1;" + b"x" * 60_000 + b"\r\n \r\n"),
        "more than 1048576 bytes",
    ),
    "an announced 100 GB": (raw(OK + b"Content-Length: 99999999999\r\n\r\n"), "more than 1048576 bytes"),
    "dripping body": (
        endless(OK + b"Content-Length: 1000\r\n\r\n", b" ", 0.3),
        "did not answer within 0.5 s",
    ),
    "dripping status": (endless(b"H", b"T", 0.3), "did not answer within 0.5 s"),
    "dripping head": (endless(OK, b"A: b\r\n", 0.3), "did not answer within 0.5 s"),
    "endless 100": (
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        "more than 1048576 bytes|did not answer within",
    ),
    "endless head": (endless(OK, b"A: b\r\n"), "is not a policy server"),
    "endless status": (endless(b"", b"x" * 1000), "is not a policy server"),
    "SSH": (raw(b"SSH-2.0-OpenSSH\r\n\r\n"), "is not a policy server"),
    "cut short": (raw(OK + b"Content-Length: 1000\r\n\r\n{"), "end early"),
    "redirect": (
        plain(b"", b"302 Found", b"Location: http://169.254.169.254/\r\n"),
        r"redirects \(302\), which is not followed",
    ),
    "terminal escapes": (
        plain(b"\x1b]0;owned\x07\x1b[2Jall is well", b"500 X"),
        r"refused \(500\): \\x1b\]0;owned\\x07",
    ),
    "long refusal": (plain(b"{" * (1 << 17), b"500 X"), r"refused \(500\)"),
    "deep JSON": (plain(b"[" * 100_000), "nests deeper"),
    "nested": (plain(b"[" * 60 + b"]" * 60), "a contract is a JSON object"),
    "no UTF-8": (plain(b"\xff\xfe"), "not UTF-8"),
    "a long number": (plain(b"1" * 10_000), "is not valid"),
    "a long list": (plain(b"[" + b"0," * 500_000 + b"0]"), "a contract is a JSON object"),
}


@pytest.mark.parametrize("name", SERVERS)
def test_remote_policy_bounds_size_and_time_of_a_hostile_answer(name: str) -> None:
    answer, says = SERVERS[name]
    before, began = peak_reset(), time.monotonic()
    with answering(answer) as url, pytest.raises(RemoteError, match=says) as raised:
        _ = RemotePolicy(url, timeout_s=0.5, patience_s=0.5).contract
    assert time.monotonic() - began < 30
    assert peak() - before < 100 * 2**20
    assert "\x1b" not in str(raised.value)


STATED = json.loads(json.dumps(CONTRACT.to_json()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"control_hz": float("inf")}, "Infinity"),
        ({"control_hz": float("nan")}, "NaN"),
        ({"control_hz": 0}, "control_hz is 0"),
        ({"control_hz": "20"}, "control_hz is '20'"),
        ({"control_hz": True}, "control_hz is True"),
        ({"image_size": [10**9, 10**9]}, "image_size holds 1000000000"),
        ({"image_size": [-1, 0]}, "image_size holds -1"),
        ({"image_size": [8]}, "image_size must be two numbers"),
        ({"image_size": [8.5, 8]}, "image_size holds 8.5"),
        (
            {"image_size": [8192, 8192], "cameras": [f"c{i}" for i in range(64)]},
            "the pictures of one observation would have",
        ),
        ({"cameras": "abc"}, "cameras must be a list of names"),
        ({"cameras": ["a", "a"]}, "cameras holds a name twice"),
        ({"cameras": [f"c{i}" for i in range(65)]}, "cameras has 65 names"),
        ({"proprio": [["a"]]}, r"proprio\[0\] must be text"),
        ({"proprio": ["a"] * 5000}, "proprio has 5000 names"),
        ({"action": []}, "action is empty"),
        ({"action": ["a" * 501]}, r"action\[0\] has 501 characters"),
        ({"simulator": "\x1b[2Jmujoco"}, "simulator holds a control character"),
        ({"render_profile": None}, "render_profile must be text"),
    ],
)
def test_remote_policy_refuses_an_invalid_contract_naming_the_field(
    change: dict[str, Any], says: str
) -> None:
    with (
        answering(plain(json.dumps(STATED | change).encode())) as url,
        pytest.raises(RemoteError, match=says) as raised,
    ):
        _ = RemotePolicy(url).contract
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize("field", STATED)
def test_contract_without_a_field_names_it(field: str) -> None:
    with pytest.raises(ValueError, match=f"the contract lacks {field}"):
        Contract.from_json({name: value for name, value in STATED.items() if name != field})


def test_contract_with_a_duplicate_name_is_refused() -> None:
    body = json.dumps(STATED)[:-1] + ', "action": ["other"]}'
    with answering(plain(body.encode())) as url, pytest.raises(RemoteError, match="holds 'action' twice"):
        _ = RemotePolicy(url).contract


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (
            {"actions": np.full((1, 4, 2), np.nan, np.float32), "execute": np.ones(1, np.int64)},
            "actions holds nan in chunk 0, step 0",
        ),
        ({"actions": np.full((1, 4, 2), 1e300), "execute": np.ones(1, np.int64)}, "actions holds inf"),
        (
            {"actions": np.zeros((1, 0, 2), np.float32), "execute": np.ones(1, np.int64)},
            "a chunk has 0 steps",
        ),
        (
            {"actions": np.zeros((1, 4, 2), np.float32), "execute": np.zeros(1, np.int64)},
            "execute must lie between 1 and the 4 steps",
        ),
        (
            {"actions": np.zeros((1, 5000, 2), np.float32), "execute": np.ones(1, np.int64)},
            "between 1 and 4096",
        ),
        (
            {"actions": np.zeros((2, 4, 2), np.float32), "execute": np.ones(2, np.int64)},
            r"must be floating \(1, 4, 2\)",
        ),
    ],
)
def test_unpack_chunks_refuses_invalid_chunks(arrays: dict[str, Any], says: str) -> None:
    with pytest.raises(RemoteError, match=says):
        unpack_chunks(pack(arrays), 1, CONTRACT)


# -- a thousand random ones ----------------------------------------------------------------------------------


def odd_contract(rng: random.Random) -> bytes:
    odd = [
        None,
        True,
        -1,
        0,
        10**12,
        1e308,
        "",
        "x" * 2000,
        [],
        {},
        [[]],
        ["a"] * 100,
        [1, 2],
        {"a": [{}]},
        "\x1b[31m",
        "\ud800",
        float("nan"),
    ]
    odd += [{"memory": 1}, {"observation_steps": 10**9}, {"observation_steps": [2]}, {"memory": True, "x": 1}]
    fields = rng.sample([*sorted(STATED), "needs"], rng.randrange(1, 4))
    return json.dumps(STATED | {field: rng.choice(odd) for field in fields}).encode()


def test_thousand_random_bodies_and_answers_are_handled_in_bounds(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Figures are printed: `pytest -rP -k thousand`."""
    rng = random.Random(19)
    policy = Digest()
    answer: dict[str, bytes] = {}

    def reply(connection: socket.socket, head: bytes) -> None:
        body = answer["contract" if head.startswith(b"GET") else "chunks"]
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    good_chunks = pack_chunks(policy.act([random_observation(0)]))
    compressed = io.BytesIO()
    np.savez_compressed(compressed, **ARRAYS)
    bodies = [GOOD, compressed.getvalue()]
    slowest, statuses = 0.0, dict.fromkeys((200, 400, 410), 0)
    accepted = refused = 0
    with served(policy) as url, served(Remembering()) as sessions, answering(reply) as strange:
        exchange(url, request(GOOD))
        before = peak_reset()
        for case in range(1000):
            began = time.monotonic()
            if case % 2:
                asked, body = rng.choice([(url, one) for one in bodies] + [(sessions, SESSION)])
                status, said = exchange(asked, request(mutated(body, rng)))
                assert status in statuses, (case, status, said)
                assert status == 200 or (said.strip() and said.isprintable()), (case, said)
                statuses[status] += 1
            else:
                good_contract = json.dumps(STATED).encode()
                answer["contract"] = rng.choice(
                    [good_contract, mutated(good_contract, rng), odd_contract(rng)]
                )
                answer["chunks"] = mutated(good_chunks, rng)
                try:
                    chunks: Sequence[ActionChunk] = RemotePolicy(strange).act([random_observation(0)])
                    assert all(
                        np.isfinite(chunk.actions).all() and 1 <= chunk.execute <= len(chunk.actions)
                        for chunk in chunks
                    )
                    accepted += 1
                except RemoteError as error:
                    said = str(error)
                    refused += 1
                else:
                    said = ""
                assert said.isprintable(), (case, said)
            slowest = max(slowest, time.monotonic() - began)
        grown = (peak() - before) / 2**20
        assert same(RemotePolicy(url).act([random_observation(0)]), Digest().act([random_observation(0)])), (
            "the server still answers"
        )
    printed, errors = capfd.readouterr()
    assert "Traceback" not in printed + errors
    assert min(statuses[200], statuses[400]) > 5
    assert min(accepted, refused) > 5
    print(
        f"largest RSS above idle {grown:.1f} MiB, slowest answer {slowest:.3f} s, server {statuses}, client"
        f" {accepted} accepted {refused} refused"
    )
    assert slowest < 5
    assert grown < 200
