"""Sentences as vectors, one cross-attention token each: fixed random vectors of words, or the text tower of
OpenCLIP ViT-H-14.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from policy.config import VideoConfig
from policy.untrusted import printable, read_json
from policy.weights import (
    CONFIG_BYTES,
    TEXT,
    WeightsError,
    has_text_tower,
    local_folder,
    part_folder,
    reading,
    weights_fingerprint,
)

OPENCLIP = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
ALIKE = 0.01
"""Relative difference up to which two embeddings of a sentence are by the same tower: machines round
differently.
"""
MOST_TOWERS = 2
"""Text towers that a process holds; the one of OpenCLIP takes 1.4 GB."""
_TOWERS: dict[str, tuple[Any, Any]] = {}
"""Loaded tokenizers and towers by the hash of their files, the most recently loaded last."""


class SentenceEncoder(Protocol):
    """Encoder of a sentence as the one token that every frame attends to."""

    dim: int
    known: dict[str, Tensor]
    """Cache of expensive embeddings, sentence -> (dim,); saved with a model, so that loading the model does
    not need the encoder.
    """

    def embed(self, sentences: Sequence[str]) -> Tensor:
        """Return (B, 1, dim) float32 on the CPU. A sentence's token does not depend on the others."""
        ...

    def load(self) -> None:
        """Load what `embed` needs for any sentence, after which no file is read again."""
        ...

    def save(self, folder: Path) -> None:
        """Write what was loaded into a folder, from which an encoder reads it again."""
        ...

    def unload(self) -> None:
        """Drop what was loaded."""
        ...


@lru_cache(maxsize=4096)
def _word_vector(word: str, dim: int) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little") >> 1
    return torch.randn(dim, generator=torch.Generator().manual_seed(seed))


class WordVectors:
    """Scaled sum of fixed random vectors of a sentence's words: distinguishes the tasks of a sweep without a
    download.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.known: dict[str, Tensor] = {}  # embeddings are cheap, so none is cached

    def embed(self, sentences: Sequence[str]) -> Tensor:
        """Return (B, 1, dim) float32: the sum of a sentence's word vectors over the root of their number."""
        tokens = []
        for sentence in sentences:
            words = sentence.lower().split() or [""]
            tokens.append(
                torch.stack([_word_vector(word, self.dim) for word in words]).sum(0) / len(words) ** 0.5
            )
        return torch.stack(tokens).unsqueeze(1)

    def load(self) -> None:
        """Do nothing: the vectors are a function of the words."""

    def save(self, folder: Path) -> None:
        """Do nothing, likewise."""

    def unload(self) -> None:
        """Do nothing, likewise."""


class OtherTowerError(WeightsError):
    """Error if known embeddings are those of another text tower."""


class OpenClipText:
    """Text-projected embedding of a sentence's last token, not normalised (arXiv 2508.00795).

    The tower is loaded by `load`, or at the first sentence that is not in `known`: from `source`, a hub id or
    a folder, either the tower's own or one with `text_encoder/` and `tokenizer/`; without it from the first
    of `beside` that has one among other parts; without any, where `download` allows it, from OPENCLIP on the
    hub. `embed` then raises WeightsError if the tower is missing or damaged.
    """

    def __init__(
        self,
        dim: int,
        source: str | Path | None = None,
        known: Mapping[str, Tensor] | None = None,
        *,
        beside: Sequence[str | Path] = (),
        download: bool = True,
    ) -> None:
        self.dim, self._source, self._beside, self._download = dim, source, tuple(beside), download
        self.known = dict(known or {})
        if odd := next((sentence for sentence, token in self.known.items() if token.shape != (dim,)), None):
            raise WeightsError(
                f"the cached embedding of {odd!r} has {self.known[odd].numel()} numbers, the model expects"
                f" {dim}; embed it again"
            )

    def embed(self, sentences: Sequence[str]) -> Tensor:
        """Return (B, 1, dim) float32 from `known`, to which missing sentences are added first. Raises
        WeightsError if the encoder is needed and cannot be loaded.
        """
        for sentence in dict.fromkeys(sentences):
            if sentence not in self.known:
                if "_tower" not in vars(self) and self._place() is None:
                    raise WeightsError(
                        f"the checkpoint holds no text tower, and {printable(repr(sentence), 100)} is none of"
                        f" the {len(self.known)} sentences it was trained with; train it with this version,"
                        " whose checkpoints hold the tower, or ask it one of those"
                    )
                self.known[sentence] = self._embed(sentence)
        return torch.stack([self.known[sentence] for sentence in sentences]).unsqueeze(1)

    @torch.no_grad()
    def _embed(self, sentence: str) -> Tensor:
        tokenizer, tower = self._tower
        # One sentence at a time, without padding, so that rounding does not depend on others; causal
        # attention ignores padding anyway.
        tokens = tokenizer(
            [sentence], truncation=True, max_length=tower.config.max_position_embeddings, return_tensors="pt"
        )
        with torch.autocast("cpu", enabled=False):
            token: Tensor = tower(input_ids=tokens["input_ids"]).text_embeds[0]
        return token.clone()

    def load(self) -> None:
        """Load the tower, after which its files are not read again. Raises WeightsError if it is missing or
        damaged, OtherTowerError if a known sentence was embedded by another one.
        """
        sentence = next(iter(self.known), None)
        fresh = self._embed(sentence) if sentence is not None else None
        if fresh is None:
            assert self._tower
        elif (fresh - self.known[sentence or ""]).norm() > ALIKE * fresh.norm():
            raise OtherTowerError(
                f"{self._place()}: its text tower is not the one that the sentences beside the episodes were"
                " embedded by; run `demoscale encode` with --text for this tower, after deleting text/ beside"
                " the episodes"
            )

    def save(self, folder: Path) -> None:
        """Write `text_encoder/` and `tokenizer/` into a folder, if the tower is loaded."""
        if loaded := vars(self).get("_tower"):
            import transformers

            tokenizer, tower = loaded
            with _quiet(transformers):
                tokenizer.save_pretrained(str(folder / "tokenizer"))
                tower.save_pretrained(str(folder / "text_encoder"))

    def unload(self) -> None:
        """Drop the tower: `save` writes none, and `embed` loads it again."""
        vars(self).pop("_tower", None)

    @cached_property
    def _tower(self) -> tuple[Any, Any]:
        place = self._place()
        assert place is not None
        return _read_tower(local_folder(place, TEXT), self.dim)

    def _place(self) -> str | Path | None:
        """Return where the tower is; None if it is nowhere and must not come from the hub."""
        if self._source:
            return self._source
        found = next((one for one in self._beside if has_text_tower(one)), None)
        return found or (OPENCLIP if self._download else None)


def _read_tower(folder: Path, dim: int) -> tuple[Any, Any]:
    """Return the tokenizer and the tower of a folder; processes that load several checkpoints of one tower
    hold it once.
    """
    import transformers

    text = part_folder(folder, "text_encoder")
    words = folder / "tokenizer" if (folder / "tokenizer").is_dir() else text
    if not (words / "tokenizer.json").is_file() and not all(
        (words / name).is_file() for name in ("vocab.json", "merges.txt")
    ):
        raise WeightsError(
            f"{words}: there is no tokenizer.json and no vocab.json with merges.txt here; copy the folder"
            " again"
        )
    name = weights_fingerprint(folder, ("text_encoder", "tokenizer"))
    if name not in _TOWERS:
        with reading(text):
            _bound_tower(text)
        with reading(words), _quiet(transformers):
            tokenizer = transformers.CLIPTokenizer.from_pretrained(str(words), local_files_only=True)
        with reading(text), _quiet(transformers):
            tower, told = transformers.CLIPTextModelWithProjection.from_pretrained(
                str(text), local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
        if told["missing_keys"]:  # transformers initialises missing weights at random
            raise WeightsError(f"{text}: its weights lack {min(told['missing_keys'])}; copy the folder again")
        _TOWERS[name] = tokenizer, tower.eval().requires_grad_(False)
        while len(_TOWERS) > MOST_TOWERS:
            _TOWERS.pop(next(iter(_TOWERS)))
    found = _TOWERS[name]
    if found[1].config.projection_dim != dim:
        raise WeightsError(
            f"{text}: it embeds a sentence as {found[1].config.projection_dim} numbers, the video model"
            f" expects {dim}; use another"
        )
    return found


def _bound_tower(folder: Path) -> None:
    """Raise ValueError if the configuration describes more weights than the files can hold, before memory is
    allocated for them.
    """
    with (folder / "config.json").open("rb") as file:
        config = read_json(file.read(CONFIG_BYTES + 1), CONFIG_BYTES)
    text = config.get("text_config") or config
    width, inner, layers, words = (
        int(text.get(name, default))
        for name, default in (
            ("hidden_size", 512),
            ("intermediate_size", 2048),
            ("num_hidden_layers", 12),
            ("vocab_size", 49408),
        )
    )
    described = words * width + layers * (4 * width**2 + 2 * width * inner)
    held = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    if min(width, inner, layers, words) < 1 or described > held:
        raise ValueError(f"config.json describes {described} weights, the files hold {held} bytes")


class _quiet:  # noqa: N801
    """Context without transformers' progress bars and its messages about unused weights, such as those of the
    image tower.
    """

    def __init__(self, transformers: Any) -> None:
        self._logging = transformers.utils.logging

    def __enter__(self) -> None:
        self._before = self._logging.get_verbosity()
        self._logging.set_verbosity_error()
        self._logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        self._logging.set_verbosity(self._before)
        self._logging.enable_progress_bar()


def sentence_encoder(
    config: VideoConfig,
    source: str | Path | None = None,
    known: Mapping[str, Tensor] | None = None,
    *,
    beside: Sequence[str | Path] = (),
    download: bool = True,
) -> WordVectors | OpenClipText:
    """Return the encoder of a video model; arguments are those of `OpenClipText`."""
    if config.text == "words":
        return WordVectors(config.cross_attention_dim)
    return OpenClipText(config.cross_attention_dim, source, known, beside=beside, download=download)
