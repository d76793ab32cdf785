"""A checkpoint is a folder that needs nothing else: weights, configuration, conventions, normalisation, provenance.

checkpoint.json        what the policy is and where it comes from
model.safetensors      the weights it acts with (their running average, when one is kept)
trainer.safetensors    what continuing the training needs besides; acting does not read it
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from policy.config import PolicyConfig
from policy.interface import Contract
from policy.model import VideoActionModel
from policy.stats import Stats

FORMAT = 1


class CheckpointError(Exception):
    """One sentence: which checkpoint, what is wrong with it, and the mend."""


@dataclass(frozen=True)
class Card:
    """Everything about a policy but its weights."""

    config: PolicyConfig
    contract: Contract
    action_stats: Stats
    proprio_stats: Stats
    provenance: dict[str, Any]
    """Arm, step, data fingerprint, exact episode ids, code version, package versions. Nothing that changes from run to run."""


def save(folder: Path, card: Card, weights: dict[str, Tensor], trainer: dict[str, Tensor]) -> None:
    """Write a checkpoint into an existing empty folder."""
    text = {
        "format": FORMAT,
        "config": card.config.model_dump(),
        "contract": card.contract.to_json(),
        "action_stats": card.action_stats.to_json(),
        "proprio_stats": card.proprio_stats.to_json(),
        "provenance": card.provenance,
    }
    (folder / "checkpoint.json").write_text(json.dumps(text, indent=1, sort_keys=True))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in trainer.items()}, folder / "trainer.safetensors")


def load(folder: Path) -> tuple[VideoActionModel, Card]:
    """The model with its weights, ready to act, and its card. CheckpointError for anything that is not a whole checkpoint."""
    card = load_card(folder)
    model = VideoActionModel(card.config, card.contract)
    try:
        model.load_state_dict(load_weights(folder))
    except RuntimeError:
        raise CheckpointError(f"{folder}: the weights in model.safetensors do not fit the model that checkpoint.json describes") from None
    return model.eval(), card


def load_card(folder: Path) -> Card:
    """The card alone, without the weights."""
    try:
        text = json.loads((folder / "checkpoint.json").read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no checkpoint.json, so this is not a checkpoint of ours") from None
    except ValueError:
        raise CheckpointError(f"{folder}: checkpoint.json is damaged; copy it again") from None
    if text.get("format") != FORMAT:
        raise CheckpointError(f"{folder}: checkpoint format {text.get('format')}, this version reads {FORMAT}")
    try:
        return Card(
            config=PolicyConfig.model_validate(text["config"]),
            contract=Contract.from_json(text["contract"]),
            action_stats=Stats.from_json(text["action_stats"]),
            proprio_stats=Stats.from_json(text["proprio_stats"]),
            provenance=text["provenance"],
        )
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"{folder}: checkpoint.json lacks or misstates a field ({type(error).__name__}: {error})") from None


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The acting weights by name."""
    return _tensors(folder / "model.safetensors")


def load_trainer(folder: Path) -> dict[str, Tensor]:
    """What `save` was given as `trainer`."""
    return _tensors(folder / "trainer.safetensors")


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent}: {file.name} is missing; copy the whole folder") from None
    except SafetensorError as error:
        raise CheckpointError(f"{file.parent}: {file.name} is damaged or cut short ({error}); copy it again") from None
    return tensors


def fingerprint(folder: Path) -> str:
    """Equal for policies that act equally: a hash of the card and the acting weights."""
    digest = hashlib.sha256()
    for name in ("checkpoint.json", "model.safetensors"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]
