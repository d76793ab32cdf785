"""Training workers that share a model through Ray Train and a sweep, and what of it is in a key."""

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import CHECKOUT, run

from orchestrator.config.schema import Train
from orchestrator.testing.episodes import make_episode_store
from policy.checkpoint import load, load_card, load_trainer


def train(workers: int, sharding: str) -> Train:
    return Train(steps=4, checkpoint_every=2, batch_size=4, workers=workers, sharding=sharding)


@pytest.mark.parametrize(("workers", "differs"), [(1, False), (2, True)])
def test_sharding_is_in_the_key_where_workers_share_a_model(workers: int, differs: bool) -> None:
    own, other = train(workers, "ddp"), train(workers, "fsdp")
    assert (own.shaping() != other.shaping()) is differs
    assert (own.recorded() != other.recorded()) is differs
    assert own.shaping()["sharding"] == "ddp"
    assert other.shards is differs


@pytest.mark.stress
@pytest.mark.ray
def test_sweep_with_a_model_shared_by_two_nodes_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    """Each node has one core, of which a worker claims more than a half, so that no node has both workers."""
    store, folder = make_episode_store(tmp_path / "store", 6), tmp_path / "runs"
    script = str(CHECKOUT / "tests" / "helpers" / "two_node_sweep.py")
    done = run(script, store, str(folder), env=os.environ | {"PYTHONPATH": str(CHECKOUT)})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert 0.5 < told["claims"]["CPU"] <= 1
    first, second = told["runs"]
    assert first["arm"] == second["arm"]
    assert (first["state"], second["state"]) == ("scored", "scored")
    assert first["written"].keys() == {"step_000002"}
    assert second["written"].keys() == {"step_000002", "step_000004"}
    assert second["written"]["step_000002"] == first["written"]["step_000002"], "training resumed after it"
    checkpoint = folder / "arms" / second["arm"] / "step_000004"
    model, card = load(checkpoint)
    assert card.provenance["train"]["sharding"] == "fsdp"
    assert card.provenance["train"]["precision"] == "bf16"
    assert card.provenance["clips_with_actions"] == 4 * 2, "of one worker, in both runs"
    assert load_card(checkpoint.parent / "step_000002").provenance["step"] == 2
    state = load_trainer(checkpoint)
    whole = {name: tensor.shape for name, tensor in model.state_dict().items()}
    kept = {
        name.removeprefix("model/"): tensor.shape
        for name, tensor in state.items()
        if name.startswith("model/")
    }
    assert kept == {name: whole[name] for name in kept}, "weights are gathered before they are saved"
    assert kept.keys() == {name for name, _ in model.named_parameters()}
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
