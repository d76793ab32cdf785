"""Serves a checkpoint of pi0.5 with openpi's own policy over the project's HTTP protocol."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common.serve_job import ServeJob, serve_policy
from openpi.policies import policy_config
from pi05_setup import train_config, views

from policy.interface import ActionChunk, Contract, Observation


class Pi05Policy:
    """pi0.5 behind this project's interface."""

    def __init__(self, job: ServeJob) -> None:
        self.contract = Contract.from_json(job.contract)
        self._scene, self._hand = views(list(self.contract.cameras))
        self._execute = int(job.options["n_action_steps"])
        config = train_config(job.options, Path.cwd())
        self._noise = (config.model.action_horizon, config.model.action_dim)
        self._policy = policy_config.create_trained_policy(config, job.checkpoint / "openpi")

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation, of which `n_action_steps` are executed."""
        return [self._act(observation) for observation in observations]

    def _act(self, observation: Observation) -> ActionChunk:
        noise = np.random.default_rng(observation.noise_seed).standard_normal(self._noise, np.float32)
        inputs = {
            "observation/image": observation.images[self._scene],
            "observation/wrist_image": observation.images[self._hand],
            "observation/state": observation.proprio,
            "prompt": observation.instruction,
        }
        actions = np.asarray(self._policy.infer(inputs, noise=noise)["actions"], np.float32)
        return ActionChunk(actions, min(self._execute, len(actions)))


if __name__ == "__main__":
    job = ServeJob.read()
    serve_policy(job, Pi05Policy(job))
