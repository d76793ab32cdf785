"""Serves a checkpoint of a LeRobot policy over the project's HTTP protocol."""

import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from common.serve_job import ServeJob, serve_policy, with_history
from lerobot.configs import PreTrainedConfig
from lerobot.policies import get_policy_class, make_pre_post_processors
from lerobot.utils.constants import PRETRAINED_MODEL_DIR

from policy.interface import ActionChunk, Contract, Observation


class LerobotPolicy:
    """A policy of LeRobot behind this project's interface; it keeps no memory between calls.

    Each observation is answered alone: a batch would change the rounding of its answer.
    """

    memory = False

    def __init__(self, kind: str, checkpoint: Path, contract: Contract, device: str) -> None:
        weights = checkpoint / PRETRAINED_MODEL_DIR
        config = PreTrainedConfig.from_pretrained(weights)
        config.device = device
        self.contract = contract
        self.observation_steps: int = config.n_obs_steps
        self._has_time = config.observation_delta_indices is not None
        self._execute: int = config.n_action_steps
        self._policy = get_policy_class(kind).from_pretrained(weights, config=config).to(device).eval()
        self._before, self._after = make_pre_post_processors(
            config,
            pretrained_path=str(weights),
            preprocessor_overrides={"device_processor": {"device": device}},
        )

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation, of which `n_action_steps` are executed."""
        return [self._act(observation) for observation in observations]

    def _act(self, observation: Observation) -> ActionChunk:
        # not select_action, whose queue of actions would be one for all episodes
        torch.manual_seed(observation.noise_seed)
        with torch.inference_mode():
            chunk = self._policy.predict_action_chunk(self._before(self._batch(observation)))
            actions = self._after(chunk)[0]
        return ActionChunk(actions.cpu().numpy().astype(np.float32), min(self._execute, len(actions)))

    def _batch(self, observation: Observation) -> dict[str, torch.Tensor | list[str]]:
        """Return LeRobot's batch of one: pictures (1, C, H, W) in 0 to 1 and the state (1, P), with the
        control steps as second dimension if the policy is trained with one.
        """
        seen = with_history(observation, self.observation_steps)
        batch: dict[str, torch.Tensor | list[str]] = {
            f"observation.images.{camera}": self._stacked(
                [torch.from_numpy(one.images[camera].copy()).permute(2, 0, 1) / 255 for one in seen]
            )
            for camera in self.contract.cameras
        }
        if self.contract.proprio:
            batch["observation.state"] = self._stacked([torch.from_numpy(one.proprio.copy()) for one in seen])
        return {**batch, "task": [observation.instruction]}

    def _stacked(self, values: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(values)[None] if self._has_time else values[-1][None]


def serve_checkpoint(kind: str) -> None:
    """Serve the checkpoint of this process's job until it is ended."""
    job = ServeJob.read()
    torch.set_num_threads(job.threads)
    contract = Contract.from_json(job.contract)
    serve_policy(job, LerobotPolicy(kind, job.checkpoint, contract, job.device))
