"""Policies over HTTP: remote answers equal local ones bit for bit; errors are one sentence."""

import io
import json
import pickle
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from conftest import CHECKOUT

from http_policies import CONTRACT, Digest, random_observation, same, served
from policy.http_policy import RemotePolicy
from policy.http_protocol import RemoteError, pack, pack_observations
from policy.interface import ActionChunk, Observation
from sim_workers.rollout.policy_clients import FactoryPolicy, InProcessPolicy, RemoteServer

BYTES = {"Content-Type": "application/octet-stream"}


def post(url: str, body: bytes) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/act", body, BYTES)) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_remote_policy_returns_contract_and_actions_unchanged() -> None:
    looks = [random_observation(seed) for seed in range(3)]
    with served(Digest()) as url:
        remote = RemotePolicy(url)
        assert remote.contract == CONTRACT
        assert same(remote.act(looks) + remote.act(looks[1:2]), Digest().act([*looks, looks[1]]))
        assert remote.act([]) == []


def test_policy_server_accepts_a_hand_made_npz_request() -> None:
    """Make the request by hand, as documented: compressed, float64, instructions as JSON bytes."""
    seen = random_observation(4)
    arrays = {
        "images/front": seen.images["front"][None],
        "images/robot0/wrist": seen.images["robot0/wrist"][None],
        "proprio": seen.proprio[None].astype(np.float64),
        "noise_seeds": np.array([seen.noise_seed]),
        "instructions": np.frombuffer(json.dumps([seen.instruction]).encode(), np.uint8),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    with (
        served(Digest()) as url,
        urllib.request.urlopen(urllib.request.Request(f"{url}/act", buffer.getvalue(), BYTES)) as answer,
    ):
        told = np.load(io.BytesIO(answer.read()))
    expected = Digest().act([seen])[0]
    assert np.array_equal(told["actions"][0], expected.actions)
    assert told["execute"].tolist() == [expected.execute]


@pytest.mark.parametrize("join", [False, True])
def test_policy_server_answers_concurrent_clients_separately(join: bool) -> None:
    policy = Digest()
    policy.delay_s = 0.05
    answers: dict[int, list[ActionChunk] | Exception] = {}
    with served(policy, join) as url:
        remote = RemotePolicy(url)

        def ask(seed: int) -> None:
            try:
                answers[seed] = remote.act([random_observation(seed, "break" if seed == 3 else "lift")])
            except RemoteError as error:
                answers[seed] = error

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert "the weights are NaN" in str(answers.pop(3))
    for seed, chunks in answers.items():
        assert isinstance(chunks, list)
        assert same(chunks, Digest().act([random_observation(seed, "lift")]))
    assert (max(policy.sizes) > 1) == join


def test_policy_server_after_an_error_of_the_policy_still_answers() -> None:
    with served(Digest()) as url:
        remote = RemotePolicy(url)
        with pytest.raises(
            RemoteError, match=r"http://127.0.0.1:\d+ refused \(500\): RuntimeError: the weights are NaN$"
        ):
            remote.act([random_observation(0, "break")])
        assert same(remote.act([random_observation(0)]), Digest().act([random_observation(0)]))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("import policy; policy.was_here = True",))


def test_policy_server_refuses_bodies_that_are_not_plain_arrays() -> None:
    import policy as package

    good = np.load(io.BytesIO(pack_observations([random_observation(0)], CONTRACT.cameras)))
    arrays = {name: good[name] for name in good.files}
    hostile = {**arrays, "instructions": np.array([Evil()], dtype=object)}
    buffer = io.BytesIO()
    np.savez(buffer, **hostile)  # type: ignore[arg-type]
    deep = np.frombuffer(b"[" * 100_000, np.uint8)
    bodies = {
        b"": "not an .npz",
        b"PK not really": "not an .npz",
        pickle.dumps(Evil()): "not an .npz",
        buffer.getvalue(): "allow_pickle=False",
        buffer.getvalue()[:400]: "not an .npz",
        pack(
            {**arrays, "proprio": arrays["proprio"][:, :2]}
        ): r"proprio is float32 (1, 2), and must be floating (1, 3)",
        pack(
            {**arrays, "images/front": arrays["images/front"].astype(np.float32)}
        ): "images/front is float32 (1, 6, 8, 3), and must be uint8",
        pack({**arrays, "images/front": arrays["images/front"][:, :, :4]}): "must be uint8 (1, 6, 8, 3)",
        pack({**arrays, "noise_seeds": np.zeros(0, np.int64)}): "at least one",
        pack({**arrays, "instructions": deep}): "JSON list of 1 sentences",
        pack(
            {name: arrays[name] for name in arrays if name != "images/front"}
        ): "the policy takes images/front, images/robot0/wrist",
    }
    with served(Digest()) as url:
        for body, why in bodies.items():
            status, said = post(url, body)
            assert status == 400, (status, said)
            assert why in said
            assert "\n" not in said
        assert same(RemotePolicy(url).act([random_observation(0)]), Digest().act([random_observation(0)])), (
            "the server still answers"
        )
    assert not hasattr(package, "was_here")


def test_policy_server_refuses_a_zip_bomb() -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, bomb=np.zeros(4_000_000, np.uint8))
    assert len(buffer.getvalue()) < 10_000
    with served(Digest(), most_bytes=1_000_000) as url:
        assert post(url, buffer.getvalue()) == (400, "the arrays are larger than 1000000 bytes")


def test_policy_server_refuses_chunks_against_the_contract() -> None:
    class Wrong(Digest):
        def _one(self, seen: Observation) -> ActionChunk:
            return ActionChunk(np.zeros((5, 3), np.float32), 5)

    class TooEager(Digest):
        def _one(self, seen: Observation) -> ActionChunk:
            return ActionChunk(np.zeros((5, 2), np.float32), 6)

    class Uneven(Digest):
        def _one(self, seen: Observation) -> ActionChunk:
            return ActionChunk(np.zeros((1 + seen.noise_seed % 2, 2), np.float32), 1)

    for policy, why in (
        (Wrong(), r"actions is float32 \(2, 5, 3\), and must be floating \(2, 5, 2\)"),
        (TooEager(), "execute must lie between 1 and the 5 steps"),
        (Uneven(), "not equally long"),
    ):
        with served(policy) as url, pytest.raises(RemoteError, match=why):
            RemotePolicy(url).act([random_observation(0), random_observation(1)])
    with (
        served(Digest()) as url,
        pytest.raises(RemoteError, match="cannot be sent: KeyError: 'robot0/wrist'"),
    ):
        RemotePolicy(url).act(
            [replace(random_observation(0), images={"front": random_observation(0).images["front"]})]
        )


def test_remote_policy_without_an_answer_raises_one_sentence() -> None:
    with pytest.raises(RemoteError, match=r"must look like http://127\.0\.0\.1:8000"):
        RemotePolicy("127.0.0.1:8000")
    with served(Digest()) as url:
        pass
    with pytest.raises(
        RemoteError, match=rf"no policy server answers at {url}; is it running\? \(ConnectionRefusedError"
    ):
        RemotePolicy(url, patience_s=0.2).act([random_observation(0)])
    slow = Digest()
    slow.delay_s = 2.0
    with served(slow) as url, pytest.raises(RemoteError, match=r"did not answer within 0\.2 s"):
        RemotePolicy(url, timeout_s=0.2).act([random_observation(0)])
    with (
        served(Digest()) as url,
        pytest.raises(
            RemoteError,
            match=r"refused \(404\): unknown request; this server answers GET /contract and POST /act",
        ),
    ):
        RemotePolicy(f"{url}/elsewhere")._ask("GET", "/nothing")


SERVE = (
    "import sys; from policy.http_server import serve; from http_policies import Digest; serve(Digest(),"
    " port=int(sys.argv[1]))"
)


def start(port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port)],
        cwd=CHECKOUT / "tests" / "helpers",
        env={"PYTHONPATH": str(CHECKOUT)},
    )


def test_remote_policy_reconnects_to_a_restarted_server() -> None:
    with served(Digest()) as url:
        port = int(url.rsplit(":", 1)[1])
    remote = RemotePolicy(url, patience_s=60)
    processes = [start(port)]
    later = threading.Timer(1.0, lambda: processes.append(start(port)))
    try:
        first = remote.act([random_observation(0)])
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        later.start()
        assert same(remote.act([random_observation(0)]), first)
        assert same(first, Digest().act([random_observation(0)]))
    finally:
        if later.ident:
            later.join()
        for process in processes:
            process.kill()
            process.wait()


def test_remote_policy_reuses_its_connection_without_delay() -> None:
    """With Nagle's algorithm, two small writes per request would cost 40 ms."""
    with served(Digest()) as url:
        remote = RemotePolicy(url)
        remote.act([random_observation(0)])
        socket, seconds = remote._of_thread.connection.sock, []
        for seed in range(50):
            began = time.monotonic()
            remote.act([random_observation(seed)])
            seconds.append(time.monotonic() - began)
        assert min(seconds) < 0.04
        assert remote._of_thread.connection.sock is socket


# -- the sources that rollout processes connect to -----------------------------------------------------------


def test_policy_sources_are_picklable_and_comparable() -> None:
    for source in (
        InProcessPolicy(Digest),
        InProcessPolicy(partial(FactoryPolicy, "a:b")),
        FactoryPolicy("a:b"),
        RemoteServer("http://127.0.0.1:1"),
    ):
        assert len({source, pickle.loads(pickle.dumps(source))}) == 1
    assert (
        InProcessPolicy(partial(Digest, 1)) != InProcessPolicy(partial(Digest, 2)) != InProcessPolicy(Digest)
    )
    assert InProcessPolicy(partial(Digest, 1, delay=2)).name == "http_policies:Digest(1, delay=2)"
    assert FactoryPolicy("examples.waypoints:make").name == "examples.waypoints:make"
    assert RemoteServer("http://127.0.0.1:1").name == "http://127.0.0.1:1"


def test_policy_source_connects_to_its_policy() -> None:
    expected = Digest().act([random_observation(0)])
    assert same([InProcessPolicy(Digest).connect().act(random_observation(0))], expected)
    assert same([FactoryPolicy("http_policies:Digest").connect().act(random_observation(0))], expected)
    with served(Digest()) as url:
        assert same([RemoteServer(url).connect().act(random_observation(0))], expected)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nothing", "must look like package.module:function"),
        ("no.such.module:make", "No module named 'no'; modules are looked for"),
        ("test_http_policy:nothing", "the module test_http_policy has no nothing"),
        ("builtins:dict", "returned a dict, which is no policy"),
    ],
)
def test_factory_policy_with_a_bad_name_raises_one_sentence(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        FactoryPolicy(name).connect()
