"""Adapter for a checkpoint in LeRobot's layout: config.json, model.safetensors and the processors' statistics
in files next to them.

    demoscale score examples.foreign_checkpoint:make --task Lift --episodes 20

The files, their names, keys and meaning are LeRobot's. The network is not: it is an untrained MLP of type
"waypoint_mlp". `write` computes it in closed form from `examples/waypoints.py`, so that the example needs no
download. For a real checkpoint keep `ForeignPolicy` and replace `Mlp` by the library's own class, such as
`ACTPolicy.from_pretrained(folder)`, in a process of the environment that has LeRobot installed, behind
`policy.http_server.serve`.

Every such adapter must define, because no file states it: the camera and the proprioceptive value of each
feature, the units, and the effect of an action. Here they are those of `CONTRACT`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from examples.waypoints import LOW, STEPS, waypoint
from policy.interface import ActionChunk, Observation
from sim_workers.envs.robosuite import contract

CONTRACT = contract((), (64, 64), "fast")
HIDDEN, EXAMPLES = 512, 20_000


class Mlp(nn.Sequential):
    """Network from state (B, P) to chunk (B, T * A), both normalised."""

    def __init__(self, state: int, chunk: int) -> None:
        super().__init__(nn.Linear(state, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, chunk))


class ForeignPolicy:
    """`Policy` of a folder in LeRobot's layout. Raises ValueError if its dimensions are not those of
    CONTRACT.
    """

    contract = CONTRACT

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        assert config["normalization_mapping"] == {"STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
        (state,), (action,) = (
            config["input_features"]["observation.state"]["shape"],
            config["output_features"]["action"]["shape"],
        )
        if (state, action) != (len(CONTRACT.proprio), len(CONTRACT.action)):
            raise ValueError(
                f"{folder}: a policy of {state} state values and {action} action dimensions; this robot has"
                " other ones"
            )
        self._shape, self._execute = (config["chunk_size"], action), config["n_action_steps"]
        self._model = Mlp(state, config["chunk_size"] * action)
        self._model.load_state_dict(load_file(folder / "model.safetensors"))
        # The statistics are not in the model's file: a policy with the weights alone runs, but fails at the
        # task.
        self._before = load_file(_only(folder, "policy_preprocessor_step_*_normalizer_processor.safetensors"))
        self._after = load_file(
            _only(folder, "policy_postprocessor_step_*_unnormalizer_processor.safetensors")
        )

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation."""
        # one by one: a batch's kernels may round differently
        return [self._one(observation) for observation in observations]

    @torch.inference_mode()
    def _one(self, observation: Observation) -> ActionChunk:
        state = (
            torch.from_numpy(observation.proprio) - self._before["observation.state.mean"]
        ) / self._before["observation.state.std"]
        actions = (
            self._model(state[None]).reshape(self._shape) * self._after["action.std"]
            + self._after["action.mean"]
        )
        return ActionChunk(actions.clamp(-1, 1).numpy(), self._execute)


def _only(folder: Path, pattern: str) -> Path:
    """Return the only file of a pattern: the number in the name is the step in the library's pipeline and
    differs between policies.
    """
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{folder} has {len(found)} files {pattern}; without its statistics the policy would act on the"
            " wrong scale"
        )
    return found[0]


def write(folder: Path) -> None:
    """Write a checkpoint that approximates the waypoints: random features, then a linear layer fitted by
    least squares.
    """
    rng = np.random.default_rng(0)
    half = EXAMPLES // 2
    anywhere = rng.uniform([-0.2, -0.1, 0.8], [0.1, 0.1, 1.05], (half, 3))
    over_the_middle = np.column_stack([rng.normal(0, 0.01, (half, 2)), rng.uniform(LOW - 0.01, 0.95, half)])
    hand = np.concatenate([anywhere, over_the_middle])
    fingers = rng.uniform(0.0, 0.04, (EXAMPLES, 1))
    turn = np.tile([1.0, 0.0, 0.0, 0.0], (EXAMPLES, 1)) + rng.normal(0, 0.01, (EXAMPLES, 4))
    states = np.concatenate([hand, turn, fingers, -fingers], 1).astype(np.float32)
    chunks = np.stack([waypoint(Observation({}, state, "", 0)).actions for state in states]).astype(
        np.float64
    )
    before = {"observation.state.mean": states.mean(0), "observation.state.std": states.std(0)}
    after = {"action.mean": chunks.mean((0, 1)), "action.std": chunks.std((0, 1)) + 1e-3}
    inputs = (states - before["observation.state.mean"]) / before["observation.state.std"]
    outputs = ((chunks - after["action.mean"]) / after["action.std"]).reshape(EXAMPLES, -1)
    weight, bias = rng.standard_normal((HIDDEN, states.shape[1])), rng.standard_normal(HIDDEN)
    weight[:, 3:7] = 0.0  # the hand's orientation does not matter
    features = np.column_stack([np.maximum(inputs @ weight.T + bias, 0), np.ones(EXAMPLES)])
    last = np.linalg.lstsq(features, outputs, rcond=None)[0]

    def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:  # type: ignore[type-arg]
        return {
            name: torch.from_numpy(np.ascontiguousarray(array, np.float32)) for name, array in arrays.items()
        }

    save_file(
        tensors({"0.weight": weight, "0.bias": bias, "2.weight": last[:-1].T, "2.bias": last[-1]}),
        folder / "model.safetensors",
    )
    save_file(tensors(before), folder / "policy_preprocessor_step_3_normalizer_processor.safetensors")
    save_file(tensors(after), folder / "policy_postprocessor_step_0_unnormalizer_processor.safetensors")
    config = {
        "type": "waypoint_mlp",
        "input_features": {"observation.state": {"type": "STATE", "shape": [states.shape[1]]}},
        "output_features": {"action": {"type": "ACTION", "shape": [chunks.shape[2]]}},
        "normalization_mapping": {"STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
        "chunk_size": STEPS,
        "n_action_steps": STEPS,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def make() -> ForeignPolicy:
    """Return the policy of a temporary checkpoint; for an existing one use ForeignPolicy(Path(...))."""
    with TemporaryDirectory() as folder:
        write(Path(folder))
        return ForeignPolicy(Path(folder))
