"""Sentences as vectors, without a download: enough to tell a sweep's tasks apart."""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=4096)
def _word_vector(word: str, dim: int) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little") >> 1
    return torch.randn(dim, generator=torch.Generator().manual_seed(seed))


def embed_sentences(sentences: list[str], dim: int) -> Tensor:
    """(B, 1, dim): one cross-attention token per sentence, the scaled sum of fixed random word vectors."""
    tokens = []
    for sentence in sentences:
        words = sentence.lower().split() or [""]
        tokens.append(torch.stack([_word_vector(word, dim) for word in words]).sum(0) / len(words) ** 0.5)
    return torch.stack(tokens).unsqueeze(1)
