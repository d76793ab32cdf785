"""Policies over HTTP: what is answered there is what would be answered here, to the last bit; what goes wrong
is a sentence.
"""

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

from http_policies import CONTRACT, Digest, look, same, served
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


def test_the_contract_and_the_answers_come_through_unchanged() -> None:
    looks = [look(seed) for seed in range(3)]
    with served(Digest()) as url:
        remote = RemotePolicy(url)
        assert remote.contract == CONTRACT
        assert same(remote.act(looks) + remote.act(looks[1:2]), Digest().act([*looks, looks[1]]))
        assert remote.act([]) == []


def test_another_language_needs_only_http_json_and_npz() -> None:
    """By hand, as the documentation says: compressed, float64, instructions as JSON bytes."""
    seen = look(4)
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
def test_many_ask_at_once_and_each_gets_its_own_answer(join: bool) -> None:
    policy = Digest()
    policy.delay_s = 0.05
    answers: dict[int, list[ActionChunk] | Exception] = {}
    with served(policy, join) as url:
        remote = RemotePolicy(url)

        def ask(seed: int) -> None:
            try:
                answers[seed] = remote.act([look(seed, "break" if seed == 3 else "lift")])
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
        assert same(chunks, Digest().act([look(seed, "lift")]))
    assert (max(policy.sizes) > 1) == join


def test_an_error_of_the_policy_is_told_in_one_line_and_the_server_lives_on() -> None:
    with served(Digest()) as url:
        remote = RemotePolicy(url)
        with pytest.raises(
            RemoteError, match=r"http://127.0.0.1:\d+ refused \(500\): RuntimeError: the weights are NaN$"
        ):
            remote.act([look(0, "break")])
        assert same(remote.act([look(0)]), Digest().act([look(0)]))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("import policy; policy.was_here = True",))


def test_what_is_not_plain_arrays_is_refused_and_never_unpickled() -> None:
    import policy as package

    good = np.load(io.BytesIO(pack_observations([look(0)], CONTRACT.cameras)))
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
        assert same(RemotePolicy(url).act([look(0)]), Digest().act([look(0)])), "the server lives on"
    assert not hasattr(package, "was_here")


def test_a_zip_bomb_is_not_unpacked() -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, bomb=np.zeros(4_000_000, np.uint8))
    assert len(buffer.getvalue()) < 10_000
    with served(Digest(), most_bytes=1_000_000) as url:
        assert post(url, buffer.getvalue()) == (400, "the arrays are larger than 1000000 bytes")


def test_a_policy_that_answers_against_its_contract_is_found_out() -> None:
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
            RemotePolicy(url).act([look(0), look(1)])
    with (
        served(Digest()) as url,
        pytest.raises(RemoteError, match="cannot be sent: KeyError: 'robot0/wrist'"),
    ):
        RemotePolicy(url).act([replace(look(0), images={"front": look(0).images["front"]})])


def test_there_is_a_sentence_for_a_server_that_is_not_there_or_says_nothing() -> None:
    with pytest.raises(RemoteError, match=r"must look like http://127\.0\.0\.1:8000"):
        RemotePolicy("127.0.0.1:8000")
    with served(Digest()) as url:
        pass
    with pytest.raises(
        RemoteError, match=rf"no policy server answers at {url}; is it running\? \(ConnectionRefusedError"
    ):
        RemotePolicy(url, patience_s=0.2).act([look(0)])
    slow = Digest()
    slow.delay_s = 2.0
    with served(slow) as url, pytest.raises(RemoteError, match=r"did not answer within 0\.2 s"):
        RemotePolicy(url, timeout_s=0.2).act([look(0)])
    with (
        served(Digest()) as url,
        pytest.raises(RemoteError, match=r"refused \(404\): there are GET /contract and POST /act"),
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


def test_a_server_killed_and_started_again_is_found_again() -> None:
    with served(Digest()) as url:
        port = int(url.rsplit(":", 1)[1])
    remote = RemotePolicy(url, patience_s=60)
    processes = [start(port)]
    later = threading.Timer(1.0, lambda: processes.append(start(port)))
    try:
        first = remote.act([look(0)])
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        later.start()
        assert same(remote.act([look(0)]), first)
        assert same(first, Digest().act([look(0)]))
    finally:
        if later.ident:
            later.join()
        for process in processes:
            process.kill()
            process.wait()


def test_a_connection_is_kept_and_nothing_waits_for_receipts() -> None:
    """40 ms a request is what two small writes cost where the second waits for the first one's receipt."""
    with served(Digest()) as url:
        remote = RemotePolicy(url)
        remote.act([look(0)])
        socket, began = remote._of_thread.connection.sock, time.monotonic()
        for seed in range(50):
            remote.act([look(seed)])
        assert time.monotonic() - began < 50 * 0.04
        assert remote._of_thread.connection.sock is socket


# -- the sources that rollout processes connect to -----------------------------------------------------------


def test_sources_travel_and_are_equal_afterwards() -> None:
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


def test_a_source_leads_to_its_policy() -> None:
    expected = Digest().act([look(0)])
    assert same([InProcessPolicy(Digest).connect().act(look(0))], expected)
    assert same([FactoryPolicy("http_policies:Digest").connect().act(look(0))], expected)
    with served(Digest()) as url:
        assert same([RemoteServer(url).connect().act(look(0))], expected)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nothing", "must look like package.module:function"),
        ("no.such.module:make", "No module named 'no'; modules are looked for"),
        ("test_http_policy:nothing", "the module test_http_policy has no nothing"),
        ("builtins:dict", "returned a dict, which is no policy"),
    ],
)
def test_there_is_a_sentence_for_a_name_that_leads_nowhere(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        FactoryPolicy(name).connect()
