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
from policy.weights import TEXT, WeightsError, local_folder, part_folder, reading

OPENCLIP = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


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


class OpenClipText:
    """Text-projected embedding of a sentence's last token, not normalised (arXiv 2508.00795).

    The tower is loaded at the first sentence that is not in `known`, from a hub id or a folder: either the
    tower's own, or one with `text_encoder/` and `tokenizer/`. `embed` then raises WeightsError if the tower
    is missing or damaged.
    """

    def __init__(
        self, dim: int, source: str | Path = OPENCLIP, known: Mapping[str, Tensor] | None = None
    ) -> None:
        self.dim, self._source = dim, source
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

    @cached_property
    def _tower(self) -> tuple[Any, Any]:
        import transformers

        folder = local_folder(self._source, TEXT)
        text = part_folder(folder, "text_encoder")
        words = folder / "tokenizer" if (folder / "tokenizer").is_dir() else text
        if not (words / "tokenizer.json").is_file() and not all(
            (words / name).is_file() for name in ("vocab.json", "merges.txt")
        ):
            raise WeightsError(
                f"{words}: there is no tokenizer.json and no vocab.json with merges.txt here; copy the folder"
                " again"
            )
        with reading(words), _quiet(transformers):
            tokenizer = transformers.CLIPTokenizer.from_pretrained(str(words), local_files_only=True)
        with reading(text), _quiet(transformers):
            tower, told = transformers.CLIPTextModelWithProjection.from_pretrained(
                str(text), local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
        if told["missing_keys"]:  # transformers initialises missing weights at random
            raise WeightsError(f"{text}: its weights lack {min(told['missing_keys'])}; copy the folder again")
        if tower.config.projection_dim != self.dim:
            raise WeightsError(
                f"{text}: it embeds a sentence as {tower.config.projection_dim} numbers, the video model"
                f" expects {self.dim}; use another"
            )
        return tokenizer, tower.eval().requires_grad_(False)


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
    config: VideoConfig, source: str | Path | None = None, known: Mapping[str, Tensor] | None = None
) -> WordVectors | OpenClipText:
    """Return the encoder of a video model. `source`: of OpenCLIP's text tower, the hub by default; `known`:
    embeddings by sentence.
    """
    if config.text == "words":
        return WordVectors(config.cross_attention_dim)
    return OpenClipText(config.cross_attention_dim, source or OPENCLIP, known)
