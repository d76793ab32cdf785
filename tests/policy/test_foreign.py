"""Policy servers of other projects: openpi's with its own server and client packages, vla-eval's with its
package, GR00T's with a server written after its protocol.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import CHECKOUT, run

from http_policies import CONTRACT
from orchestrator.cli.main import main
from orchestrator.evaluation.policy_ref import ForeignOptions, PolicyRefError, resolve_policy
from policy.check_policy import check_policy
from policy.foreign import foreign_policy, is_foreign
from policy.foreign.layout import Layout, StatePart, axis_angle, chunk_of
from policy.http_protocol import RemoteError
from policy.interface import ActionChunk, LostSessionError, Observation, needs_of

LIBERO = replace(
    CONTRACT,
    cameras=("agentview", "wrist"),
    proprio=tuple(f"p{i}" for i in range(9)),
    action=tuple(f"a{i}" for i in range(7)),
)


def seen(seed: int = 0, episode: str = "", step: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (6, 8, 3), dtype=np.uint8) for camera in LIBERO.cameras}
    proprio = rng.uniform(-0.5, 0.5, 9).astype(np.float32)
    proprio[3:7] /= np.linalg.norm(proprio[3:7])
    return Observation(images, proprio, "lift the röd cube", seed, episode, step)


def needing(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if not find_spec(name)]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def program(code: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process of its own, until the end of the block."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *filter(None, sys.path)])}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def shown(observation: Observation) -> float:
    """The number that the servers of these tests answer with: it shows what they were sent."""
    pictures = sum(int(picture[:, 0].sum()) for picture in observation.images.values())
    return float(pictures) + len(observation.instruction)


# -- layouts -------------------------------------------------------------------------------------------------


def test_libero_layout_sends_what_openpi_trained_on() -> None:
    layout, look = Layout.named("libero", LIBERO), seen()
    assert layout == Layout.named("openpi", LIBERO)
    pictures = layout.pictures(look)
    assert [*pictures] == ["observation/image", "observation/wrist_image"]
    assert np.array_equal(pictures["observation/wrist_image"], look.images["wrist"][:, ::-1])
    (state,) = layout.vectors(look).values()
    assert state.shape == (8,)
    assert np.array_equal(state[[0, 1, 2, 6, 7]], look.proprio[[0, 1, 2, 7, 8]])
    assert np.array_equal(state[3:6], axis_angle(look.proprio[3:7]))


def test_axis_angle_of_known_rotations() -> None:
    half = np.sqrt(0.5)
    for quaternion, rotation in (
        ([0, 0, 0, 1], [0, 0, 0]),
        ([0, 0, half, half], [0, 0, np.pi / 2]),
        ([1, 0, 0, 0], [np.pi, 0, 0]),
        ([0, 0, half, -half], [0, 0, 1.5 * np.pi]),
    ):
        assert axis_angle(np.array(quaternion, np.float32)) == pytest.approx(rotation, abs=1e-6)


def test_layout_is_read_from_json(tmp_path: Path) -> None:
    file = tmp_path / "layout.json"
    file.write_text(
        json.dumps(
            {
                "images": {"cam": "wrist"},
                "states": {"pose": [[0, 3], [3, 7, "axis_angle"]], "hand": [[7, 9]]},
                "instruction": "text",
                "actions": ["chunk"],
            }
        )
    )
    assert Layout.named(str(file), LIBERO) == Layout(
        (("cam", "wrist"),),
        (("pose", (StatePart(0, 3), StatePart(3, 7, "axis_angle"))), ("hand", (StatePart(7, 9),))),
        "text",
        ("chunk",),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "a layout is a JSON object"),
        ("{", "it is not JSON"),
        ('{"image": {}}', "holds 'image'; known are images, states"),
        ('{"images": {"a": 1}}', "images must be an object"),
        ('{"states": {"s": []}}', "must be a list of"),
        ('{"states": {"s": [[3, 1]]}}', "a part is"),
        ('{"states": {"s": [[0, 3, "axis_angle"]]}}', "for a quaternion"),
        ('{"actions": []}', "actions must be a list"),
        ('{"mirrored": 1}', "mirrored true or false"),
        ('{"images": {"a": "nowhere"}}', "the contract has agentview, wrist"),
        ('{"states": {"s": [[0, 12]]}}', "proprioceptive value 12 in s; the contract has 9"),
    ],
)
def test_invalid_layout_is_refused_in_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "layout.json"
    file.write_text(text)
    with pytest.raises(RemoteError, match=says) as caught:
        Layout.named(str(file), LIBERO)
    assert "\n" not in str(caught.value)


def test_layout_of_another_name_is_refused() -> None:
    with pytest.raises(RemoteError, match="no layout simpler; known are libero"):
        Layout.named("simpler", LIBERO)
    with pytest.raises(RemoteError, match="proprioceptive value 9"):
        Layout.named("libero", CONTRACT)


@pytest.mark.parametrize(
    ("actions", "execute", "says"),
    [
        (np.zeros((5, 8)), 0, r"float64 \(5, 8\); the contract has 7"),
        (np.zeros((2, 5, 7)), 0, "the contract has 7"),
        (np.zeros((0, 7)), 0, "0 actions"),
        (np.zeros((5, 7)), 6, "5 actions, of which 6"),
        (np.full((5, 7), np.inf), 0, "not finite"),
        (np.full((5, 7), 1e300), 0, "not finite"),
        (np.zeros((5, 7), bool), 0, "bool"),
    ],
)
def test_chunk_that_violates_the_contract_is_refused(actions: Any, execute: int, says: str) -> None:
    with pytest.raises(RemoteError, match=f"the server answered with .*{says}"):
        chunk_of(actions, LIBERO, execute, "the server")


def test_chunk_is_executed_whole_or_as_far_as_asked() -> None:
    assert chunk_of(np.zeros((5, 7)), LIBERO, 0, "").execute == 5
    assert chunk_of(np.zeros((5, 7)), LIBERO, 3, "").execute == 3
    assert chunk_of(np.zeros(7), LIBERO, 0, "").actions.shape == (1, 7)


@pytest.mark.parametrize(
    "url", ["openpi://", "openpi://host", "openpi://host:x", "openpi://host:1/path", "pi://host:1"]
)
def test_foreign_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(RemoteError, match=r"must look like openpi://127\.0\.0\.1:8000"):
        foreign_policy(url, LIBERO)


# -- openpi --------------------------------------------------------------------------------------------------

OPENPI = """
import sys
import numpy as np
from openpi_client.base_policy import BasePolicy
from openpi_server import WebsocketPolicyServer

class Shown(BasePolicy):
    def infer(self, obs):
        if obs["prompt"] == "break":
            raise RuntimeError("the weights are NaN")
        pictures = sum(int(obs[name][:, -1].sum()) for name in ("observation/image", "observation/wrist_image"))
        actions = np.zeros((10, 7))
        actions[:, 0] = pictures + len(obs["prompt"])
        actions[0, :] += np.resize(obs["observation/state"], 7)
        return {"actions": actions[:, : -1 if obs["prompt"] == "short" else None]}

    def reset(self):
        pass

WebsocketPolicyServer(Shown(), "127.0.0.1", int(sys.argv[1]), {"name": "shown"}).serve_forever()
"""


@pytest.fixture(scope="module")
def openpi() -> Iterator[str]:
    port = free_port()
    with program(OPENPI, port):
        yield f"openpi://127.0.0.1:{port}"


def expected(look: Observation) -> ActionChunk:
    actions = np.zeros((10, 7))
    actions[:, 0] = shown(look)
    (state,) = Layout.named("libero", LIBERO).vectors(look).values()
    actions[0, :] += np.resize(state, 7)
    return ActionChunk(actions.astype(np.float32), 5)


@needing("openpi_server", "websockets")
def test_openpi_server_answers_as_its_own_client_is_answered(openpi: str) -> None:
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    looks = [seen(0), seen(1)]
    chunks = foreign_policy(openpi, LIBERO, execute=5).act(looks)
    layout = Layout.named("libero", LIBERO)
    theirs = WebsocketClientPolicy("127.0.0.1", int(openpi.rpartition(":")[2]))
    for look, chunk in zip(looks, chunks, strict=True):
        assert np.array_equal(chunk.actions, expected(look).actions)
        assert chunk.execute == 5
        told = theirs.infer({**layout.pictures(look), **layout.vectors(look), "prompt": look.instruction})
        assert np.array_equal(chunk.actions, told["actions"].astype(np.float32))


@needing("openpi_server", "websockets")
def test_openpi_server_passes_the_check(openpi: str) -> None:
    checks = check_policy(foreign_policy(openpi, LIBERO), LIBERO)
    assert all(check.passed for check in checks), checks


@needing("openpi_server", "websockets")
def test_openpi_errors_are_one_sentence(openpi: str) -> None:
    policy = foreign_policy(openpi, LIBERO)
    with pytest.raises(RemoteError, match=r"failed: RuntimeError: the weights are NaN$"):
        policy.act([replace(seen(), instruction="break")])
    with pytest.raises(RemoteError, match=r"actions of float64 \(10, 6\); the contract has 7"):
        policy.act([replace(seen(), instruction="short")])
    assert policy.act([seen()])[0].actions.shape == (10, 7), "the connection is made again"


@needing("openpi_server", "websockets")
def test_openpi_client_survives_a_restart_of_the_server() -> None:
    port = free_port()
    policy = foreign_policy(f"openpi://127.0.0.1:{port}", LIBERO)
    with program(OPENPI, port):
        first = policy.act([seen()])
    with program(OPENPI, port):
        again = policy.act([seen()])
    assert np.array_equal(first[0].actions, again[0].actions)


@needing("websockets")
def test_openpi_client_bounds_what_a_hostile_server_sends() -> None:
    """Answers that are too large, no msgpack, or arrays that are none."""
    import msgpack
    import websockets.sync.server

    def array(**fields: Any) -> bytes:
        whole = {b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [0, 7]}
        data: bytes = msgpack.packb({"actions": {**whole, **{k.encode(): v for k, v in fields.items()}}})
        return data

    answers: dict[str, bytes] = {
        "no msgpack": b"\xc1",
        "no object": msgpack.packb([1]),
        "no actions": msgpack.packb({"action": 1}),
        "objects": array(dtype="O", data=b"x" * 8, shape=[1]),
        "wrong size": array(data=b"x" * 8, shape=[1 << 40]),
        "negative": array(shape=[-1]),
        "text": array(dtype="<U4"),
        "many values": b"\xdd\xff\xff\xff\xff",
        "too large": b"\x00" * (64 << 20),
    }
    current = ""

    def serve(connection: Any) -> None:
        connection.send(msgpack.packb({}))
        for _ in connection:
            connection.send(answers[current])

    with websockets.sync.server.serve(serve, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        policy = foreign_policy(f"openpi://127.0.0.1:{server.socket.getsockname()[1]}", LIBERO)
        for current in answers:
            with pytest.raises(RemoteError, match="the openpi server at") as caught:
                policy.act([seen()])
            assert str(caught.value).isprintable(), current
        server.shutdown()


# -- vla-eval ------------------------------------------------------------------------------------------------

VLA_EVAL = """
import sys
import numpy as np
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import serve

class Shown(PredictModelServer):
    def predict(self, obs, ctx):
        if obs["task_description"] == "break":
            raise RuntimeError("the weights are NaN")
        pictures = sum(int(picture[:, 0].sum()) for picture in obs["images"].values())
        actions = np.zeros((3, 7), np.float32)
        actions[:, 0] = pictures + len(obs["task_description"])
        actions[:, 1] = np.arange(3)
        actions[:, 2] = obs["state"][0]
        return {"actions": actions}

    def get_action_spec(self):
        raise NotImplementedError

serve(Shown(chunk_size=3), "127.0.0.1", int(sys.argv[1]))
"""


@pytest.fixture
def vla_eval() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    with program(VLA_EVAL, port) as process:
        yield f"vla-eval://127.0.0.1:{port}", process


@pytest.mark.full
@needing("vla_eval", "websockets")
def test_vla_eval_server_keeps_the_chunk_of_each_session(vla_eval: tuple[str, Any]) -> None:
    policy = foreign_policy(vla_eval[0], LIBERO)
    assert needs_of(policy).memory
    for step in range(4):
        looks = [seen(step, "a", step), seen(10 + step, "b", step)]
        chunks = policy.act(looks)
        for i, (look, chunk) in enumerate(zip(looks, chunks, strict=True)):
            asked = seen(10 * i + step - step % 3, "", step)
            assert chunk.execute == len(chunk.actions) == 1
            wanted = [shown(asked), step % 3, asked.proprio[0], 0, 0, 0, 0]
            assert chunk.actions[0] == pytest.approx(wanted), look


@pytest.mark.full
@needing("vla_eval", "websockets")
def test_vla_eval_server_passes_the_check(vla_eval: tuple[str, Any]) -> None:
    checks = check_policy(foreign_policy(vla_eval[0], LIBERO), LIBERO)
    assert all(check.passed for check in checks), checks


@pytest.mark.full
@needing("vla_eval", "websockets")
def test_vla_eval_server_that_dies_loses_its_sessions(vla_eval: tuple[str, Any]) -> None:
    policy = foreign_policy(vla_eval[0], LIBERO)
    with pytest.raises(RemoteError, match="the weights are NaN"):
        policy.act([replace(seen(), instruction="break")])
    policy.act([seen(0, "a", 0)])
    vla_eval[1].kill()
    with pytest.raises(LostSessionError, match="the vla-eval server at"):
        policy.act([seen(0, "a", 1)])


# -- GR00T ---------------------------------------------------------------------------------------------------


@contextmanager
def groot() -> Iterator[str]:
    """A server after GR00T's protocol; its answers show what it was sent."""
    import io

    import msgpack
    import zmq

    def decode(value: dict[Any, Any]) -> Any:
        return np.load(io.BytesIO(value["as_npy"])) if "__ndarray_class__" in value else value

    def encode(value: Any) -> Any:
        buffer = io.BytesIO()
        np.save(buffer, value)
        return {"__ndarray_class__": True, "as_npy": buffer.getvalue()}

    def answered(request: Any) -> Any:
        observation = request["data"]["observation"]
        if observation["language"]["task"][0] == ["break"]:
            return {"error": "the weights are NaN"}
        assert all(picture.shape[1:] == (1, 6, 8, 3) for picture in observation["video"].values())
        assert observation["state"]["state"].shape[1:] == (1, 9)
        many = len(observation["language"]["task"])
        actions = np.zeros((many, 8, 7), np.float32)
        for i in range(many):
            pictures = sum(int(picture[i, 0, :, 0].sum()) for picture in observation["video"].values())
            actions[i, :, 0] = pictures + len(observation["language"]["task"][i][0])
        return [{"arm": actions[:, :, :6], "gripper": actions[:, :, 6:]}, {}]

    context = zmq.Context()
    server = context.socket(zmq.REP)
    port = server.bind_to_random_port("tcp://127.0.0.1")
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            if server.poll(20):
                request = msgpack.unpackb(server.recv(), object_hook=decode)
                assert request["endpoint"] == "get_action"
                server.send(msgpack.packb(answered(request), default=encode))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"groot://127.0.0.1:{port}"
    over.set()
    thread.join()
    context.destroy(linger=0)


@needing("zmq")
def test_groot_server_answers_a_batch() -> None:
    layout = replace(Layout.named("groot", LIBERO), actions=("arm", "gripper"))
    with groot() as url:
        policy = foreign_policy(url, LIBERO, layout, execute=4)
        looks = [seen(0), seen(1), seen(2)]
        chunks = policy.act(looks)
        assert [chunk.actions[0, 0] for chunk in chunks] == [shown(look) for look in looks]
        assert {(chunk.actions.shape, chunk.execute) for chunk in chunks} == {((8, 7), 4)}
        with pytest.raises(RemoteError, match="failed: the weights are NaN"):
            policy.act([replace(seen(), instruction="break")])
        checks = check_policy(policy, LIBERO)
        assert all(check.passed for check in checks), checks
        with pytest.raises(RemoteError, match="answered without action"):
            foreign_policy(url, LIBERO).act(looks)


# -- commands ------------------------------------------------------------------------------------------------


@pytest.fixture
def contract_file(tmp_path: Path) -> Path:
    file = tmp_path / "contract.json"
    file.write_text(json.dumps(LIBERO.to_json()))
    return file


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@needing("openpi_server", "websockets")
def test_policy_check_of_an_openpi_server(openpi: str, contract_file: Path) -> None:
    done = command("policy", "check", openpi, "--contract", contract_file, "--execute", 5, "--calls", 2)
    assert done.exit_code == 0, done.output
    assert "ok   shapes: chunks of 10 steps, 5 of them executed" in done.output


def test_foreign_server_needs_a_contract_and_an_address(contract_file: Path) -> None:
    for name in ("score", "policy check"):
        done = command(*name.split(), "openpi://127.0.0.1:9")
        assert done.exit_code == 2
        assert "--contract" in done.output
        done = command(*name.split(), "openpi://127.0.0.1", "--contract", contract_file)
        assert done.exit_code == 2
        assert "must look like openpi://127.0.0.1:8000" in done.output
        done = command(*name.split(), "http://127.0.0.1:9", "--contract", contract_file)
        assert done.exit_code == 2
        assert "leave" in done.output


@needing("websockets")
def test_foreign_reference_keeps_layouts_apart(contract_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"openpi://127.0.0.1:{listening.getsockname()[1]}"
        assert is_foreign(url)
        refs = [
            resolve_policy(url, fingerprint="pi", foreign=ForeignOptions(str(contract_file), "", execute))
            for execute in (0, 5, 5)
        ]
    assert refs[0].fingerprint != refs[1].fingerprint == refs[2].fingerprint
    assert refs[1].fingerprint.startswith("pi.")
    assert refs[0].contract == LIBERO
    assert refs[1].reach(1) == refs[2].reach(1)
    with pytest.raises(PolicyRefError, match="no policy server answers"):
        resolve_policy(url, foreign=ForeignOptions(str(contract_file)))


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.sim
@pytest.mark.parametrize(
    ("scheme", "code", "package"),
    [("openpi", OPENPI, "openpi_server"), ("vla-eval", VLA_EVAL, "vla_eval")],
    ids=["openpi", "vla-eval"],
)
def test_foreign_server_is_scored(scheme: str, code: str, package: str, tmp_path: Path) -> None:
    if not find_spec(package) or not find_spec("websockets"):
        pytest.skip(f"needs {package} and websockets")
    from sim_workers.envs.robosuite import contract

    file, port = tmp_path / "contract.json", free_port()
    cameras = ("agentview", "robot0_eye_in_hand")
    file.write_text(json.dumps(contract(cameras, (64, 64), "fast").to_json()))
    named = ["--fingerprint", "shown", "--storage", str(tmp_path / "runs")]
    suite = ["--episodes", "2", "--horizon", "12", "--workers", "2"]
    with program(code, port):
        url = f"{scheme}://127.0.0.1:{port}"
        arguments = ["-m", "orchestrator", "score", url, "--contract", str(file), *named, *suite]
        first, again = run(*arguments), run(*arguments)
    assert first.returncode == 0, first.stderr
    assert "0/2 = 0.00" in first.stdout, first.stdout + first.stderr
    assert "nothing to play" in again.stdout, again.stdout + again.stderr
