"""A checkpoint is a folder that needs nothing else: weights, configuration, conventions, normalisation, provenance.

checkpoint.json        what the policy is and where it comes from
unet/                  the video model, as diffusers keeps it: UNetSpatioTemporalConditionModel.from_pretrained(folder, subfolder="unet")
vae/                   the autoencoder of a policy that has one, likewise
heads.safetensors      the rest of what acts; a video model of stage 1 has none
text.safetensors       the vectors of the sentences it was trained with, where a download made them
trainer.safetensors    what continuing the training needs besides; acting does not read it

Weights are those that act: their running average, when one is kept.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from policy.config import PolicyConfig
from policy.diffusion_policy import DiffusionPolicy
from policy.errors import DemoscaleError
from policy.feature_stats import Stats
from policy.interface import Contract
from policy.latent_codec import VaeLatents
from policy.model import VideoActionModel
from policy.untrusted import printable, read_json
from policy.weights import WeightsError

FORMAT = 2
CARD_BYTES = 32 << 20
"""Size limit of checkpoint.json; the ids of a million episodes fit."""
UNET, UNET_WEIGHTS = "video.unet.", "unet/diffusion_pytorch_model.safetensors"
Model = VideoActionModel | DiffusionPolicy


class CheckpointError(DemoscaleError):
    """One sentence: which checkpoint, what is wrong with it, and the fix."""


@dataclass(frozen=True)
class Card:
    """Everything about a policy but its weights."""

    config: PolicyConfig
    contract: Contract
    action_stats: Stats | None
    """None of a video model, which meets no actions; likewise proprioception."""
    proprio_stats: Stats | None
    provenance: dict[str, Any]
    """Arm, step, data fingerprint, exact episode ids, code version, package versions. Nothing that changes from run to run."""


def new_model(
    config: PolicyConfig, contract: Contract, weights: str | Path | None = None, known_sentences: Mapping[str, Tensor] | None = None
) -> Model:
    """The untrained network of a configuration; `weights` has the autoencoder and the text tower of one that needs them."""
    return VideoActionModel(config, contract, weights, known_sentences) if config.video else DiffusionPolicy(config, contract)


def known_sentences(folder: Path) -> dict[str, Tensor]:
    """Sentences embedded before, if a checkpoint or a folder of weights keeps any."""
    return _tensors(folder / "text.safetensors") if (folder / "text.safetensors").is_file() else {}


def save(folder: Path, card: Card, model: Model, weights: dict[str, Tensor], trainer: dict[str, Tensor]) -> None:
    """Write a checkpoint into an existing empty folder: `weights` by the model's names, whole; those of a video model may stand alone."""
    text = {
        "format": FORMAT,
        "config": card.config.model_dump(),
        "contract": card.contract.to_json(),
        "action_stats": card.action_stats and card.action_stats.to_json(),
        "proprio_stats": card.proprio_stats and card.proprio_stats.to_json(),
        "provenance": card.provenance,
    }
    (folder / "checkpoint.json").write_text(json.dumps(text, indent=1, sort_keys=True))
    heads = {name: tensor.contiguous() for name, tensor in weights.items() if not name.startswith(UNET)}
    if isinstance(model, VideoActionModel):
        model.video.unet.save_config(folder / "unet")
        unet = {name.removeprefix(UNET): tensor.contiguous() for name, tensor in weights.items() if name.startswith(UNET)}
        save_file(unet, folder / UNET_WEIGHTS, {"format": "pt"})
        if isinstance(model.codec, VaeLatents) and model.codec.vae:
            model.codec.vae.save_pretrained(folder / "vae")
        if model.sentences.known:
            save_file({sentence: token.contiguous() for sentence, token in model.sentences.known.items()}, folder / "text.safetensors")
    if heads:
        save_file(heads, folder / "heads.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in trainer.items()}, folder / "trainer.safetensors")


def load(folder: Path) -> tuple[Model, Card]:
    """The model with its weights, ready to act, and its card. CheckpointError for anything that is not a whole checkpoint."""
    card = load_card(folder)
    if card.provenance.get("objective") == "video":
        raise CheckpointError(f"{folder}: a video model alone, which imagines and cannot act; train an action head on it (train.mode: two_stage)")
    _refuse_misfit(folder, card)
    weights = load_weights(folder)
    if odd := next((name for name, tensor in weights.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()), None):
        raise CheckpointError(f"{folder}: the weights of {odd} hold a value that is not finite; train the policy again")
    try:
        model = new_model(card.config, card.contract, folder, known_sentences(folder))
        model.load_state_dict(weights)
    except WeightsError as error:
        raise CheckpointError(str(error)) from None
    except RuntimeError:
        raise CheckpointError(f"{folder}: the weights do not fit the model that checkpoint.json describes") from None
    return model.eval(), card


def _refuse_misfit(folder: Path, card: Card) -> None:
    """CheckpointError if the weights have other names or shapes than the configured model; before memory is allocated for either.

    The shapes come from the headers of the weight files, whose sizes safetensors compares with those of the files, and from a model on the
    meta device, which has shapes and no values. Its layers are counted first: each takes memory even there.
    """
    announced = _announced(folder / "heads.safetensors")
    if card.config.video is not None:
        announced |= {UNET + name: shape for name, shape in _announced(folder / UNET_WEIGHTS).items()}
    unfit = f"{folder}: the weights do not fit the model that checkpoint.json describes"
    if (layers := _layers(card)) > len(announced):
        raise CheckpointError(f"{unfit}: it has {layers} layers or more, the weights {len(announced)} tensors")
    try:
        with torch.device("meta"):
            wanted = {name: tuple(tensor.shape) for name, tensor in new_model(card.config, card.contract).state_dict().items()}
    except Exception as error:  # what diffusers and torch say of widths that cannot be connected
        said = printable(" ".join(str(error).split()), 200)
        raise CheckpointError(f"{folder}: no model can be built as checkpoint.json describes it ({type(error).__name__}: {said})") from None
    if lacking := wanted.keys() - announced.keys():
        raise CheckpointError(f"{unfit}: {min(lacking)} is missing")
    if unknown := announced.keys() - wanted.keys():
        raise CheckpointError(f"{unfit}: it has no {printable(min(unknown), 100)}")
    if odd := next((name for name, shape in wanted.items() if shape != announced[name]), None):
        raise CheckpointError(f"{unfit}: {odd} is {announced[odd]}, the model's is {wanted[odd]}")


def _layers(card: Card) -> int:
    """A lower bound of the number of a model's layers that have weights; arithmetic alone."""
    config, cameras = card.config, len(card.contract.cameras)
    layers = len(config.action.down_dims)
    if config.images:
        layers += cameras * len(config.images.channels)
    if config.adaptor:
        layers += cameras * sum(stage.blocks * (2 if stage.joins else 1) for stage in config.adaptor.branch)
        layers += sum(stage.blocks for stage in config.adaptor.trunk)
    if config.video:
        layers += len(config.video.block_out_channels) * config.video.layers_per_block
    return layers


def load_card(folder: Path) -> Card:
    """The card alone, without the weights; CheckpointError if it is not whole, or holds what no policy of this project has."""
    try:
        with (folder / "checkpoint.json").open("rb") as file:
            text = read_json(file.read(CARD_BYTES + 1), CARD_BYTES)
    except (FileNotFoundError, IsADirectoryError):
        raise CheckpointError(f"{folder}: no checkpoint.json, so this is not a checkpoint of ours") from None
    except ValueError as error:
        raise CheckpointError(f"{folder}: checkpoint.json is damaged; copy it again ({error})") from None
    try:
        if text.get("format") != FORMAT:
            raise CheckpointError(f"{folder}: checkpoint format {printable(str(text.get('format')), 40)}, this version reads {FORMAT}")
        card = Card(
            config=PolicyConfig.model_validate(text["config"]),
            contract=Contract.from_json(text["contract"]),
            action_stats=None if text["action_stats"] is None else Stats.from_json(text["action_stats"]),
            proprio_stats=None if text["proprio_stats"] is None else Stats.from_json(text["proprio_stats"]),
            provenance=text["provenance"],
        )
        if problem := _problem(card):
            raise ValueError(problem)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        said = printable(f"config.{'.'.join(map(str, first['loc']))}: {first['msg']}", 300)
        raise CheckpointError(f"{folder}: checkpoint.json lacks or misstates a field (ValidationError: {said})") from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # JSON, but not of this form
        said = printable(str(error), 300)
        raise CheckpointError(f"{folder}: checkpoint.json lacks or misstates a field ({type(error).__name__}: {said})") from None
    return card


def _problem(card: Card) -> str:
    """What of a card contradicts the rest of it; empty if nothing does."""
    if not isinstance(card.provenance, dict):
        return "provenance must be an object"
    if not card.contract.action:
        return "contract.action is empty"
    if not card.contract.cameras:
        return "contract.cameras is empty; a policy sees at least one"
    for name, stats, layout in (("action", card.action_stats, card.contract.action), ("proprio", card.proprio_stats, card.contract.proprio)):
        if stats is None:
            if card.provenance.get("objective") != "video":
                return f"{name}_stats is missing; only a video model alone has none"
        elif len(stats.mean) != len(layout):
            return f"{name}_stats has {len(stats.mean)} dimensions, contract.{name} {len(layout)}"
    return ""


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The acting weights by name; of a video model, the U-Net's alone."""
    card = load_card(folder)
    weights = {} if card.config.video is None else {UNET + name: tensor for name, tensor in _tensors(folder / UNET_WEIGHTS).items()}
    alone = card.provenance.get("objective") == "video"
    return weights if alone else weights | _tensors(folder / "heads.safetensors")


def load_trainer(folder: Path) -> dict[str, Tensor]:
    """What `save` was given as `trainer`."""
    return _tensors(folder / "trainer.safetensors")


def _announced(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes that a file of weights announces, by name; no values are read."""
    try:
        with safe_open(file, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118  not a dictionary
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent}: {file.name} is missing; copy the whole folder") from None
    except SafetensorError as error:
        raise CheckpointError(f"{file.parent}: {file.name} is damaged or cut short ({error}); copy it again") from None


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent}: {file.name} is missing; copy the whole folder") from None
    except SafetensorError as error:
        raise CheckpointError(f"{file.parent}: {file.name} is damaged or cut short ({error}); copy it again") from None
    return tensors


def fingerprint(folder: Path) -> str:
    """Equal for policies that act equally: a hash of everything but the trainer's own state."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "trainer.safetensors"):
        digest.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]
