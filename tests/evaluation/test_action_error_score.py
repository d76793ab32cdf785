"""Action errors of a real checkpoint: deterministic, independent of the rest of the episodes, with a loss."""

import asyncio
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.data.episode_store import load_manifest
from orchestrator.data.subset import evaluation_episodes
from orchestrator.evaluation.action_error_ledger import ActionErrorLedger
from orchestrator.evaluation.action_error_score import ActionErrorBenchmark, ActionErrorScore
from orchestrator.storage.base import StorageError, open_storage
from orchestrator.testing.checkpoints import make_checkpoint
from orchestrator.testing.episodes import make_episode_store
from policy.interface import ActionChunk, Observation


@pytest.fixture(scope="module")
def test_of_store(tmp_path_factory: pytest.TempPathFactory) -> ActionErrorBenchmark:
    uri = make_episode_store(tmp_path_factory.mktemp("store"), 10)
    manifest = load_manifest(open_storage(uri))
    return ActionErrorBenchmark.of(uri, manifest, evaluation_episodes(manifest, 5))


@dataclass
class ServerClient:
    """The client of a policy server in this process, as `RayPolicyClient` is of one on Ray."""

    server: Any
    loop: Any
    key: CheckpointRef

    def _wait(self, answer: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(answer, self.loop).result()

    def act(self, observation: Observation) -> ActionChunk:
        return self._wait(self.server.act(self.key, observation))

    def loss(self, clips: Any, seed: int) -> float | None:
        return self._wait(self.server.loss(self.key, clips, seed))

    def clip(self) -> Any:
        return self._wait(self.server.clip(self.key))


def test_action_error_of_a_checkpoint_depends_on_its_episode_alone(
    test_of_store: ActionErrorBenchmark, tmp_path: Path
) -> None:
    from orchestrator.evaluation.policy_server import PolicyServer

    folder, loop = make_checkpoint(tmp_path / "tiny"), asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    clients = [
        ServerClient(PolicyServer(1, "cpu", "one_pass"), loop, CheckpointRef(str(folder))) for _ in range(2)
    ]
    together = test_of_store.measure(clients[0])
    assert [one.message for one in together] == [""] * 5
    alone = [
        replace(test_of_store, entries=(entry,)).measure(clients[1])[0] for entry in test_of_store.entries
    ]
    loop.call_soon_threadsafe(loop.stop)
    for one, other in zip(together, alone, strict=True):
        assert one.error
        assert other.error
        assert replace(one.error, policy_s=0) == replace(other.error, policy_s=0)
        assert one.error.loss
        assert one.error.loss > 0
    score = ActionErrorScore.of([one.error for one in together if one.error], 5)
    assert score.complete
    assert score.interval.low < score.mean < score.interval.high
    assert str(score).endswith(f"loss {score.loss:.3g}")


class Silent:
    def act(self, observation: Observation) -> ActionChunk:
        raise RuntimeError("no answer")


class Broken:
    def act(self, observation: Observation) -> ActionChunk:
        raise StorageError("the bucket is gone")


def test_policy_error_belongs_to_its_episode_and_a_storage_error_does_not(
    test_of_store: ActionErrorBenchmark,
) -> None:
    measured = test_of_store.measure(Silent())
    assert {one.message for one in measured} == {"no answer"}
    assert not any(one.error for one in measured)
    with pytest.raises(StorageError, match="the bucket is gone"):
        test_of_store.measure(Broken())


def test_ledger_keeps_the_first_measurement_and_seals_whole_lists(tmp_path: Path) -> None:
    from orchestrator.data.action_error import ActionError

    storage = open_storage(str(tmp_path))
    errors = [ActionError(f"e{i}", "Lift", 12, 3, 0.1 * i, (0.1 * i, None), 1.0, None, 0.5) for i in range(4)]
    ledger = ActionErrorLedger(storage, "c", "p")
    ledger.record(errors[:2])
    ledger.record([replace(error, error=9.0) for error in errors[:2]])
    ledger.record(errors[2:])
    assert ledger.read() == {error.episode: error for error in errors}
    assert ledger.seal(errors) == tuple(errors)
    assert ledger.seal([replace(error, error=9.0) for error in errors]) == tuple(errors)
    for part in storage.list("action_errors/c/p/"):
        (tmp_path / part).unlink()
    assert ActionErrorLedger(storage, "c", "p").read() == {error.episode: error for error in errors}
    assert ActionErrorLedger(storage, "c", "other").read() == {}
