"""The manifest of an external policy, `policies/NAME/policy.yaml`: its environment, its two commands, the
data that it learns from, and what of a sweep file it understands. `policies/README.md` describes it for
people.

A policy is a folder with the manifest and the programs that it names. It is read once, whole, so that an edit
during a sweep changes neither what is trained nor what is scored.
"""

import difflib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from orchestrator.config.schema import Data, Section, Train, distinct
from orchestrator.config.yaml_text import read_yaml
from orchestrator.provenance import digest
from orchestrator.redaction import fields_with_credentials, redact
from policy.errors import DemoscaleError
from policy.interface import Contract
from policy.untrusted import printable

MANIFEST = "policy.yaml"
LOCK = "requirements.lock"
"""File of a policy's folder with the version of every package of its environment, as `uv pip compile` writes
it; without one, versions are resolved by the first run of a sweep.
"""
MOST_FILES, MOST_BYTES = 500, 16 << 20
"""Limits of a policy's folder: files, and bytes of all of them."""
ALWAYS = ("steps",)
"""Knobs that every policy has to follow."""
KNOBS = (
    "steps",
    "seconds",
    "weights",
    "batch_size",
    "checkpoint_every",
    "seed",
    "learning_rate",
    "schedule",
    "warmup_steps",
    "weight_decay",
    "clip_norm",
    "ema_decay",
    "precision",
    "accumulate",
    "color_jitter",
)
"""Fields of a sweep file that an external policy may understand."""
DataFormat = Literal["lerobot_v3", "robomimic_hdf5", "diffusion_policy_zarr"]
_SHAPING = {"description", "tested", "limits", "resources"}
"""Fields of the manifest that shape no weights."""


class ManifestError(DemoscaleError):
    """Everything that is wrong with a policy's folder, one sentence each, with the file and the field."""

    exit_code = 2

    def __init__(self, where: str, problems: list[str]) -> None:
        self.problems = [redact(problem) for problem in problems]
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        super().__init__(
            f"{redact(where)}: {count}\n" + "\n".join(f"  - {problem}" for problem in self.problems)
        )


def _within(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith(("/", "~")) or ".." in parts or "\\" in path:
        raise ValueError(f"{path!r} must be a path inside the policy's folder, with / between its parts")
    return path


class UvEnvironment(Section):
    """A Python environment that uv makes once per node."""

    python: Annotated[str, Field(pattern=r"^3\.\d{1,2}(\.\d{1,2})?$")]
    """Version of Python, in quotes: "3.12"."""
    requirements: tuple[str, ...] | str
    """Packages as in a requirements file; or the path of such a file in the policy's folder."""
    index: tuple[str, ...] = ()
    """URLs of package indexes besides the default one, tried first. Without any, torch is the build for what
    the node has: CPU, or its GPU's driver.
    """

    @field_validator("requirements")
    @classmethod
    def _plain(cls, requirements: tuple[str, ...] | str) -> tuple[str, ...] | str:
        if isinstance(requirements, str):
            return _within(requirements)
        for line in requirements:
            if not line.strip() or line.lstrip().startswith("-") or "\n" in line:
                raise ValueError(f"{printable(line, 80)!r} is no requirement; write for example torch>=2.7")
        return requirements

    @field_validator("index")
    @classmethod
    def _urls(cls, index: tuple[str, ...]) -> tuple[str, ...]:
        for url in index:
            if not url.startswith(("https://", "http://", "file://")):
                raise ValueError(f"{printable(url, 80)!r} is no URL of an index")
        return index


class ContainerImage(Section):
    """A container, run with podman or docker."""

    image: Annotated[str, Field(pattern=r"^[\w][\w.:/@-]*$")]
    """Name of the image with its tag or digest; it is not built here."""


Environment = Annotated[
    Annotated[Literal["this"], Tag("this")]
    | Annotated[UvEnvironment, Tag("uv")]
    | Annotated[ContainerImage, Tag("image")],
    Discriminator(
        lambda value: (
            "image"
            if isinstance(value, ContainerImage) or (isinstance(value, dict) and "image" in value)
            else "uv"
            if isinstance(value, UvEnvironment | dict)
            else "this"
        )
    ),
]


class Wants(Section):
    """What a policy needs of the episodes' conventions."""

    cameras: Literal["any"] | PositiveInt = "any"
    """Number of cameras; `any`: at least one."""
    proprio: Literal["any", "required"] = "any"
    """`required`: the episodes must have proprioceptive values."""
    single_arm: bool = False
    """Whether it can only act with one arm."""

    def problems(self, contract: Contract) -> list[str]:
        """Return one clause per convention of the episodes that the policy cannot use."""
        problems = []
        if self.cameras != "any" and len(contract.cameras) != self.cameras:
            problems.append(
                f"it takes {self.cameras} cameras, the episodes have {len(contract.cameras)}"
                f" ({', '.join(contract.cameras)})"
            )
        if not contract.cameras:
            problems.append("it takes pictures, and the episodes have none")
        if self.proprio == "required" and not contract.proprio:
            problems.append("it takes proprioception, and the episodes have none")
        arms = {name.partition("_")[0] for name in contract.action if re.match(r"robot\d+_", name)}
        if self.single_arm and len(arms) > 1:
            problems.append(f"it acts with one arm, the actions are of {len(arms)}")
        return problems


class Resources(Section):
    """What one training run takes of a node."""

    cpus: PositiveFloat = 1.0
    """Cores, which also is the number of threads that the commands are asked to use."""
    gpus: NonNegativeFloat = 0.0
    """GPUs; a fraction shares one."""


class Limits(Section):
    """Seconds after which something counts as failed."""

    silent_s: PositiveFloat = 3600.0
    """Training without a line in its report and in its log."""
    start_s: PositiveFloat = 300.0
    """The server until it answers; loading weights included."""
    answer_s: PositiveFloat = 120.0
    """One answer of the server."""
    stop_s: PositiveFloat = 60.0
    """After SIGTERM, until the command is killed; writing a checkpoint included."""


Option = bool | int | float | str | None | tuple[bool | int | float | str, ...]
Command = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class PolicyManifest(Section):
    """One `policy.yaml`. Every path in it is relative to its folder."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")]
    """Of the policy; lines of a sweep may have other names."""
    description: str = ""
    """One sentence for people."""
    environment: Environment
    """`this`: the environment that runs demoscale; {python: "3.12", requirements: [...]}: one that uv makes;
    {image: ...}: a container.
    """
    train: Command
    """The training command, a list of words. `python` is the environment's; a word that names a file of the
    folder becomes its path.
    """
    serve: Command
    """The command that serves a checkpoint over HTTP, as `train`."""
    include: tuple[str, ...] = ()
    """Folders next to the policy's whose programs it uses, `../NAME`; they become folders NAME inside it."""
    data: DataFormat
    """Format in which it reads the arm's episodes."""
    action_free: bool = False
    """Whether it learns from episodes without actions too."""
    wants: Wants = Wants()
    """What it needs of the episodes' conventions."""
    resources: Resources = Resources()
    """What one training run takes of a node."""
    understands: tuple[str, ...] = ("batch_size", "checkpoint_every", "seed")
    """Fields of the sweep file that the training command follows, besides the number of steps; `seconds`: it
    can end by a budget of time; `weights`: it draws its samples by the weights of stores.
    """
    options: Mapping[str, Option] = Field(default_factory=dict)
    """Settings of the policy's own, with their defaults; a line of a sweep file may change them."""
    memory: bool = False
    """Whether its answer depends on earlier observations of the episode."""
    observation_steps: PositiveInt = 1
    """Observations at successive control steps that one answer takes."""
    tested: bool = True
    """false: the authors of the manifest have not run it; plans say so."""
    limits: Limits = Limits()
    """Seconds after which something counts as failed."""
    variables: Mapping[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")], str] = Field(default_factory=dict)
    """Environment variables of both commands, such as HF_HUB_OFFLINE: "1"."""

    @field_validator("include")
    @classmethod
    def _beside(cls, include: tuple[str, ...]) -> tuple[str, ...]:
        for path in distinct(include):
            if not re.fullmatch(r"\.\./\w+", path):
                raise ValueError(f"{printable(path, 80)!r} must be a folder next to the policy's: ../NAME")
        return include

    @field_validator("understands")
    @classmethod
    def _known(cls, understands: tuple[str, ...]) -> tuple[str, ...]:
        for knob in distinct(understands):
            if knob not in KNOBS:
                close = difflib.get_close_matches(knob, KNOBS, 1)
                raise ValueError(
                    f"unknown knob {knob}; "
                    + (f"did you mean {close[0]}?" if close else f"there are {', '.join(KNOBS)}")
                )
        return understands

    @model_validator(mode="before")
    @classmethod
    def _holds_no_credentials(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and (found := list(fields_with_credentials(raw))):
            raise ValueError(
                "\n".join(
                    f"there are credentials in {name}; set them in the environment of the machines"
                    for name in found
                )
            )
        return raw

    def misunderstandings(self, train: Train, data: Data) -> list[str]:
        """Return one sentence per choice of a sweep that the policy cannot be trained by."""
        found = []
        if data.weighted and "weights" not in self.understands:
            found.append(
                f"data.episodes: {self.name} does not draw its samples by the stores' weights; leave the"
                " weights out, or let its command follow the field weights of its job and add weights to its"
                " understands"
            )
        if train.timed and "seconds" not in self.understands:
            found.append(
                f"train.match: {self.name} cannot end its training by time; match steps, or let its command"
                " follow seconds (`common.train_job.take_steps` does) and add seconds to its understands"
            )
        return found

    def ignored(self, chosen: Iterable[str]) -> list[str]:
        """Return which of these fields of a sweep file the policy does not follow, in order; a plan says so.

        chosen: names of fields of `train`, and `seed`.
        """
        return [name for name in chosen if name not in (*ALWAYS, *self.understands)]

    def with_options(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return the policy's options with those that a line of a sweep file chose. Raises ValueError, with
        one sentence, for one that the policy does not have or of another type.
        """
        merged = dict(self.options)
        for name, value in chosen.items():
            if name not in merged:
                close = difflib.get_close_matches(name, merged, 1)
                has = (
                    f"did you mean {close[0]}?" if close else f"it has {', '.join(sorted(merged)) or 'none'}"
                )
                raise ValueError(f"options.{name}: {self.name} has no such option; {has}")
            try:
                merged[name] = TypeAdapter[Any](Option).validate_python(value)
            except ValidationError:
                raise ValueError(
                    f"options.{name}: {printable(repr(value), 60)} is no number, text, truth value or list"
                    " of them"
                ) from None
        return merged


@dataclass(frozen=True)
class ExternalPolicy:
    """A policy's folder as it was read: the manifest, and the content of every file."""

    place: str
    """Folder as it was named, for messages."""
    manifest: PolicyManifest
    files: Mapping[str, bytes] = field(repr=False)
    """Content by path relative to the folder, with `/`."""

    @property
    def name(self) -> str:
        """Name of the policy."""
        return self.manifest.name

    @property
    def lock(self) -> str:
        """Versions of all packages that the folder itself fixes (LOCK); empty if it fixes none."""
        return self.files.get(LOCK, b"").decode(errors="replace")

    @property
    def requirements(self) -> tuple[str, ...]:
        """Lines of the environment's requirements; empty unless uv makes it."""
        environment = self.manifest.environment
        if not isinstance(environment, UvEnvironment):
            return ()
        if isinstance(environment.requirements, str):
            return tuple(self.files[environment.requirements].decode(errors="replace").splitlines())
        return environment.requirements

    def fingerprint(self, lock: str = "") -> str:
        """Return the hash of everything that shapes what it trains: the manifest's meaning, the programs, and
        the versions of its packages.

        lock: resolved requirements, empty if the folder fixes them or if they are not resolved yet. Comments
        in the manifest, documentation (*.md), the description and limits count for nothing.
        """
        return digest([self._meaning, lock or self.lock])

    @cached_property
    def _meaning(self) -> list[Any]:
        programs = {
            name: hashlib.sha256(data).hexdigest()[:16]
            for name, data in self.files.items()
            if name not in (MANIFEST, LOCK) and not name.endswith(".md")
        }
        return [self.manifest.model_dump(mode="json", exclude=_SHAPING), programs]

    def write(self, folder: Path) -> None:
        """Write the files into an existing folder."""
        for name, data in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def load(folder: str | Path, copied: bool = False) -> ExternalPolicy:
    """Read a policy's folder; hidden files and Python's caches are left out. Raises ManifestError with one
    sentence per mistake.

    copied: the folder is one that `ExternalPolicy.write` filled, with the included folders inside.
    """
    root, where = Path(folder), f"{folder}/{MANIFEST}".replace(f"/{MANIFEST}/{MANIFEST}", f"/{MANIFEST}")
    if root.name == MANIFEST:
        root = root.parent
    if not root.is_dir():
        raise ManifestError(str(folder), ["there is no such folder; name one with a policy.yaml"])
    if not (root / MANIFEST).is_file():
        raise ManifestError(str(folder), [f"it has no {MANIFEST}; policies/README.md describes one"])
    files = _read_files(root)
    manifest = _parsed(files[MANIFEST], where)
    for path in () if copied else manifest.include:
        name = PurePosixPath(path).name
        if not (root / path).is_dir() or (root / name).exists():
            raise ManifestError(
                where, [f"include: {path} must be a folder, and {name} no file of the policy's own folder"]
            )
        files |= {f"{name}/{file}": data for file, data in _read_files(root / path).items()}
    if problems := list(_missing_files(manifest, files)):
        raise ManifestError(where, problems)
    return ExternalPolicy(str(root), manifest, files)


def folders_of(folder: Path) -> dict[Path, dict[str, bytes]]:
    """Return the files that `load` reads of a policy's folder and of each one that it includes, content by
    path relative to the folder. Raises ManifestError as `load` does.
    """
    included = load(folder).manifest.include
    return {place: _read_files(place) for place in (folder, *(folder / path for path in included))}


def _read_files(root: Path) -> dict[str, bytes]:
    files, total = dict[str, bytes](), 0
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if any(part.startswith(".") or part == "__pycache__" for part in name.parts) or not path.is_file():
            continue
        if not path.resolve().is_relative_to(root.resolve()):
            raise ManifestError(
                str(root), [f"{name} is a link out of the folder; copy the file itself there"]
            )
        total += path.stat().st_size
        if len(files) == MOST_FILES or total > MOST_BYTES:
            raise ManifestError(
                str(root),
                [
                    f"it has more than {MOST_FILES} files or {MOST_BYTES >> 20} MiB; keep data and weights"
                    " elsewhere, and a policy's programs alone here"
                ],
            )
        files[name.as_posix()] = path.read_bytes()
    return files


def _parsed(data: bytes, where: str) -> PolicyManifest:
    try:
        raw = read_yaml(data.decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or " ".join(str(error).split())
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ManifestError(where, [f"not readable as YAML: {said}{at}"]) from None
    if not isinstance(raw, dict):
        raise ManifestError(where, ["a manifest is a mapping of fields; policies/README.md describes them"])
    try:
        return PolicyManifest.model_validate(raw)
    except ValidationError as error:
        raise ManifestError(where, [line for item in error.errors() for line in _sentences(item)]) from None


def _sentences(error: Any) -> Iterator[str]:
    """Yield the messages of one pydantic error: the field and what is wrong."""
    places = [str(part) for part in error["loc"] if part not in ("uv", "image", "this")]
    location = ".".join(places)
    if places[:1] == ["environment"] and error["loc"][-1] == "image" and error["type"] == "missing":
        location = "environment.image"
    if error["type"] == "extra_forbidden":
        known = _fields_at(error["loc"][:-1])
        close = difflib.get_close_matches(places[-1], known, 1)
        yield f"{location}: unknown field; " + (
            f"did you mean {close[0]}?" if close else f"the fields here are {', '.join(known)}"
        )
    elif error["type"] == "missing":
        yield f"{location}: missing"
    elif location == "environment.python" and error["type"] == "string_type":
        yield 'environment.python: write the version in quotes: "3.12"'
    elif location == "environment" and error["type"] == "literal_error":
        yield 'environment: write this, {python: "3.12", requirements: [...]}, or {image: ...}'
    else:
        message = error["msg"].removeprefix("Value error, ")
        for line in message.split("\n"):
            yield f"{location}: {line[:1].lower()}{line[1:]}" if location else line


def _fields_at(location: Iterable[Any]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {
        "wants": Wants,
        "resources": Resources,
        "limits": Limits,
        "uv": UvEnvironment,
        "image": ContainerImage,
    }
    model: type[BaseModel] = PolicyManifest
    for part in location:
        model = sections.get(str(part), model)
    return list(model.model_fields)


def _missing_files(manifest: PolicyManifest, files: Mapping[str, bytes]) -> Iterator[str]:
    environment = manifest.environment
    if (
        isinstance(environment, UvEnvironment)
        and isinstance(environment.requirements, str)
        and environment.requirements not in files
    ):
        yield f"environment.requirements: there is no file {environment.requirements} in the folder"
    for field_name, words in (("train", manifest.train), ("serve", manifest.serve)):
        for word in words[1:]:
            if re.fullmatch(r"[\w./-]+\.(py|sh)", word) and not word.startswith("/") and word not in files:
                yield f"{field_name}: there is no file {word} in the folder"
