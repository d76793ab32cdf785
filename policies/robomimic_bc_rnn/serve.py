"""Serves a checkpoint of robomimic's BC-RNN over the project's HTTP protocol, with a session for every
episode that is played.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common.serve_job import ServeJob, serve_policy
from robomimic.utils import file_utils
from train import MODEL

from policy.interface import ActionChunk, Contract, Observation
from policy.sessions import SessionStates


@dataclass
class Recurrence:
    """What robomimic's BC-RNN keeps between two steps of an episode."""

    hidden: Any = None
    """State of the LSTM; None before the first step."""
    steps: int = 0
    """Steps taken; robomimic starts the LSTM again every `algo.rnn.horizon` of them."""


class BcRnnPolicy:
    """BC-RNN behind this project's interface: one action at a time, from all observations of the last steps.

    Each observation is answered alone: a batch would change the rounding of its answer.
    """

    memory = True

    def __init__(self, checkpoint: Path, contract: Contract, device: str) -> None:
        policy, saved = file_utils.policy_from_checkpoint(
            torch.device(device), ckpt_path=str(checkpoint / MODEL)
        )
        policy.start_episode()
        self.contract = contract
        self._policy, self._algo = policy, policy.policy
        self._widths = {
            key: saved["shape_metadata"]["all_shapes"][key][0]
            for key in self._algo.global_config.observation.modalities.obs.low_dim
        }
        self._states: SessionStates[Recurrence] = SessionStates(lambda _: Recurrence())

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk of one action per observation, and advance the observations' sessions."""
        states = [self._states.of(observation) for observation in observations]
        return [self._act(*pair) for pair in zip(observations, states, strict=True)]

    def _act(self, observation: Observation, state: Recurrence) -> ActionChunk:
        torch.manual_seed(observation.noise_seed)  # the action is drawn from a mixture of Gaussians
        self._algo._rnn_hidden_state, self._algo._rnn_counter = state.hidden, state.steps
        with torch.inference_mode():
            action = self._policy(self._inputs(observation))
        state.hidden, state.steps = self._algo._rnn_hidden_state, self._algo._rnn_counter
        return ActionChunk(np.asarray(action, np.float32)[None], 1)

    def _inputs(self, observation: Observation) -> dict[str, Any]:
        """Return robomimic's observation: pictures (H, W, 3) as they are, and its vectors."""
        pictures = {f"{camera}_image": observation.images[camera] for camera in self.contract.cameras}
        ends = np.cumsum(list(self._widths.values()))
        vectors = np.split(observation.proprio, ends[:-1]) if self._widths else []
        return {**pictures, **dict(zip(self._widths, vectors, strict=True))}


if __name__ == "__main__":
    job = ServeJob.read()
    torch.set_num_threads(job.threads)
    serve_policy(job, BcRnnPolicy(job.checkpoint, Contract.from_json(job.contract), job.device))
