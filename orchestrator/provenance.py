"""Where a result comes from: the code, by content, and the packages that shape it."""

import hashlib
import json
import os
import subprocess
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
COMMIT = "DEMOSCALE_COMMIT"  # set in the environment of a copy of the checkout that was sent somewhere without its history

# The files whose change means another trained policy, and another score. Anything else may change without a rerun.
TRAINING_CODE = ("policy", "orchestrator/data", "orchestrator/loop.py", "orchestrator/train.py", "orchestrator/weights.py")
_SIMULATION = ("backends", "control", "env", "libero", "observables", "render", "robocasa", "rollout", "shifts", "suite", "tasks", "things")
SCORING_CODE = tuple(f"sim_workers/{name}.py" for name in _SIMULATION)
PACKAGES = ("torch", "diffusers", "ray", "robosuite", "mujoco", "numpy", "av")


@lru_cache
def code_fingerprint(places: tuple[str, ...]) -> str:
    """Hash of the content of every Python file in the named files and folders of the checkout."""
    digest = hashlib.sha256()
    for place in places:
        path = CHECKOUT / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(CHECKOUT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@lru_cache
def weights_label(source: str) -> str:
    """What stands for pretrained weights in a fingerprint: a folder's content, or else its hub id or URI; empty for none."""
    folder = Path(source)
    if not source or not folder.is_dir():
        return source
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".safetensors", ".json"))
    return digest([(file.relative_to(folder).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])


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


def package_versions() -> dict[str, str]:
    """The versions a trained policy and its score depend on."""
    return {name: version(name) for name in PACKAGES}
