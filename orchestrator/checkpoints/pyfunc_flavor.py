"""MLflow's Python function of a checkpoint: `mlflow.pyfunc.load_model("models:/...").predict(observations)`.

MLflow imports this module by the name in a logged model's files (`orchestrator.tracking.model_files`), so
demoscale's checkout must be on the path.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.checkpoints.external_card import is_external
from orchestrator.checkpoints.node_cache import cached_checkpoint
from orchestrator.tracking.model_files import PICTURE
from policy.checkpoint_files import CheckpointError
from policy.inference import TrainedPolicy
from policy.interface import Contract, Observation


class PyfuncPolicy:
    """A checkpoint's policy with the interface of MLflow's models."""

    def __init__(self, policy: TrainedPolicy) -> None:
        self._policy = policy

    @property
    def contract(self) -> Contract:
        """Conventions of the observations and actions."""
        return self._policy.contract

    def predict(
        self, model_input: Mapping[str, NDArray[Any]], params: Mapping[str, Any] | None = None
    ) -> NDArray[np.float32]:
        """Return the actions of N observations, (N, T, A) float32.

        model_input: `images.CAMERA` (N, H, W, 3) uint8 RGB for each camera, `proprio` (N, P) float32,
        `instruction` (N,) text. params: `noise_seed`, which seeds the noise of every observation; 0 by
        default.
        """
        seed = int((params or {}).get("noise_seed", 0))
        pictures = {
            camera: np.asarray(model_input[PICTURE.format(camera=camera)], np.uint8)
            for camera in self.contract.cameras
        }
        proprio = np.asarray(model_input["proprio"], np.float32)
        observations = [
            Observation(
                images={camera: own[row] for camera, own in pictures.items()},
                proprio=proprio[row],
                instruction=str(instruction),
                noise_seed=seed,
            )
            for row, instruction in enumerate(model_input["instruction"])
        ]
        return np.stack([chunk.actions for chunk in self._policy.act(observations)])


def _load_pyfunc(path: str) -> PyfuncPolicy:
    """Return the policy that a file with `uri` and `fingerprint` refers to; called by MLflow.

    Raises CheckpointError if the checkpoint is missing or another one, or belongs to an external policy.
    """
    reference = json.loads(Path(path).read_text())
    folder = cached_checkpoint(reference["uri"], reference["fingerprint"])
    if is_external(folder):
        raise CheckpointError(
            f"{reference['uri']}: a checkpoint of an external policy, which its own programs serve; score it"
            " with `demoscale score`"
        )
    return PyfuncPolicy(TrainedPolicy(folder))
