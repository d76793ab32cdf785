"""The environments of external policies on a node: this process's own, one that uv makes once and keeps, or a
container.

    <TMPDIR>/demoscale-UID/environments/<digest>/env      the environment
    <TMPDIR>/demoscale-UID/environments/<digest>/ready    written last; without it, it is made from scratch

The digest is that of the Python version, the requirements, the indexes and the resolved versions. Settings of
uv itself (UV_* variables, uv.toml) hold, such as a mirror of the package index.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from orchestrator.checkpoints.node_cache import user_folder
from orchestrator.config.policy_manifest import ContainerImage, ExternalPolicy, UvEnvironment
from orchestrator.external.command import CommandError, CommandRefusedError, Launch
from orchestrator.provenance import digest
from orchestrator.redaction import redact
from orchestrator.storage.base import Storage
from policy.untrusted import printable
from sim_workers.checkout import CHECKOUT

BUILD_S = 3600.0
"""Seconds after which uv has failed."""
UV_SAID = 250
"""Characters of uv's last lines in a sentence."""
ENGINES = ("podman", "docker")
"""Programs that run containers, the preferred one first."""
IN_CONTAINER = "/demoscale"
"""Folder of a container in which the checkout is mounted."""
WITHHELD = re.compile(r"(AWS|MLFLOW|RAY|DEMOSCALE|PYTHON|VIRTUAL_ENV|CONDA|UV|PIP)(_|$)|PYTHON")
"""Variables that a command does not get: credentials that it has no use for, and those that would lead its
Python to other packages.
"""


@dataclass(frozen=True)
class Environment:
    """An environment on this node, in which commands can be started."""

    policy: ExternalPolicy
    programs: Path | None
    """Folder of its programs, the first of PATH; None in a container."""
    engine: str = ""
    """Program that runs the container; empty if it is none."""

    def launch(
        self,
        words: Sequence[str],
        home: Path,
        folder: Path,
        variables: Mapping[str, str],
        reads: Iterable[Path] = (),
        gpus: bool = False,
    ) -> Launch:
        """Return how a command of the policy is started.

        words: `train` or `serve` of the manifest. home: folder with the policy's files. folder: working
        directory. variables: in addition to those of this process. reads: folders of the node that the
        command reads, for a container. gpus: whether it uses a GPU.
        """
        paths = tuple(str(home / word) if word in self.policy.files else word for word in words)
        if self.engine:
            return self._in_container(paths, home, folder, variables, reads, gpus)
        assert self.programs
        inherited = {name: value for name, value in os.environ.items() if not WITHHELD.match(name)}
        own = {
            "PATH": os.pathsep.join([str(self.programs), inherited.get("PATH", os.defpath)]),
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONUNBUFFERED": "1",
        }
        if self.programs != Path(sys.executable).parent:
            own["VIRTUAL_ENV"] = str(self.programs.parent)
        program = shutil.which(paths[0], path=own["PATH"]) or paths[0]
        stated = dict(self.policy.manifest.variables)
        return Launch((program, *paths[1:]), folder, inherited | own | stated | dict(variables))

    def _in_container(
        self,
        paths: tuple[str, ...],
        home: Path,
        folder: Path,
        variables: Mapping[str, str],
        reads: Iterable[Path],
        gpus: bool,
    ) -> Launch:
        assert isinstance(self.policy.manifest.environment, ContainerImage)
        name = f"demoscale-{uuid.uuid4().hex[:12]}"
        known = {"PYTHONPATH": IN_CONTAINER, "PYTHONUNBUFFERED": "1", "HOME": str(folder)}
        known |= {**self.policy.manifest.variables, **variables}
        binds = [
            f"{CHECKOUT / 'policy'}:{IN_CONTAINER}/policy:ro",
            f"{folder}:{folder}",
            *(f"{place}:{place}:ro" for place in dict.fromkeys((home, *reads))),
        ]
        words = [
            self.engine,
            "run",
            "--rm",
            "--init",
            f"--name={name}",
            "--network=host",
            f"--user={os.getuid()}:{os.getgid()}",
            f"--workdir={folder}",
            *(f"--volume={bind}" for bind in binds),
            *(f"--env={key}={value}" for key, value in known.items()),
            *(
                ["--gpus=all" if Path(self.engine).name == "docker" else "--device=nvidia.com/gpu=all"]
                if gpus
                else []
            ),
            self.policy.manifest.environment.image,
            *paths,
        ]
        return Launch(tuple(words), folder, dict(os.environ), (self.engine, "rm", "--force", name))


def prepare(policy: ExternalPolicy, lock: str = "", root: Path | None = None) -> Environment:
    """Return the policy's environment on this node; the first process that needs it makes it, others wait.

    lock: resolved versions, empty: those of the policy's folder, or whichever uv finds. root: folder of the
    environments, that of the node by default. Raises CommandError if it cannot be made, CommandRefusedError
    if no retry can help.
    """
    wanted = policy.manifest.environment
    if isinstance(wanted, ContainerImage):
        return Environment(policy, None, container_engine(policy))
    if not isinstance(wanted, UvEnvironment):
        return Environment(policy, Path(sys.executable).parent)
    lock = lock or policy.lock
    place = _place(policy, wanted, lock, root)
    with FileLock(place.with_suffix(".lock")):
        if not (place / "ready").exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            _make(policy, wanted, lock, place)
            (place / "ready").touch()
    return Environment(policy, place / "env" / "bin")


def is_ready(policy: ExternalPolicy) -> bool:
    """Return whether `prepare` has nothing to make on this node."""
    wanted = policy.manifest.environment
    return not isinstance(wanted, UvEnvironment) or (_place(policy, wanted, policy.lock) / "ready").exists()


def _place(policy: ExternalPolicy, wanted: UvEnvironment, lock: str, root: Path | None = None) -> Path:
    """Return the folder of an environment, which may not exist yet."""
    key = digest([wanted.python, policy.requirements, wanted.index, lock])
    return (root or user_folder("environments")) / key


def resolved(policy: ExternalPolicy, storage: Storage) -> str:
    """Return the version of every package of the policy's environment, a requirements file; empty if it needs
    none.

    Those of the policy's folder, or else those that the first run of the sweep resolved and its storage
    keeps: every node and every later run gets the same. Raises the errors of `prepare`.
    """
    wanted = policy.manifest.environment
    if not isinstance(wanted, UvEnvironment) or policy.lock:
        return policy.lock
    key = f"environments/{digest([wanted.python, policy.requirements, wanted.index])}.txt"
    if not storage.exists(key):
        with tempfile.TemporaryDirectory() as name:
            _write_requirements(policy, "", Path(name))
            words = ["pip", "compile", "--universal", "--no-annotate", "--no-header"]
            words += ["--python-version", wanted.python, *_indexes(wanted), f"{name}/requirements.txt"]
            lock = _uv(policy, words, Path(name))
        storage.put_if_absent(key, lock.encode())
    return storage.get(key).decode()


def resolved_before(policy: ExternalPolicy, storage: Storage) -> str:
    """Return what `resolved` returned to the sweep's first run, without resolving anything; empty if there
    was none.
    """
    wanted = policy.manifest.environment
    if not isinstance(wanted, UvEnvironment) or policy.lock:
        return policy.lock
    key = f"environments/{digest([wanted.python, policy.requirements, wanted.index])}.txt"
    return storage.get(key).decode() if storage.exists(key) else ""


def container_engine(policy: ExternalPolicy) -> str:
    """Return the program that runs containers on this node. Raises CommandRefusedError if there is none."""
    for name in ENGINES:
        if found := shutil.which(name):
            return found
    raise CommandRefusedError(
        f"{policy.name}: its environment is a container, and this node has neither {' nor '.join(ENGINES)};"
        " install one of them, or give the policy an environment that uv makes"
    )


def _make(policy: ExternalPolicy, wanted: UvEnvironment, lock: str, place: Path) -> None:
    _write_requirements(policy, lock, place)
    python = _interpreter(wanted.python)
    _uv(policy, ["venv", "--no-project", "--python", python, "env"], place)
    words = ["pip", "install", "--python", "env/bin/python", "--requirement", "requirements.txt"]
    words += ["--constraint", "constraints.txt", *_indexes(wanted)]
    if "UV_TORCH_BACKEND" in os.environ or wanted.index or not _has_torch(policy, lock):
        _uv(policy, words, place)
        return
    try:
        _uv(policy, [*words, "--torch-backend", "auto"], place)
    except CommandError as error:
        # PyTorch's own index may be out of reach where a mirror of the default one is not
        if not re.search(r"pytorch\.org|dns|lookup|connect|network|fetch", str(error), re.IGNORECASE):
            raise
        _uv(policy, words, place)


def _has_torch(policy: ExternalPolicy, lock: str) -> bool:
    return any(
        re.match(r"torch(vision|audio)?\b", line) for line in (*policy.requirements, *lock.split("\n"))
    )


def _write_requirements(policy: ExternalPolicy, lock: str, folder: Path) -> None:
    (folder / "requirements.txt").write_text("\n".join(policy.requirements) + "\n")
    (folder / "constraints.txt").write_text(lock)


def _indexes(wanted: UvEnvironment) -> list[str]:
    words = [word for url in wanted.index for word in ("--index", url)]
    return [*words, "--index-strategy", "unsafe-best-match"] if words else []


def _interpreter(version: str) -> str:
    """Return the version, which uv looks for or downloads, or the path of an interpreter that pyenv has and
    uv does not see.
    """
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = sorted(
        (place for place in root.glob("*") if f"{place.name}.".startswith(f"{version}.")),
        key=lambda place: [int(number) for number in re.findall(r"\d+", place.name)],
    )
    interpreters = [place / "bin" / "python" for place in places if (place / "bin" / "python").exists()]
    return str(interpreters[-1]) if interpreters else version


def _uv(policy: ExternalPolicy, words: Sequence[str], folder: Path) -> str:
    """Run uv in the folder; return what it printed."""
    try:
        done = subprocess.run(
            [uv(), *words],
            cwd=folder,
            env={**os.environ, "NO_COLOR": "1", "UV_NO_PROGRESS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=BUILD_S,
        )
    except subprocess.TimeoutExpired:
        raise CommandError(
            f"{policy.name}: uv was still busy after {BUILD_S / 60:g} minutes; start the same command again"
        ) from None
    except OSError as error:
        raise CommandRefusedError(
            f"{policy.name}: uv cannot be started ({error.strerror}); install the package uv"
        ) from None
    if done.returncode:
        said = " ".join(redact(done.stderr).split())
        raise CommandError(
            f"{policy.name}: uv could not make its environment: {printable(said[-UV_SAID:], UV_SAID)}"
        )
    return done.stdout


def uv() -> str:
    """Return the path of uv: that of the package of this environment, or the first on PATH."""
    own = Path(sys.executable).parent / "uv"
    return str(own) if own.exists() else shutil.which("uv") or "uv"
