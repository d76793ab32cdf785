"""Provenance of a result: package versions, weights by content, and the commit."""

import hashlib
import json
import os
import re
import subprocess
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.storage.base import S3Storage, StorageError, open_storage
from sim_workers.checkout import CHECKOUT as CHECKOUT

# environment variable, set for a copy of the checkout that was sent to a cluster without its history
COMMIT = "DEMOSCALE_COMMIT"
PACKAGES = ("torch", "diffusers", "ray", "robosuite", "mujoco", "numpy", "av")
SIMULATING_PACKAGES = ("mujoco", "numpy", "robosuite")
"""Packages whose version changes what a simulator computes."""
ACTING_PACKAGES = (*SIMULATING_PACKAGES, "diffusers", "torch", "transformers")
"""Packages whose version changes how a checkpoint acts in a simulator: rendering, sampling, and the encoded
instruction.
"""
TRAINING_PACKAGES = ("av", "diffusers", "numpy", "torch", "transformers")
"""Packages whose version changes a trained policy: decoded pictures, encoded instruction, and training
itself.
"""
UNRESOLVED = "@unresolved"
"""Suffix of the label of weights whose content is unknown here."""
COMMIT_OF_HUB = re.compile(r"@[0-9a-f]{40}$")


def weights_label(source: str, ask: bool = False) -> str:
    """Return the label of pretrained weights in a fingerprint; empty for none.

    For a folder a hash of its content. For a hub id the commit, ID@COMMIT, that this machine's Hugging Face
    cache has under `main`, or the hub's if `ask`. For an s3:// prefix a hash of its keys with their sizes and
    ETags, which change with the bytes. It ends in UNRESOLVED if the content is unknown.
    """
    folder = Path(source).expanduser()
    if not source or COMMIT_OF_HUB.search(source):
        return source
    if folder.is_dir():
        return _folder_label(folder)
    return (
        f"{source}@{_bucket_revision(source) if source.startswith('s3://') else _hub_revision(source, ask)}"
    )


def same_weights(before: str, now: str) -> str:
    """Return the label to use, given the pinned label of the same source and the current one.

    A pinned commit of the hub is kept, and training fetches it; unknown content, pinned or current, counts as
    unchanged.
    """
    unknown = UNRESOLVED in (before[-len(UNRESOLVED) :], now[-len(UNRESOLVED) :])
    return before if unknown or COMMIT_OF_HUB.search(before) else now


@lru_cache
def _folder_label(folder: Path) -> str:
    files = sorted(
        file for file in folder.rglob("*") if file.suffix in (".safetensors", ".json", ".bin", ".txt")
    )
    return digest([(file.relative_to(folder).as_posix(), _file_hash(file)) for file in files])


def _file_hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@lru_cache
def _hub_revision(repository: str, ask: bool) -> str:
    """Return the commit of `main`, which determines the bytes of every file."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    if ask and not HF_HUB_OFFLINE:
        # no network, permission or repository: training reports it when it needs the weights
        with suppress(Exception):
            return str(HfApi().model_info(repository, timeout=10).sha)
    reference = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "refs/main"
    with suppress(OSError):
        return reference.read_text().strip()
    return UNRESOLVED[1:]


@lru_cache
def _bucket_revision(uri: str) -> str:
    try:
        place = open_storage(uri)
        assert isinstance(place, S3Storage)
        return digest(place.versions("")) if place.versions("") else UNRESOLVED[1:]
    except StorageError:
        return UNRESOLVED[1:]


def digest(facts: Any) -> str:
    """Return a hash of 16 hex digits of facts as JSON, equal for equal facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@lru_cache
def git_commit() -> str:
    """Return the checkout's commit, with `-dirty` if files differ from it; `unknown` outside git."""
    if COMMIT in os.environ and not (CHECKOUT / ".git").exists():
        return os.environ[COMMIT]
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return out.stdout.strip()


@lru_cache
def commit_hash() -> str:
    """Return the hash of the checkout's commit, whether or not files differ from it; shortened if only
    `git_commit` is known, empty if that has none.
    """
    with suppress(OSError, subprocess.CalledProcessError):
        if (CHECKOUT / ".git").exists():
            out = subprocess.run(
                ["git", "rev-parse", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, check=True
            )
            return out.stdout.strip()
    found = re.search(r"[0-9a-f]{12,40}(?=(-dirty)?$)", git_commit())
    return found[0] if found else ""


def package_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the installed versions by package; `none` if one is not installed."""
    return {name: _version(name) for name in packages}


@lru_cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
