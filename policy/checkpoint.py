"""Checkpoints: self-contained folders of weights, configuration, conventions, normalisation and provenance.

checkpoint.json        configuration, contract, statistics and provenance of the policy
unet/                  the video model in diffusers' layout:
                       UNetSpatioTemporalConditionModel.from_pretrained(folder, subfolder="unet")
vae/                   the autoencoder of a policy that has one, likewise
text_encoder/          the text tower of a policy that has one, and its tokenizer/, in transformers'
                       layout, for sentences that its training data do not have
heads.safetensors      the other weights needed to act; absent for a video model of stage 1
text.safetensors       the vectors of the sentences in its training data, if a downloaded text tower computed
                       them
trainer.safetensors    additional state to resume training; not read for acting

In a sweep's storage, files of weights that its training leaves as they are lie elsewhere, once for all
checkpoints (policy/checkpoint_files.py).

The weights are the ones used to act: their running average, if one is kept.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from policy.checkpoint_files import CARD, CARD_BYTES, stated_needs, whole_checkpoint
from policy.checkpoint_files import CheckpointError as CheckpointError
from policy.checkpoint_files import fingerprint as fingerprint
from policy.config import PolicyConfig
from policy.diffusion_policy import DiffusionPolicy
from policy.entry_points import PluginError
from policy.feature_stats import Stats
from policy.interface import PRESENT_ONLY, Contract, PolicyNeeds
from policy.latent_codec import VaeLatents
from policy.learner import Learner, build_learner
from policy.model import VideoActionModel
from policy.untrusted import printable, read_json
from policy.weights import WeightsError

FORMAT = 2
UNET, UNET_WEIGHTS = "video.unet.", "unet/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Card:
    """Content of checkpoint.json: everything about a policy except its weights."""

    config: PolicyConfig
    contract: Contract
    action_stats: Stats | None
    """Statistics of the actions; None for a video model, which is trained without actions."""
    proprio_stats: Stats | None
    """Statistics of proprioception; None for a video model."""
    provenance: dict[str, Any]
    """Arm, step, data fingerprint, exact episode ids, code version, package versions. Nothing that differs
    between identical runs.
    """
    needs: PolicyNeeds = PRESENT_ONLY
    """What the policy needs besides the present observation; absent from the file if nothing."""


def new_model(
    config: PolicyConfig,
    contract: Contract,
    weights: str | Path | None = None,
    known_sentences: Mapping[str, Tensor] | None = None,
    text: Sequence[str | Path] = (),
    download: bool = True,
) -> Learner:
    """Return the untrained network of a configuration; `weights` has the autoencoder and the text tower, if
    the configuration needs them; `text` and `download`: as for `VideoActionModel`. Raises PluginError if
    another package's policy cannot be built.
    """
    if config.video:
        return VideoActionModel(config, contract, weights, known_sentences, text, download)
    return DiffusionPolicy(config, contract) if config.images else build_learner(config, contract)


def known_sentences(folder: Path) -> dict[str, Tensor]:
    """Return the sentence embeddings stored in a checkpoint or a folder of weights; empty if there
    are none.
    """
    return _tensors(folder / "text.safetensors") if (folder / "text.safetensors").is_file() else {}


def save(
    folder: Path, card: Card, model: Learner, weights: dict[str, Tensor], trainer: dict[str, Tensor]
) -> None:
    """Write a checkpoint into an existing empty folder.

    weights: whole tensors by the model's names; those of the video model alone suffice. trainer: state to
    resume training, read by `load_trainer`.
    """
    text = {
        "format": FORMAT,
        "config": card.config.model_dump(),
        "contract": card.contract.to_json(),
        "action_stats": card.action_stats and card.action_stats.to_json(),
        "proprio_stats": card.proprio_stats and card.proprio_stats.to_json(),
        "provenance": card.provenance,
    }
    if card.needs != PRESENT_ONLY:
        text["needs"] = vars(card.needs)
    (folder / CARD).write_text(json.dumps(text, indent=1, sort_keys=True))
    heads = {name: tensor.contiguous() for name, tensor in weights.items() if not name.startswith(UNET)}
    if isinstance(model, VideoActionModel):
        model.video.unet.save_config(folder / "unet")
        unet = {
            name.removeprefix(UNET): tensor.contiguous()
            for name, tensor in weights.items()
            if name.startswith(UNET)
        }
        save_file(unet, folder / UNET_WEIGHTS, {"format": "pt"})
        if isinstance(model.codec, VaeLatents) and model.codec.vae:
            model.codec.vae.save_pretrained(folder / "vae")
        model.sentences.save(folder)
        if model.sentences.known:
            save_file(
                {sentence: token.contiguous() for sentence, token in model.sentences.known.items()},
                folder / "text.safetensors",
            )
    if heads:
        save_file(heads, folder / "heads.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in trainer.items()}, folder / "trainer.safetensors")


def load(folder: Path) -> tuple[Learner, Card]:
    """Return the model with its weights, in eval mode, and its card; raise CheckpointError unless the
    checkpoint is complete and can act. Files that its storage keeps once are read from there.
    """
    with whole_checkpoint(folder) as whole:
        return _load(whole)


def _load(folder: Path) -> tuple[Learner, Card]:
    card = load_card(folder)
    if card.provenance.get("objective") == "video":
        raise CheckpointError(
            f"{folder}: a video model without an action head, which cannot act; train an action head"
            " on it (train.mode: two_stage)"
        )
    _refuse_misfit(folder, card)
    weights = load_weights(folder)
    if odd := next(
        (
            name
            for name, tensor in weights.items()
            if tensor.is_floating_point() and not torch.isfinite(tensor).all()
        ),
        None,
    ):
        raise CheckpointError(
            f"{folder}: the weights of {odd} hold a value that is not finite; train the policy again"
        )
    try:
        model = new_model(card.config, card.contract, folder, known_sentences(folder), download=False)
        model.load_state_dict(weights)
        if (folder / "text_encoder").is_dir() and isinstance(model, VideoActionModel):
            model.sentences.load()  # now: the folder may be gone when a sentence needs it
    except (WeightsError, PluginError) as error:
        raise CheckpointError(
            f"{folder}: {error}" if isinstance(error, PluginError) else str(error)
        ) from None
    except RuntimeError:
        raise CheckpointError(
            f"{folder}: the weights do not fit the model that checkpoint.json describes"
        ) from None
    if model.needs != card.needs:
        raise CheckpointError(
            f"{folder}: checkpoint.json states {_in_words(card.needs)}, and the policy"
            f" {printable(card.config.learner, 100)} installed here {_in_words(model.needs)}; install the"
            " version that was trained"
        )
    return model.eval(), card


def _in_words(needs: PolicyNeeds) -> str:
    return f"{'memory' if needs.memory else 'no memory'} and {needs.observation_steps} observation steps"


def _refuse_misfit(folder: Path, card: Card) -> None:
    """Raise CheckpointError if names or shapes of the weights differ from the configured model, before memory
    is allocated for either.

    The shapes come from the headers of the weight files, which safetensors validates against the file sizes,
    and from a model on the meta device, which has shapes and no values. The layers are counted first, because
    each takes memory even there.
    """
    announced = _announced(folder / "heads.safetensors")
    if card.config.video is not None:
        announced |= {UNET + name: shape for name, shape in _announced(folder / UNET_WEIGHTS).items()}
    unfit = f"{folder}: the weights do not fit the model that checkpoint.json describes"
    if (layers := _layers(card)) > len(announced):
        raise CheckpointError(
            f"{unfit}: it has {layers} layers or more, the weights {len(announced)} tensors"
        )
    try:
        with torch.device("meta"):
            wanted = {
                name: tuple(tensor.shape)
                for name, tensor in new_model(card.config, card.contract).state_dict().items()
            }
    except PluginError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    except Exception as error:  # diffusers and torch raise many types for incompatible widths
        said = printable(" ".join(str(error).split()), 200)
        raise CheckpointError(
            f"{folder}: no model can be built as checkpoint.json describes it ({type(error).__name__}:"
            f" {said})"
        ) from None
    if lacking := wanted.keys() - announced.keys():
        raise CheckpointError(f"{unfit}: {min(lacking)} is missing")
    if unknown := announced.keys() - wanted.keys():
        raise CheckpointError(f"{unfit}: it has no {printable(min(unknown), 100)}")
    if odd := next((name for name, shape in wanted.items() if shape != announced[name]), None):
        raise CheckpointError(f"{unfit}: {odd} is {announced[odd]}, the model's is {wanted[odd]}")


def _layers(card: Card) -> int:
    """Return a lower bound of the number of layers with weights, computed without building the model."""
    config, cameras = card.config, len(card.contract.cameras)
    if config.learner:
        return 0
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
    """Return the card without loading the weights; raise CheckpointError if it is missing, damaged or
    invalid.
    """
    try:
        with (folder / CARD).open("rb") as file:
            text = read_json(file.read(CARD_BYTES + 1), CARD_BYTES)
    except (FileNotFoundError, IsADirectoryError):
        raise CheckpointError(
            f"{folder}: no checkpoint.json, so this is not a demoscale checkpoint; correct the path"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{folder}: checkpoint.json is damaged; copy it again ({error})") from None
    try:
        if text.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder}: checkpoint format {printable(str(text.get('format')), 40)}, this version reads"
                f" {FORMAT}"
            )
        card = Card(
            config=PolicyConfig.model_validate(text["config"]),
            contract=Contract.from_json(text["contract"]),
            action_stats=None if text["action_stats"] is None else Stats.from_json(text["action_stats"]),
            proprio_stats=None if text["proprio_stats"] is None else Stats.from_json(text["proprio_stats"]),
            provenance=text["provenance"],
            needs=stated_needs(text),
        )
        if problem := _problem(card):
            raise ValueError(problem)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        said = printable(f"config.{'.'.join(map(str, first['loc']))}: {first['msg']}", 300)
        raise CheckpointError(
            f"{folder}: checkpoint.json lacks or misstates a field (ValidationError: {said})"
        ) from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # JSON of another structure
        said = printable(str(error), 300)
        raise CheckpointError(
            f"{folder}: checkpoint.json lacks or misstates a field ({type(error).__name__}: {said})"
        ) from None
    return card


def _problem(card: Card) -> str:
    """Return the first inconsistency of a card as a phrase; empty if there is none."""
    if not isinstance(card.provenance, dict):
        return "provenance must be an object"
    if not card.contract.action:
        return "contract.action is empty"
    if not card.contract.cameras:
        return "contract.cameras is empty; a policy sees at least one"
    for name, stats, layout in (
        ("action", card.action_stats, card.contract.action),
        ("proprio", card.proprio_stats, card.contract.proprio),
    ):
        if stats is None:
            if card.provenance.get("objective") != "video":
                return f"{name}_stats is missing; only a video model without an action head has none"
        elif len(stats.mean) != len(layout):
            return f"{name}_stats has {len(stats.mean)} dimensions, contract.{name} {len(layout)}"
    return ""


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights used to act, by name; for a video model, those of the U-Net only."""
    card = load_card(folder)
    weights = (
        {}
        if card.config.video is None
        else {UNET + name: tensor for name, tensor in _tensors(folder / UNET_WEIGHTS).items()}
    )
    alone = card.provenance.get("objective") == "video"
    return weights if alone else weights | _tensors(folder / "heads.safetensors")


def load_trainer(folder: Path) -> dict[str, Tensor]:
    """Return the tensors that `save` received as `trainer`."""
    return _tensors(folder / "trainer.safetensors")


def _announced(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in the header of a weight file, by name; no values are read."""
    with _readable(file), safe_open(file, "pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118  not a dictionary


def _tensors(file: Path) -> dict[str, Tensor]:
    with _readable(file):
        tensors: dict[str, Tensor] = load_file(file)
        return tensors


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Raise CheckpointError if the weight file that is read inside is missing or damaged."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent}: {file.name} is missing; copy the whole folder") from None
    except SafetensorError as error:
        raise CheckpointError(
            f"{file.parent}: {file.name} is damaged or cut short ({error}); copy it again"
        ) from None
