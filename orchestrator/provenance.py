"""Where a result comes from: the code, by content, and the packages that shape it."""

import ast
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.storage import Bucket, StorageError, open_storage
from sim_workers.checkout import CHECKOUT as CHECKOUT
from sim_workers.checkout import content_hash, sources

COMMIT = "DEMOSCALE_COMMIT"  # set in the environment of a copy of the checkout that was sent somewhere without its history
PACKAGES = ("torch", "diffusers", "ray", "robosuite", "mujoco", "numpy", "av")
SIMULATING_PACKAGES = ("mujoco", "numpy", "robosuite")
"""Packages whose version changes what a simulator computes."""
ACTING_PACKAGES = (*SIMULATING_PACKAGES, "diffusers", "torch", "transformers")
"""Packages whose version changes how a checkpoint acts in a simulator: pictures to noise to actions, and the encoded instruction."""
TRAINING_PACKAGES = ("av", "diffusers", "numpy", "torch", "transformers")
"""Packages whose version changes a trained policy: decoded pictures, the encoded instruction, and the training itself."""
UNRESOLVED = "@unresolved"
"""Ends the label of weights whose content is not known here."""
COMMIT_OF_HUB = re.compile(r"@[0-9a-f]{40}$")


@dataclass(frozen=True)
class Code:
    """The files of the checkout that some roots import, directly or through others, also inside functions; iterates over them."""

    roots: tuple[str, ...]
    """Files; they are part of it wherever they lie."""
    within: tuple[str, ...]
    """Folders, with a final `/`, and files: imports that lead elsewhere are not followed."""

    def __iter__(self) -> Iterator[str]:
        return iter(import_closure(self.roots, self.within))


SIMULATING_CODE = Code(("sim_workers/worker.py",), ("policy/", "sim_workers/"))
"""What plays an episode with any policy: the simulator, the rules, and how a policy is asked. Policies know of it only their interface."""
SCORING_CODE = Code(("sim_workers/worker.py", "sim_workers/served.py", "orchestrator/server.py", "policy/serve.py"), ("policy/", "sim_workers/"))
"""What plays an episode with a checkpoint: besides, the policy server's batches, the networks, the sampler, and what loads weights."""
TRAINING_CODE = Code(("orchestrator/loop.py", "orchestrator/train.py", "orchestrator/weights.py"), ("policy/", "orchestrator/data/"))
"""What turns stored episodes into a policy. Importers and exporters of episodes, simulators and servers are no part of it: episodes count by
content."""


def import_closure(roots: tuple[str, ...], within: tuple[str, ...]) -> tuple[str, ...]:
    """Return the files that `roots` lead to by import statements, the roots among them, sorted; within: as in `Code`.

    Names that are computed, `importlib.import_module(name)`, lead nowhere.
    """
    return _closure(roots, within, CHECKOUT)


@lru_cache
def _closure(roots: tuple[str, ...], within: tuple[str, ...], root: Path) -> tuple[str, ...]:
    found, todo = set[str](), [*roots]
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += (other for other in _imported(file, root) if other.startswith(within))
    return tuple(sorted(found))


@cache
def _imported(file: str, root: Path) -> tuple[str, ...]:
    """Files of the checkout that a file's import statements name: the modules, and every package that they lie in."""
    known, package = sources(root), file.split("/")[:-1]
    modules = set[str]()
    for node in ast.walk(ast.parse(known[file], file)):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            modules.add(module)
            modules.update(f"{module}.{alias.name}" for alias in node.names)  # a module of the package, or a name in it
    parts = {tuple(module.split(".")[:length]) for module in modules for length in range(1, module.count(".") + 2)}
    files = {name for part in parts for name in ("/".join(part) + ".py", "/".join((*part, "__init__.py")))}
    return tuple(sorted(files & known.keys()))


@lru_cache
def code_hashes(places: Code | tuple[str, ...]) -> dict[str, str]:
    """Return the hash of every Python file in the named files and folders of the checkout, by file."""
    known, hashes = sources(CHECKOUT), dict[str, str]()
    for place in places:
        inside = [place] if place in known else [file for file in known if file.startswith(f"{place}/")]
        hashes |= {file: content_hash(known[file]) for file in inside}
    return hashes


@lru_cache
def code_fingerprint(places: Code | tuple[str, ...]) -> str:
    """Hash of the content of every Python file in the named files and folders of the checkout, as it was when this process first asked."""
    return digest(code_hashes(places))


def weights_label(source: str, ask: bool = False) -> str:
    """What stands for pretrained weights in a fingerprint; empty for none.

    A folder's content. Of a hub id the commit, ID@COMMIT, that this machine's Hugging Face cache has under `main`, or the hub if `ask`. Of an
    s3:// prefix a hash of its keys with their sizes and ETags, which change with the bytes. UNRESOLVED stands in place of what is not known.
    """
    folder = Path(source).expanduser()
    if not source or COMMIT_OF_HUB.search(source):
        return source
    if folder.is_dir():
        return _folder_label(folder)
    return f"{source}@{_bucket_revision(source) if source.startswith('s3://') else _hub_revision(source, ask)}"


def same_weights(before: str, now: str) -> str:
    """Return the label to go by, given the one that was pinned for the same source and the one found now.

    A commit of the hub stays the pinned one, which training then fetches; content that is not known, then or now, counts as unchanged.
    """
    unknown = UNRESOLVED in (before[-len(UNRESOLVED) :], now[-len(UNRESOLVED) :])
    return before if unknown or COMMIT_OF_HUB.search(before) else now


@lru_cache
def _folder_label(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".safetensors", ".json", ".bin", ".txt"))
    return digest([(file.relative_to(folder).as_posix(), _file_hash(file)) for file in files])


def _file_hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@lru_cache
def _hub_revision(repository: str, ask: bool) -> str:
    """The commit of `main`; the bytes of every file hang on it."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    if ask and not HF_HUB_OFFLINE:
        with suppress(Exception):  # no network, no permission, no such repository: training says so where it needs the weights
            return str(HfApi().model_info(repository, timeout=10).sha)
    reference = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "refs/main"
    with suppress(OSError):
        return reference.read_text().strip()
    return UNRESOLVED[1:]


@lru_cache
def _bucket_revision(uri: str) -> str:
    try:
        place = open_storage(uri)
        assert isinstance(place, Bucket)
        return digest(place.versions("")) if place.versions("") else UNRESOLVED[1:]
    except StorageError:
        return UNRESOLVED[1:]


def digest(facts: Any) -> str:
    """Equal for equal facts: a hash of them as JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@lru_cache
def git_commit() -> str:
    """The checkout's commit, with `-dirty` where files differ from it; `unknown` outside git."""
    if COMMIT in os.environ and not (CHECKOUT / ".git").exists():
        return os.environ[COMMIT]
    try:
        out = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return out.stdout.strip()


def package_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """The installed versions; `none` of a package that is not installed."""
    return {name: _version(name) for name in packages}


@lru_cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
