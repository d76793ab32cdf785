"""A checkpoint of an external policy, served by its own program inside the policy server."""

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from external_policies import SERVES, make_job, make_policy
from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.evaluation import policy_server as module
from orchestrator.evaluation.policy_ref import PolicyRefError, resolve_policy
from orchestrator.evaluation.policy_server import PolicyServer
from orchestrator.evaluation.ray_actors import needs_of_checkpoint
from orchestrator.external.command import CommandError
from orchestrator.external.fit import run_training
from orchestrator.storage.base import open_storage
from orchestrator.testing.checkpoints import make_checkpoint, make_observation
from orchestrator.testing.episodes import CONTRACT
from policy.checkpoint_files import CheckpointError, fingerprint
from policy.interface import PRESENT_ONLY, ActionChunk, PolicyNeeds

Make = Callable[..., list[CheckpointRef]]


@pytest.fixture
def make(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a factory of the checkpoints of steps 2, 4 and 6 of a policy with this serving program."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # of the node's caches

    def make(serve: str = SERVES, manifest: str = "") -> list[CheckpointRef]:
        policy = make_policy(tmp_path / "policies" / "counter", serve=serve, manifest=manifest)
        job, found = make_job(policy, store, tmp_path / "runs"), list[CheckpointRef]()
        arms = open_storage(str(tmp_path / "runs" / "arms"))

        def on_report(report: Any) -> None:
            if report.checkpoint:
                place = f"{arms.uri}/{job.arm_id}/step_{report.step:06d}"
                found.append(CheckpointRef(place, report.checkpoint))

        run_training(job, arms, {"CPU": 1.0}, on_report)
        return found

    return make


def server() -> PolicyServer:
    return PolicyServer(1, "cpu")


def act(server: PolicyServer, *checkpoints: CheckpointRef) -> list[ActionChunk]:
    """Ask for one observation of each checkpoint at once."""

    async def ask() -> list[ActionChunk]:
        asked = [server.act(one, make_observation(seed)) for seed, one in enumerate(checkpoints)]
        return list(await asyncio.gather(*asked))

    return asyncio.run(ask())


def programs() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "serve.py" in " ".join(process.cmdline()) and "guard.py" not in " ".join(process.cmdline())
    ]


def close(server: PolicyServer) -> None:
    for policy in server._policies.values():
        module._unload(policy)


def test_policy_server_asks_one_program_per_checkpoint_and_ends_those_it_evicts(make: Make) -> None:
    first, second, third = make()
    serving = server()
    try:
        chunks = act(serving, first, second, first, first)
        assert [chunk.actions[0, 0] for chunk in chunks] == pytest.approx([0.02, 0.04, 0.02, 0.02])
        assert (chunks[0].actions.shape, chunks[0].execute) == ((2, 7), 2)
        assert len(programs()) == 2
        assert act(serving, third)[0].actions[0, 0] == pytest.approx(0.06)
        assert len(programs()) == 2, "two are kept"
        assert [*serving._policies] == [second, third]
    finally:
        close(serving)
    assert not programs()


def test_program_that_dies_is_named_and_started_again(make: Make) -> None:
    (first, *_) = make()
    serving = server()
    try:
        act(serving, first)
        programs()[0].kill()
        with pytest.raises(
            CommandError, match=r"counter: its server failed to answer: it ended with exit code -9"
        ):
            act(serving, first)
        assert act(serving, first)[0].actions[0, 0] == pytest.approx(0.02)
        assert len(programs()) == 1
    finally:
        close(serving)


@pytest.mark.parametrize(
    ("serve", "manifest", "said"),
    [
        (
            "sys.exit(3)",
            "",
            r"its server ended with exit code 1 before it answered; its log ends: .*NameError",
        ),
        (
            "import time; time.sleep(600)",
            "limits: {start_s: 2}",
            r"its server did not listen on its port within 2 s; its log ends: serving step 2$",
        ),
        (
            'Constant.contract = Contract(**{**vars(Constant.contract), "cameras": ("other",)})\n' + SERVES,
            "",
            r"its server states another contract than its checkpoint has \(cameras, in order: .*other",
        ),
        (
            SERVES,
            "memory: true",
            r"its server states memory False and observation_steps 1, its policy.yaml True and 1",
        ),
        (
            "import http.server; http.server.HTTPServer((job['host'], job['port']),"
            " http.server.SimpleHTTPRequestHandler).serve_forever()",
            "",
            r"its server is no policy server: .* refused \(404\)",
        ),
    ],
)
def test_program_that_does_not_serve_is_named_and_not_started_at_once_again(
    serve: str, manifest: str, said: str, make: Make
) -> None:
    (first, *_) = make(serve, manifest)
    serving = server()
    with pytest.raises(CommandError) as raised:
        act(serving, first)
    assert re.search(f"counter: {said}", str(raised.value)), raised.value
    assert "\n" not in str(raised.value)
    assert not programs()
    began = time.monotonic()
    with pytest.raises(CommandError):
        act(serving, first)
    assert time.monotonic() - began < 0.5


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import time; time.sleep(600)", r"did not answer within 1 s; its log ends: serving step 2$"),
        (
            "return [ActionChunk(np.zeros((2, 3), np.float32), 1) for _ in observations]",
            r"refused \(500\): .*actions",
        ),
        ("raise ValueError('no such camera')", r"refused \(500\): ValueError: no such camera"),
    ],
)
def test_answer_that_is_late_or_wrong_is_named_and_other_policies_go_on(
    body: str, said: str, make: Make
) -> None:
    act_ = f"def act(self, observations):\n    {body}\nif weights['step'] == 2: Constant.act = act\n"
    first, second, _ = make(act_ + SERVES)
    serving = server()
    try:
        serving._loaded(first)._remote._timeout_s = 1.0
        with pytest.raises(CommandError) as raised:
            act(serving, first)
        assert re.search(f"counter: its server failed to answer: .*{said}", str(raised.value)), raised.value
        assert act(serving, second)[0].actions[0, 0] == pytest.approx(0.04)
    finally:
        close(serving)


def test_checkpoint_without_a_known_fingerprint_runs_no_program(make: Make) -> None:
    (first, *_) = make()
    with pytest.raises(CheckpointError, match="served by programs of its own, which are run only for"):
        act(server(), CheckpointRef(first.uri))
    assert not programs()
    Path(first.uri, "policy", "serve.py").write_text("print('malice')")
    with pytest.raises(CheckpointError, match="has the fingerprint"):
        act(server(), first)


def test_score_of_a_checkpoint_runs_its_programs_only_if_they_may(make: Make) -> None:
    (first, *_) = make()
    with pytest.raises(
        PolicyRefError, match=r"a checkpoint of the policy counter, .* add --run-programs if they may"
    ):
        resolve_policy(first.uri)
    found = resolve_policy(first.uri, run_programs=True)
    assert (found.contract, found.fingerprint, found.sampler) == (CONTRACT, first.fingerprint, None)
    Path(first.uri, "weights", "weights.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not those that it was stored with"):
        resolve_policy(first.uri, run_programs=True)


def test_needs_of_a_checkpoint_are_those_of_its_manifest(make: Make, tmp_path: Path) -> None:
    (first, *_) = make(manifest="memory: true\nobservation_steps: 2\n")
    assert needs_of_checkpoint(first) == PolicyNeeds(True, 2)
    assert needs_of_checkpoint(CheckpointRef(str(make_checkpoint(tmp_path / "ours")))) == PRESENT_ONLY


def test_own_checkpoint_and_an_external_one_on_one_server(make: Make, tmp_path: Path) -> None:
    (first, *_) = make()
    folder = make_checkpoint(tmp_path / "ours")
    ours = CheckpointRef(str(folder), fingerprint(folder))
    serving = server()
    try:
        external, own = act(serving, first, ours)
        assert external.actions[0, 0] == pytest.approx(0.02)
        assert own.actions.shape[1] == len(CONTRACT.action)
        assert np.isfinite(own.actions).all()
    finally:
        close(serving)
