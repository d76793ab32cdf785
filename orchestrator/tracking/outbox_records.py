"""Records of the outbox: each is one write to MLflow, which may be repeated without effect.

On disk a record is a JSON object with its tag under `do` and its fields under their names; an artifact's
bytes lie in a file of their own. Earlier versions wrote the same objects.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from orchestrator.config.arms import Arm
from orchestrator.tracking.mlflow_writer import MlflowWriter


@dataclass(frozen=True, kw_only=True)
class SetTags:
    """Tags of an arm's run."""

    do: ClassVar = "tags"
    arm_id: str | None
    """None: tags of the sweep's run."""
    tags: Mapping[str, str]

    def apply(self, writer: MlflowWriter) -> None:
        """Write the record to MLflow."""
        writer.tags(self.arm_id, dict(self.tags))


@dataclass(frozen=True, kw_only=True)
class DescribeArm:
    """Params, tags and datasets of an arm's run."""

    do: ClassVar = "arm"
    arm_id: str
    arm: Arm
    facts: Mapping[str, str]
    """Tags."""
    datasets: tuple[Mapping[str, str], ...] = ()
    """Objects with the keys name, digest, uri, profile and context."""

    def apply(self, writer: MlflowWriter) -> None:
        """Write the record to MLflow."""
        writer.arm(self.arm_id, self.arm, dict(self.facts), [dict(one) for one in self.datasets])


@dataclass(frozen=True, kw_only=True)
class LogCheckpoint:
    """A complete checkpoint, as a logged model of its arm's run."""

    do: ClassVar = "checkpoint"
    arm_id: str
    step: int
    fingerprint: str
    uri: str
    contract: Mapping[str, Any] | None = None
    """Conventions of its observations and actions (`Contract.to_json`); None: MLflow cannot load it."""
    example: bool = False
    """Whether the model has an input example."""

    def apply(self, writer: MlflowWriter) -> None:
        """Write the record to MLflow."""
        writer.checkpoint(self.arm_id, self.step, self.fingerprint, self.uri, self.contract, self.example)


@dataclass(frozen=True, kw_only=True)
class LogMetrics:
    """Metrics of an arm's run at a training step."""

    do: ClassVar = "metrics"
    arm_id: str
    step: int
    values: Mapping[str, float]
    at: int | None = None
    """Unix time of measurement in ms; None: the time of delivery."""
    checkpoint: str = ""
    """Fingerprint of the logged model to link them with; empty for none."""

    def apply(self, writer: MlflowWriter) -> None:
        """Write the record to MLflow."""
        writer.metrics(self.arm_id, self.step, dict(self.values), self.at, self.checkpoint)


@dataclass(frozen=True, kw_only=True)
class StoreArtifact:
    """A file of an arm's run."""

    do: ClassVar = "artifact"
    arm_id: str | None
    """None: a file of the sweep's run."""
    name: str
    """Path of the file among the run's files."""
    data: bytes
    digest: str = ""

    def apply(self, writer: MlflowWriter) -> None:
        """Write the record to MLflow."""
        writer.artifact(self.arm_id, self.name, self.data, self.digest)


@dataclass(frozen=True, kw_only=True)
class LogCurve:
    """Values of the sweep's curve at a demo count, as metrics of its run."""

    do: ClassVar = "curve"
    step: int
    """Demo count."""
    values: Mapping[str, float]
    at: int
    """Unix time in ms at which the curve was computed."""

    def apply(self, writer: MlflowWriter) -> None:
        """Write the record to MLflow."""
        writer.curve(self.step, self.values, self.at)


@dataclass(frozen=True, kw_only=True)
class Describe:
    """Description of an arm's run, Markdown."""

    do: ClassVar = "describe"
    arm_id: str | None
    """None: description of the sweep's run."""
    text: str
    links: Mapping[str, str]
    """Names of files of the run, by title."""

    def apply(self, writer: MlflowWriter) -> None:
        """Write the record to MLflow."""
        writer.describe(self.arm_id, self.text, self.links)


@dataclass(frozen=True, kw_only=True)
class SetStatus:
    """Status of an arm's run: RUNNING, FINISHED, FAILED or KILLED."""

    do: ClassVar = "status"
    arm_id: str | None
    """None: status of the sweep's run."""
    status: str
    at: int
    """Unix time in ms."""

    def apply(self, writer: MlflowWriter) -> None:
        """Write the record to MLflow."""
        writer.status(self.arm_id, self.status, self.at)


@dataclass(frozen=True, kw_only=True)
class FinishSweep:
    """The sweep is complete."""

    do: ClassVar = "finish"

    def apply(self, writer: MlflowWriter) -> None:
        """Write the record to MLflow."""
        writer.finish()


OutboxRecord = (
    SetTags
    | DescribeArm
    | LogCheckpoint
    | LogMetrics
    | LogCurve
    | Describe
    | SetStatus
    | StoreArtifact
    | FinishSweep
)
KINDS: dict[str, type[OutboxRecord]] = {
    kind.do: kind
    for kind in (
        SetTags,
        DescribeArm,
        LogCheckpoint,
        LogMetrics,
        LogCurve,
        Describe,
        SetStatus,
        StoreArtifact,
        FinishSweep,
    )
}


def to_note(record: OutboxRecord) -> tuple[dict[str, Any], bytes | None]:
    """Return a record as its JSON object, and an artifact's bytes; None for other records."""
    note = {"do": record.do, **vars(record)}
    if isinstance(record, DescribeArm):
        note |= {"arm": vars(record.arm), "datasets": list(record.datasets)}
    return note, note.pop("data", None)


def from_note(note: Mapping[str, Any]) -> OutboxRecord:
    """Return the record of a JSON object as `OutboxReader.next` returns it. Raises ValueError if it is none
    of this version.
    """
    kind = KINDS.get(note["do"])
    if kind is None:
        raise ValueError(f"a record of the unknown kind {note['do']}")
    values = {name: value for name, value in note.items() if name not in ("do", "file")}
    if unknown := values.keys() - {field.name for field in fields(kind)}:
        raise ValueError(f"a {note['do']} record has unknown fields: {', '.join(sorted(unknown))}")
    if kind is StoreArtifact and values.get("data") is None:
        raise ValueError("the data of an artifact record is missing")
    if kind is DescribeArm:
        values |= {"arm": Arm(**values["arm"]), "datasets": tuple(values.get("datasets", ()))}
    try:
        return kind(**values)
    except TypeError as error:  # a field is missing
        raise ValueError(f"a {note['do']} record is incomplete: {error}") from None
