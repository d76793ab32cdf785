"""Files of a logged model, with which `mlflow.pyfunc.load_model` loads the checkpoint that it refers to.

MLmodel               flavor, signature, and as metadata the policy's contract
checkpoint.json       URI and fingerprint of the checkpoint, whose weights stay where they are
input_example.json    one observation with black pictures

The flavor is `orchestrator.checkpoints.pyfunc_flavor`. The format is that of MLflow's documentation, "MLflow
Model Storage Format" and "Model Signatures".
"""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import yaml

LOADER = "orchestrator.checkpoints.pyfunc_flavor"
REFERENCE, EXAMPLE = "checkpoint.json", "input_example.json"
"""Names of files, as above."""
PICTURE = "images.{camera}"
"""Name of a camera's pictures among the model's inputs."""


def model_files(
    model_id: str,
    run_id: str,
    contract: Mapping[str, Any],
    reference: Mapping[str, str],
    *,
    example: bool,
) -> dict[str, bytes]:
    """Return the files of a logged model by name.

    contract: `Contract.to_json`. reference: content of checkpoint.json, with the keys uri and fingerprint.
    example: whether to add the input example, whose size grows with the pictures.
    """
    card = {
        "artifact_path": f"models:/{model_id}",
        "flavors": {
            "python_function": {
                "data": REFERENCE,
                "loader_module": LOADER,
                "python_version": platform.python_version(),
            }
        },
        "metadata": {"checkpoint": dict(reference), "contract": _plain(contract)},
        "mlflow_version": version("mlflow"),
        "model_id": model_id,
        "model_uuid": model_id,
        "run_id": run_id,
        "signature": _signature(contract),
    }
    files = {REFERENCE: json.dumps(dict(reference)).encode()}
    if example:
        card["saved_input_example_info"] = {"artifact_path": EXAMPLE, "type": "ndarray"}
        files[EXAMPLE] = json.dumps(_example(contract), separators=(",", ":")).encode()
    return files | {"MLmodel": yaml.safe_dump(card).encode()}


def _signature(contract: Mapping[str, Any]) -> dict[str, str]:
    """Return MLflow's signature: N observations to N action chunks."""
    inputs = [
        *(
            _tensor(PICTURE.format(camera=camera), "uint8", *contract["image_size"], 3)
            for camera in contract["cameras"]
        ),
        _tensor("proprio", "float32", len(contract["proprio"])),
        _tensor("instruction", "str"),
    ]
    outputs = [_tensor(None, "float32", -1, len(contract["action"]))]
    seed = {"name": "noise_seed", "type": "long", "default": 0, "shape": None}
    return {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs), "params": json.dumps([seed])}


def _tensor(name: str | None, dtype: str, *shape: int) -> dict[str, Any]:
    named = {} if name is None else {"name": name}
    return {**named, "type": "tensor", "tensor-spec": {"dtype": dtype, "shape": [-1, *shape]}}


def _example(contract: Mapping[str, Any]) -> dict[str, Any]:
    height, width = contract["image_size"]
    black = [[[[0, 0, 0]] * width] * height]
    return {
        **{PICTURE.format(camera=camera): black for camera in contract["cameras"]},
        "proprio": [[0.0] * len(contract["proprio"])],
        "instruction": ["do the task"],
    }


def _plain(contract: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contract with lists in place of tuples, which YAML has no plain form for."""
    plain: dict[str, Any] = json.loads(json.dumps(contract))
    return plain
