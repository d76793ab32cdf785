"""Serves a checkpoint of the policy."""

from collections.abc import Sequence

import numpy as np
from common.serve_job import ServeJob, serve_policy

from policy.interface import ActionChunk, Contract, Observation


class Linear:
    """The policy of one checkpoint."""

    def __init__(self, job: ServeJob) -> None:
        self.contract = Contract.from_json(job.contract)
        self._chunk, self._execute = job.options["chunk"], job.options["execute"]
        with np.load(job.checkpoint / "weights.npz") as stored:
            self._weights, self._mean, self._std = (stored[name] for name in ("weights", "mean", "std"))

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk of actions (chunk, A) per observation."""
        return [self._act(observation) for observation in observations]

    def _act(self, observation: Observation) -> ActionChunk:
        inputs = np.append((observation.proprio - self._mean) / self._std, 1.0)
        actions = (inputs @ self._weights).reshape(self._chunk, -1)
        return ActionChunk(actions.clip(-1, 1).astype(np.float32), self._execute)


if __name__ == "__main__":
    job = ServeJob.read()
    serve_policy(job, Linear(job))
