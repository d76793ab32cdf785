"""Untrained checkpoints of the `tiny` preset, and inputs for them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from orchestrator.testing.episodes import CAMERA, CONTRACT
from policy.batch import Batch
from policy.checkpoint import Card, new_model, save
from policy.config import VIDEO_ACTION, PolicyConfig
from policy.feature_stats import Stats
from policy.interface import Contract, Observation
from policy.model import VideoActionModel
from policy.presets import PRESETS, policy_config

TINY = PRESETS["tiny"]
INSTRUCTION = "lift the red cube"


def make_card(policy: str = VIDEO_ACTION) -> Card:
    """Return the card of a `tiny` checkpoint under `CONTRACT`, with statistics of random numbers."""
    action, proprio = (
        Stats.of(np.random.default_rng(seed).normal(size=(20, width))) for seed, width in ((0, 7), (1, 9))
    )
    return Card(policy_config("tiny", policy), CONTRACT, action, proprio, {"step": 3, "demos": ["a"]})


def make_checkpoint(
    folder: Path,
    config: PolicyConfig = TINY,
    contract: Contract = CONTRACT,
    weights: Path | None = None,
    sentences: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write an untrained checkpoint into the new folder `folder`; return its path.

    The weights are a function of the arguments. Sets torch's global seed, and its number of threads to one.

    Args:
        folder: created, with its parents; raises FileExistsError if it exists.
        config: configuration of the policy.
        contract: conventions, with 7 action dimensions, 9 proprioceptive values and any cameras.
        weights: folder of the autoencoder and the text tower, for a configuration that needs them.
        sentences: embeddings by sentence, each (cross-attention width,): those of the text tower if `weights`
            has one.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    card = make_card()
    model = new_model(config, contract, weights, sentences)
    if weights and isinstance(model, VideoActionModel):
        model.sentences.load()
    folder.mkdir(parents=True)
    save(
        folder,
        Card(config, contract, card.action_stats, card.proprio_stats, card.provenance, model.needs),
        model,
        model.state_dict(),
        {},
    )
    return folder


def make_batch(size: int = 3, views: int = 1) -> Batch:
    """Return `size` random labelled clips for the `tiny` preset under `CONTRACT`; a function of the size and
    the number of views.
    """
    generator = torch.Generator().manual_seed(size)
    k, t = TINY.clip.frames_per_view, TINY.clip.horizon
    return Batch(
        frames=torch.randint(0, 256, (size, views, k, 64, 64, 3), generator=generator, dtype=torch.uint8),
        proprio=torch.randn(size, 9, generator=generator),
        actions=torch.randn(size, t, 7, generator=generator),
        action_mask=torch.ones(size, t),
        frame_mask=torch.ones(size, k),
        instructions=[INSTRUCTION] * size,
        seeds=list(range(size)),
    )


def make_observation(seed: int) -> Observation:
    """Return a random observation under `CONTRACT`, whose noise seed is `seed`."""
    rng = np.random.default_rng(seed)
    return Observation(
        {CAMERA: rng.integers(0, 256, (64, 64, 3), np.uint8)},
        rng.normal(size=9).astype(np.float32),
        INSTRUCTION,
        seed,
    )
