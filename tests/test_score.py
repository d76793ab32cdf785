"""The policy server: many askers, one network, and nobody's answer depends on the others."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.server import PolicyServer
from policy.checkpoint import save
from policy.model import VideoActionModel
from policy.serve import TrainedPolicy
from test_policy import CONTRACT, TINY, card, look


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = VideoActionModel(TINY, CONTRACT)
    save(tmp_path, card(), model, model.state_dict(), {})
    return tmp_path


def test_askers_at_once_share_a_batch_and_get_the_answers_they_would_get_alone(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    act = TrainedPolicy.act
    monkeypatch.setattr(TrainedPolicy, "act", lambda self, observations: sizes.append(len(observations)) or act(self, observations))
    looks = [look(seed) for seed in range(6)]

    async def ask() -> list[np.ndarray]:  # type: ignore[type-arg]
        server = PolicyServer(1, "cpu")
        return [chunk.actions for chunk in await asyncio.gather(*(server.act(str(checkpoint), one) for one in looks))]

    together = asyncio.run(ask())
    assert max(sizes) > 1, "nothing was batched"
    assert sum(sizes) == len(looks)
    alone = [act(TrainedPolicy(checkpoint), [one])[0].actions for one in looks]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))


def test_a_checkpoint_that_cannot_be_loaded_is_told_to_whoever_asked_and_the_server_lives_on(checkpoint: Path, tmp_path: Path) -> None:
    async def ask() -> None:
        server = PolicyServer(1, "cpu")
        with pytest.raises(Exception, match="not a checkpoint of ours"):
            await server.act(str(tmp_path / "nothing"), look(0))
        assert (await server.act(str(checkpoint), look(0))).actions.shape == (8, 7)

    asyncio.run(ask())
