"""The environments of external policies: made once per node, never used half, and named where they cannot be
made.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from external_policies import make_policy
from orchestrator.config.policy_manifest import ExternalPolicy, load
from orchestrator.external import environment
from orchestrator.external.command import CommandError, CommandRefusedError
from orchestrator.external.environment import prepare, resolved, resolved_before
from orchestrator.storage.base import open_storage

Make = Callable[[str], ExternalPolicy]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a factory of policies with an environment, as YAML."""

    def make(wanted: str) -> ExternalPolicy:
        folder = make_policy(tmp_path / "policy")
        manifest = folder / "policy.yaml"
        manifest.write_text(manifest.read_text().replace("environment: this", f"environment: {wanted}"))
        return load(folder)

    return make


def fake_uv(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program in the place of uv; it appends its arguments to a file, which is returned."""
    program, called = folder / "uv", folder / "called"
    program.write_text(f'#!/bin/sh\necho "$@" >> {called}\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setattr(environment, "uv", lambda: str(program))
    return called


def test_this_environment_puts_its_own_python_first(make: Make, tmp_path: Path) -> None:
    launch = prepare(make("this")).launch(["python", "train.py", "--x"], tmp_path, tmp_path, {"A": "b"})
    assert launch.words == (str(Path(sys.executable).parent / "python"), str(tmp_path / "train.py"), "--x")
    assert launch.variables["A"] == "b"
    assert launch.variables["PATH"].startswith(str(Path(sys.executable).parent))


def test_environment_is_made_once_by_eight_threads(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make('{python: "3.12", requirements: [numpy]}')
    called = fake_uv(tmp_path, "sleep 0.1; mkdir -p env/bin", monkeypatch)
    root = tmp_path / "environments"
    root.mkdir()
    with ThreadPoolExecutor(8) as threads:
        places = {*threads.map(lambda _: prepare(policy, "numpy==2.4.0", root).programs, range(8))}
    assert len(places) == 1
    assert len(called.read_text().splitlines()) == 2, "the environment and its packages"
    prepare(policy, "numpy==2.4.1", root)
    assert len(called.read_text().splitlines()) == 4, "other versions, another environment"


def test_failure_of_uv_is_one_sentence_and_nothing_half_is_used(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make('{python: "3.12", requirements: [nothing-like-it]}')
    root = tmp_path / "environments"
    root.mkdir()
    fake_uv(
        tmp_path,
        'mkdir -p env/bin; [ "$1" = venv ] || { echo "no solution found" >&2; exit 1; }',
        monkeypatch,
    )
    with pytest.raises(
        CommandError, match=r"^counter: uv could not make its environment: no solution found$"
    ):
        prepare(policy, "", root)
    called = fake_uv(tmp_path, "mkdir -p env/bin", monkeypatch)
    before = len(called.read_text().splitlines())
    prepare(policy, "", root)
    assert len(called.read_text().splitlines()) == before + 2, "it is made from scratch"
    monkeypatch.setattr(environment, "uv", lambda: str(tmp_path / "nowhere"))
    with pytest.raises(CommandRefusedError, match=r"uv cannot be started .*install the package uv"):
        prepare(policy, "numpy==1.26.4", root)


def test_torch_is_the_build_for_the_node_or_that_of_the_default_index(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UV_TORCH_BACKEND", raising=False)
    root = tmp_path / "environments"
    root.mkdir()
    refuses = 'mkdir -p env/bin; case "$*" in *--torch-backend*) echo "dns error: download.pytorch.org" >&2; exit 1;; esac'
    called = fake_uv(tmp_path, refuses, monkeypatch)
    prepare(make('{python: "3.12", requirements: [torch>=2.7]}'), "", root)
    first, second = called.read_text().splitlines()[1:]
    assert first == f"{second} --torch-backend auto"
    called.unlink()
    prepare(make('{python: "3.12", requirements: [torch], index: ["https://pypi.example/simple"]}'), "", root)
    (own,) = called.read_text().splitlines()[1:]
    assert own.endswith("--index https://pypi.example/simple --index-strategy unsafe-best-match")


def test_versions_are_resolved_once_and_kept_by_the_storage(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, storage = make('{python: "3.12", requirements: [numpy]}'), open_storage(str(tmp_path / "runs"))
    assert resolved_before(policy, storage) == ""
    called = fake_uv(tmp_path, 'echo "numpy==2.4.0"', monkeypatch)
    assert resolved(policy, storage) == "numpy==2.4.0\n"
    fake_uv(tmp_path, 'echo "numpy==2.5.0"', monkeypatch)
    assert resolved(policy, storage) == resolved_before(policy, storage) == "numpy==2.4.0\n"
    assert len(called.read_text().splitlines()) == 1
    assert policy.fingerprint("numpy==2.4.0\n") != policy.fingerprint("numpy==2.5.0\n")
    (tmp_path / "policy" / "requirements.lock").write_text("numpy==2.3.0\n")
    assert resolved(load(tmp_path / "policy"), storage) == "numpy==2.3.0\n", "the folder's own versions"
    assert resolved(make("this"), storage) != "numpy==2.4.0\n"


def test_container_runs_with_what_it_reads_mounted_and_is_removed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make("{image: lerobot/gpu@sha256}")
    monkeypatch.setattr(shutil, "which", lambda name, **_: "/usr/bin/docker" if name == "docker" else None)
    launch = prepare(policy).launch(
        policy.manifest.train,
        tmp_path / "home",
        tmp_path,
        {"DEMOSCALE_TRAIN": "x"},
        [tmp_path / "data"],
        True,
    )
    words = " ".join(launch.words)
    assert words.startswith("/usr/bin/docker run --rm --init --name=demoscale-")
    assert f"--volume={tmp_path / 'data'}:{tmp_path / 'data'}:ro" in words
    program, *arguments = policy.manifest.train
    assert arguments[-1] == "train.py"
    assert words.endswith(
        " ".join(
            ["--gpus=all lerobot/gpu@sha256", program, *arguments[:-1], str(tmp_path / "home" / "train.py")]
        )
    )
    assert "--env=DEMOSCALE_TRAIN=x" in words
    assert launch.cleanup[:3] == ("/usr/bin/docker", "rm", "--force")
    monkeypatch.setattr(shutil, "which", lambda name, **_: None)
    with pytest.raises(CommandRefusedError, match=r"this node has neither podman nor docker; install one"):
        prepare(policy)


@pytest.mark.full
def test_uv_makes_an_environment_with_another_python_that_serves_our_protocol(
    make: Make, tmp_path: Path
) -> None:
    if not shutil.which(environment.uv()):
        pytest.skip("uv is not installed here; `make setup` installs it")
    policy, storage = make('{python: "3.12", requirements: [numpy]}'), open_storage(str(tmp_path / "runs"))
    root = tmp_path / "environments"
    root.mkdir()
    lock = resolved(policy, storage)
    assert lock.startswith("numpy==")
    made = prepare(policy, lock, root)
    began = time.monotonic()
    assert prepare(policy, lock, root) == made
    assert time.monotonic() - began < 1
    check = "import numpy, policy.http_server, sys; print(sys.version_info[:2], numpy.__version__)"
    launch = made.launch(["python", "-c", check], tmp_path, tmp_path, {})
    said = subprocess.check_output(launch.words, env=dict(launch.variables), cwd=launch.folder, text=True)
    assert said == f"(3, 12) {lock.strip().removeprefix('numpy==')}\n"
    assert os.path.exists(root)
