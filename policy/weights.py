"""Pretrained weights in diffusers' layout: a folder with `unet/`, `vae/`, `text_encoder/`, `tokenizer/`, or
the id of such a repository.

Weights are validated and read into modules that are already built; WeightsError names what is missing or does
not fit.
"""

import hashlib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors import SafetensorError, safe_open
from torch import nn

from policy.errors import DemoscaleError
from policy.untrusted import read_json

VIDEO = ("unet", "vae")
TEXT = ("text_encoder", "tokenizer")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[0-9a-f]{40})?")
"""Pattern of a hub repository, at its newest commit or at a given one."""
CONFIG_BYTES = 1 << 20
STEM = "diffusion_pytorch_model"
# Fields that determine the shapes of a U-Net's weights; the others (picture size, number of frames) may
# differ.
ARCHITECTURE = (
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "down_block_types",
    "up_block_types",
    "num_attention_heads",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)
_PER_LEVEL = (
    "layers_per_block",
    "num_attention_heads",
    "cross_attention_dim",
    "transformer_layers_per_block",
)
# Download only the files that are read: full-precision weights if the repository has any, else half-precision
# ones; never both.
_SMALL = ("*.json", "merges.txt", "*/merges.txt")
_WEIGHTS = (
    (f"{STEM}.safetensors", f"{STEM}-*.safetensors", "model.safetensors", "model-*.safetensors"),
    (f"{STEM}.fp16.safetensors", f"{STEM}.fp16-*.safetensors", "model.fp16.safetensors"),
    ("pytorch_model.bin", "pytorch_model-*.bin"),
)


class WeightsError(DemoscaleError):
    """Unusable pretrained weights; the message is one sentence with the source, the defect and the fix."""


def local_folder(source: str | Path, parts: tuple[str, ...] = VIDEO) -> Path:
    """Return the folder itself, or the local cache folder with a hub repository's `parts` (or, if it has none
    of them, its top-level model).

    Raises WeightsError if there is no such folder or repository, or the hub cannot be reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(str(source)):
        raise WeightsError(
            f"{source}: there is no such folder; correct the path, or name a repository of the Hugging Face"
            " hub as owner/name"
        )
    for weights in _WEIGHTS:
        patterns = [*_SMALL, *weights, *(f"{part}/{name}" for part in parts for name in weights)]
        found = _snapshot(str(source), patterns)
        if any(path for place in ("", *parts) for name in weights for path in (found / place).glob(name)):
            return found
    raise WeightsError(f"{source}: this repository holds no weights for {' or '.join(parts)}; name another")


def _snapshot(repository: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    name, _, commit = repository.partition("@")
    try:
        return Path(snapshot_download(name, revision=commit or None, allow_patterns=patterns))
    except GatedRepoError:
        mend = "accept its licence on huggingface.co, and set HF_TOKEN to a token of that account"
    except RepositoryNotFoundError:
        mend = (
            "there is no such folder here and no such public repository on the Hugging Face hub; correct the"
            " name, or set HF_TOKEN"
        )
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        mend = (
            "it is neither a folder nor in this machine's Hugging Face cache, and the hub cannot be reached;"
            " name a folder that holds the weights"
        )
    except Exception as error:
        mend = (
            f"the Hugging Face hub did not deliver it ({type(error).__name__}); try again, or name a folder"
            " that holds the weights"
        )
    raise WeightsError(f"{repository}: {mend}")


def has_text_tower(source: str | Path) -> bool:
    """Return whether a folder, or a hub repository, holds a text tower beside other parts; no weights are
    downloaded. Raises WeightsError if the repository does not exist, or the hub cannot be reached.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir() and HUB_ID.fullmatch(str(source)):
        folder = _snapshot(str(source), [*_SMALL])
    return (folder / "text_encoder" / "config.json").is_file()


def part_folder(folder: Path, part: str) -> Path:
    """Return the folder of a part's `config.json`: the subfolder of that name, or the folder itself; raise
    WeightsError if neither has one.
    """
    for place in (folder / part, folder):
        if (place / "config.json").is_file():
            return place
    raise WeightsError(
        f"{folder}: there is no {part}/config.json here; name a folder in diffusers' layout, or copy what is"
        " missing"
    )


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Convert the errors of readers of weight files into WeightsError."""
    try:
        yield
    except WeightsError:
        raise
    except FileNotFoundError as error:
        raise WeightsError(
            f"{folder}: {Path(error.filename or 'a file').name} is missing; copy the folder again"
        ) from None
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        said = " ".join(str(error).split())[:120]
        raise WeightsError(
            f"{folder}: its files are cut short or damaged ({said}); copy the folder again"
        ) from None


def _config(folder: Path, wanted: type) -> dict[str, Any]:
    with reading(folder / "config.json"), (folder / "config.json").open("rb") as file:
        config: dict[str, Any] = read_json(file.read(CONFIG_BYTES + 1), CONFIG_BYTES)
        if not isinstance(config, dict):
            raise ValueError("config.json is not a JSON object")
    if config.get("_class_name") != wanted.__name__:
        raise WeightsError(
            f"{folder}: it holds a {config.get('_class_name', 'model of another kind')}, a {wanted.__name__}"
            " is needed; name another"
        )
    return config


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder: full or half precision, one file or shards."""
    for stem in (STEM, f"{STEM}.fp16"):
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
        if shards := sorted(folder.glob(f"{stem}-*-of-*.safetensors")):
            missing = int(shards[0].stem.rpartition("-of-")[2]) - len(shards)
            if missing:
                raise WeightsError(
                    f"{folder}: {missing} of the files {stem}-*.safetensors are missing; copy the folder"
                    " again"
                )
            return shards
    raise WeightsError(f"{folder}: there is no {STEM}.safetensors here; copy the folder again")


def _refuse_misfit(module: nn.Module, folder: Path) -> None:
    """Raise WeightsError if names or shapes in a folder's files differ from a module's, which may be on the
    meta device; no values are read.
    """
    state = module.state_dict()
    left = set(state)
    for file in _weight_files(folder):
        with reading(file), safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  not a dictionary
                if name not in state:
                    raise WeightsError(
                        f"{file}: it holds {name}, which the model does not have; name weights of this"
                        " architecture"
                    )
                shape = tuple(opened.get_slice(name).get_shape())
                if shape != tuple(state[name].shape):
                    raise WeightsError(
                        f"{file}: {name} has shape {shape}, the model's has {tuple(state[name].shape)}; name"
                        " weights that fit"
                    )
                left.discard(name)
    if left:
        raise WeightsError(f"{folder}: its weights lack {min(left)}; copy the folder again")


@torch.no_grad()
def _fill(module: nn.Module, folder: Path) -> None:
    """Read every weight of a module from a folder's files, one tensor in memory at a time, at the module's
    own precision.
    """
    _refuse_misfit(module, folder)
    state = module.state_dict()
    for file in _weight_files(folder):
        with reading(file), safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                state[name].copy_(opened.get_tensor(name))


def load_unet(source: str | Path, unet: UNetSpatioTemporalConditionModel) -> None:
    """Read pretrained weights into a video U-Net; raise WeightsError if the architectures differ, or a file
    is missing or damaged.
    """
    folder = part_folder(local_folder(source, ("unet",)), "unet")
    saved, built = _config(folder, UNetSpatioTemporalConditionModel), dict(unet.config)
    defaults = {
        name: value.default
        for name, value in inspect.signature(UNetSpatioTemporalConditionModel.__init__).parameters.items()
    }
    for name in ARCHITECTURE:
        levels = len(saved.get("block_out_channels", defaults["block_out_channels"]))
        its = _spelled_out(name, saved.get(name, defaults[name]), levels)
        ours = _spelled_out(name, built[name], len(built["block_out_channels"]))
        if its != ours:
            raise WeightsError(
                f"{folder}: {name} is {its}, the model's is {ours}; name weights of this architecture, or"
                " change the preset"
            )
    _fill(unet, folder)


def _spelled_out(name: str, value: Any, levels: int) -> Any:
    """Normalise a field: lists to tuples, and one number for all levels to one per level."""
    value = tuple(value) if isinstance(value, list | tuple) else value
    return (value,) * levels if name in _PER_LEVEL and not isinstance(value, tuple) else value


def _bound_vae(config: dict[str, Any]) -> None:
    """Raise ValueError for an autoencoder of implausibly many or wide layers: each layer takes memory, even
    on the meta device.
    """
    numbers = {
        "layers_per_block": (16, config.get("layers_per_block", 1)),
        "block_out_channels": (1 << 16, config.get("block_out_channels", 1)),
    }
    for name, (most, value) in numbers.items():
        if not all(
            isinstance(one, int) and 0 < one <= most
            for one in (value if isinstance(value, list) else [value])
        ):
            raise ValueError(f"{name} must be whole numbers between 1 and {most}")


def load_vae(source: str | Path) -> AutoencoderKLTemporalDecoder:
    """Return a pretrained autoencoder in fp32.

    Raises WeightsError if it is not Stable Video Diffusion's, with one latent per 8 x 8 pixels, or a file is
    missing or damaged.
    """
    folder = part_folder(local_folder(source, ("vae",)), "vae")
    config = _config(folder, AutoencoderKLTemporalDecoder)
    wanted = {"in_channels": 3, "latent_channels": 4, "scaling_factor": 0.18215}
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise WeightsError(
                f"{folder}: {name} is {config[name]}, Stable Video Diffusion's is {value}; name its"
                " autoencoder"
            )
    side = 2 ** (len(config.get("block_out_channels", (0,))) - 1)
    if side != 8:
        raise WeightsError(
            f"{folder}: it makes a latent of every {side} x {side} pixels, 8 x 8 is needed; name Stable"
            " Video Diffusion's autoencoder"
        )
    with reading(folder / "config.json"):
        _bound_vae(config)
        with torch.device("meta"):
            planned = AutoencoderKLTemporalDecoder.from_config(config)
    _refuse_misfit(planned, folder)  # before memory is allocated for widths from an untrusted file
    vae: AutoencoderKLTemporalDecoder = AutoencoderKLTemporalDecoder.from_config(config)
    _fill(vae, folder)
    return vae.eval()


def weights_fingerprint(folder: str | Path, parts: tuple[str, ...] = VIDEO) -> str:
    """Return a hash of every configuration and weight file of a folder's parts: equal for equal files,
    independent of the path.
    """
    digest = hashlib.sha256()
    for place in dict.fromkeys(
        Path(folder) / part if (Path(folder) / part).is_dir() else Path(folder) for part in parts
    ):
        files = sorted(
            path for path in place.iterdir() if path.suffix in (".json", ".safetensors", ".txt", ".bin")
        )
        for path in files:
            with reading(path), path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]
