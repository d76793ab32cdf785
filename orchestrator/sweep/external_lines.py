"""Policies of a sweep's lines that are not of this package: what of them shapes arms, which the storage
keeps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.code_fingerprint import learner_code
from orchestrator.config.lines import Line
from orchestrator.config.policy_manifest import ExternalPolicy, ManifestError, load
from orchestrator.config.schema import Train
from orchestrator.config.sweep_config import SweepConfig, SweepError
from orchestrator.external.environment import resolved, resolved_before
from orchestrator.external.subset_export import VERSION
from orchestrator.fingerprints import Key
from orchestrator.provenance import TRAINING_PACKAGES
from orchestrator.storage.base import Storage
from policy.entry_points import PluginError

_NOT_SHAPING = {"checkpoint_every", "seed"}
"""Knobs that are no part of a key: the seed is the arm's."""


@dataclass(frozen=True)
class ExternalLine:
    """What of an external policy shapes the arms of a line."""

    fingerprint: str
    """Hash of its programs and packages."""
    options: Mapping[str, Any]
    """Its settings: those of the line, and the defaults of the others."""
    knobs: tuple[str, ...]
    """Fields of `train` that it follows."""
    own_environment: bool
    """Whether it has other packages than this program."""
    resources: tuple[float, float] = (1.0, 0.0)
    """Cores and GPUs of a training run, which shape a policy that is trained by time."""
    policy: ExternalPolicy | None = field(default=None, compare=False, repr=False)
    """Its folder; None if only what the last run pinned is known."""
    lock: str = field(default="", compare=False, repr=False)
    """Resolved requirements of its environment."""

    def pinned(self) -> dict[str, Any]:
        """Return what the storage keeps, JSON-safe."""
        return {
            "fingerprint": self.fingerprint,
            "options": dict(self.options),
            "knobs": list(self.knobs),
            "own_environment": self.own_environment,
            "resources": list(self.resources),
        }

    @classmethod
    def from_pinned(cls, data: Mapping[str, Any]) -> "ExternalLine":
        """Invert `pinned`."""
        cpus, gpus = data.get("resources", (1.0, 0.0))
        return cls(
            data["fingerprint"], data["options"], tuple(data["knobs"]), data["own_environment"], (cpus, gpus)
        )

    def key(self, parts: Mapping[str, Any], train: Train, packages: Mapping[str, str]) -> Key:
        """Return the key of everything besides the arm that shapes a policy of the line.

        parts: those of the data. train: of the arm. packages: versions by name.
        """
        recipe = train.model_dump(mode="json")
        chosen = {
            name: recipe[name]
            for name in ("steps", *self.knobs)
            if name in recipe and name not in _NOT_SHAPING
        }
        if train.timed:
            chosen["resources"] = list(self.resources)
            del chosen["steps"]
        return Key(
            "training",
            {
                **parts,
                "policy": {"external": self.fingerprint, "options": dict(self.options)},
                "recipe": chosen,
                "packages": (
                    {} if self.own_environment else {name: packages[name] for name in TRAINING_PACKAGES}
                ),
                "code": {"exports": VERSION},
            },
        )


def read_external_lines(
    sweep: SweepConfig, storage: Storage, before: Mapping[str, Any], pin: bool, here: bool
) -> dict[str, ExternalLine]:
    """Return what shapes the external lines of a sweep, by name of the line.

    before: as the last run pinned it, by name. pin: read the folders and resolve their environments, for a
    run; here: read the folders alone. Otherwise the pinned ones are returned, as far as there are any. Raises
    SweepError with every mistake of a folder.
    """
    found, problems = dict[str, ExternalLine](), list[str]()
    for number, line in enumerate(sweep.policy.lines):
        if line.own:
            continue
        if line.name in before and not (pin or here):
            found[line.name] = ExternalLine.from_pinned(before[line.name])
            continue
        try:
            read = _read(line, storage, pin)
            assert read.policy
            if wrong := read.policy.manifest.misunderstandings(sweep.train, sweep.data):
                problems += [f"policy.lines.{number}: {problem}" for problem in wrong]
            found[line.name] = read
        except ManifestError as error:
            problems += [f"policy.lines.{number}: {line.policy}: {problem}" for problem in error.problems]
        except ValueError as error:
            problems.append(f"policy.lines.{number}.{error}")
    if problems:
        raise SweepError(sweep.name, problems)
    return found


def _read(line: Line, storage: Storage, pin: bool) -> ExternalLine:
    """Read the folder that a line names. Raises ManifestError, ValueError for settings that do not fit the
    policy, and the errors of `external.environment.resolved`.
    """
    policy = load(line.policy)
    manifest = policy.manifest
    if line.swept and not manifest.action_free:
        raise ValueError(f"action_free: {line.policy} cannot learn from episodes without actions")
    lock = resolved(policy, storage) if pin else resolved_before(policy, storage)
    return ExternalLine(
        policy.fingerprint(lock),
        manifest.with_options(line.options),
        tuple(manifest.understands),
        manifest.environment != "this",
        (manifest.resources.cpus, manifest.resources.gpus),
        policy,
        lock,
    )


def read_learner_code(
    sweep: SweepConfig, before: Mapping[str, Mapping[str, str]], read: bool
) -> dict[str, Mapping[str, str]]:
    """Return the code of every package that offers a line's policy by an entry point
    (`code_fingerprint.learner_code`), by name of the line.

    before: as the last run pinned it. read: hash the installed packages. Raises SweepError for a policy that
    no installed package offers, or several do.
    """
    found, problems = dict[str, Mapping[str, str]](), list[str]()
    for number, line in enumerate(sweep.policy.lines):
        if not line.learner:
            continue
        if line.name in before and not read:
            found[line.name] = before[line.name]
            continue
        try:
            found[line.name] = learner_code(line.learner)
        except PluginError as error:
            problems.append(f"policy.lines.{number}.policy: {error}")
    if problems:
        raise SweepError(sweep.name, problems)
    return found
