"""Several sweeps on one curve: those whose scores have the same protocol, with comparisons on their common
scenes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from orchestrator.provenance import SIMULATING_PACKAGES
from orchestrator.report.curve_types import OWN, policy_lines
from orchestrator.report.published import PublishedResult
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.report.simulator_versions import SIMULATOR_TAG, VERSION_TAG, simulator_of
from orchestrator.tracking.mlflow_reader import ScoredArm, TrackedSweep
from policy.errors import DemoscaleError

NOT_COMPARED = ("name", "storage", "mlflow", "seeds", "budget", "prices", "search", "rollout_actors")
"""Fields of a sweep file that are not listed as differences: they shape neither a policy nor a score."""
MOST_LISTED = 12
VERSION_FIELDS = frozenset(
    {
        "simulator",
        *(f"{place}{name}" for place in ("packages.", VERSION_TAG) for name in SIMULATING_PACKAGES),
    }
)
"""Fields of a protocol, and tags, with versions of the simulator's packages."""
PROTOCOL_FIX = "score the last checkpoints of one on the suite of the other (`demoscale score`)"
VERSIONS_FIX = (
    "a policy's success rate depends on the version of the simulator: score the last checkpoints of one with"
    " the versions of the other (`demoscale score`), or add --across-versions"
)


class ProtocolsDifferError(DemoscaleError):
    """Error of one sentence: in what the scores of two sweeps differ, so that they cannot be compared."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True)
class NamedSweep:
    """A sweep read from MLflow, and its name on the common curve."""

    label: str
    tracked: TrackedSweep


@dataclass(frozen=True)
class FieldDifference:
    """A field in which sweep files differ."""

    field: str
    """Path with dots, as `--set` takes it."""
    values: tuple[Any, ...]
    """Values in the order of the sweeps; None where a file lacks the field."""

    @property
    def of_versions(self) -> bool:
        """Whether it is a version of the simulator's packages."""
        return self.field in VERSION_FIELDS

    @property
    def in_words(self) -> list[str]:
        """Values as text, shortened."""
        return ["none" if value is None else _short(value) for value in self.values]

    def __str__(self) -> str:
        return f"{self.field}: {' / '.join(self.in_words)}"


@dataclass(frozen=True)
class Beside:
    """What a page shows of several sweeps, or of one beside published results."""

    sweeps: tuple[str, ...]
    """Names of the sweeps on the curve."""
    differences: tuple[FieldDifference, ...]
    """Fields in which their sweep files differ."""
    published: tuple[PublishedResult, ...]
    warnings: tuple[str, ...]
    """What to mind when the published results are read beside the curve, one sentence each."""


def labels(names: Sequence[str], places: Sequence[str]) -> list[str]:
    """Return a different label for each sweep: its name, with its place where several have the name."""
    return [
        f"{name} in {place}" if names.count(name) > 1 else name
        for name, place in zip(names, places, strict=True)
    ]


def compared(sweeps: Sequence[NamedSweep], across_versions: bool = False) -> Curve:
    """Return one curve of all sweeps' arms, whose lines have the names of the sweeps.

    The curve pairs episodes of equal scenes; seeds are paired by their order in each sweep. across_versions:
    compare scores whose protocols differ in the versions of the simulator alone.

    Raises ProtocolsDifferError, with the field that differs, unless all scores have one protocol.
    """
    first, *others = sweeps
    for other in others:
        found = protocol_differences(first.tracked, other.tracked)
        if across_versions:
            found = [one for one in found if not one.of_versions]
        if found:
            told = _telling(found)
            fix = VERSIONS_FIX if told.of_versions else PROTOCOL_FIX
            raise ProtocolsDifferError(f"{first.label} and {other.label} cannot be compared, {told}; {fix}")
        if why := _unpublished(first.tracked, other.tracked):
            raise ProtocolsDifferError(f"{first.label} and {other.label} cannot be compared, {why}")
    arms = [arm for sweep in sweeps for arm in _renamed(sweep)]
    kept = [dict(sweep.tracked.sweep) for sweep in sweeps]
    common = _common(kept)
    names = dict.fromkeys(arm.arm.kind for arm in arms)
    lines = [{"name": name, "policy": "as its sweep file says"} for name in names]
    common["policy"] = {**common.get("policy", {}), "lines": lines}
    train = common.setdefault("train", {})
    budgets = {sweep.get("train", {}).get("seconds") for sweep in kept}
    if {"steps", "match"} - train.keys() or len(budgets) > 1:
        train.pop("steps", None)
        train.pop("seconds", None)
        train["match"] = OWN
    tags = _common([dict(sweep.tracked.tags) for sweep in sweeps])
    if len(versions := dict.fromkeys(simulator_of(sweep.tracked.tags) for sweep in sweeps)) > 1:
        tags[SIMULATOR_TAG] = " and ".join(version or "an unknown simulator" for version in versions)
    title = " and ".join(sweep.label for sweep in sweeps)
    return Curve(title, tuple(sorted(arms, key=lambda scored: scored.arm)), common, tags)


def _renamed(sweep: NamedSweep) -> Iterator[ScoredArm]:
    """Yield a sweep's arms with its label as policy, seeds numbered from 0, and the protocol of all."""
    places = {seed: place for place, seed in enumerate(sorted({one.arm.seed for one in sweep.tracked.arms}))}
    several = len(policy_lines(sweep.tracked.sweep)) > 1 or len({a.arm.kind for a in sweep.tracked.arms}) > 1
    for scored in sweep.tracked.arms:
        kind = f"{sweep.label} {scored.arm.kind}" if several else sweep.label
        arm = replace(scored.arm, kind=kind, seed=places[scored.arm.seed])
        # the same id may be another demonstration in the other sweep's store
        yield replace(scored, arm=arm, protocol="common", demos=())


def protocol_differences(first: TrackedSweep, second: TrackedSweep) -> list[FieldDifference]:
    """Return the fields in which the scoring protocols of two sweeps differ, as far as they are published;
    none if they are the same for policies of any kind.
    """
    if first.protocol and second.protocol:
        return [*_differences([first.protocol, second.protocol])]
    if _same_keys(first, second):
        return []
    suites = [{"suite": sweep.sweep.get("suite", {})} for sweep in (first, second)]
    versions = [
        {name: value for name, value in sweep.tags.items() if name.startswith("demoscale.version.")}
        for sweep in (first, second)
    ]
    return [*_differences(suites), *_differences(versions)]


def _same_keys(first: TrackedSweep, second: TrackedSweep) -> bool:
    return {arm.protocol for arm in first.arms} == {arm.protocol for arm in second.arms}


def _unpublished(first: TrackedSweep, second: TrackedSweep) -> str:
    """Return why it is unknown in what two protocols differ; empty if they are the same, or published."""
    if (first.protocol and second.protocol) or _same_keys(first, second):
        return ""
    return (
        "an earlier version published one of them without the parts of its protocol;"
        " `demoscale status NAME --rebuild` adds them"
    )


def _telling(found: Sequence[FieldDifference]) -> FieldDifference:
    """Return the difference that says most: a hash says only that something differs, and another version of
    the simulator brings other differences with it.
    """
    return min(
        found,
        key=lambda one: (one.field.startswith(("episode list", "code", "plug-ins")), not one.of_versions),
    )


def differences(sweeps: Sequence[NamedSweep]) -> list[FieldDifference]:
    """Return the fields in which the sweep files differ, other than NOT_COMPARED and scoring."""
    files = [
        {name: value for name, value in sweep.tracked.sweep.items() if name not in (*NOT_COMPARED, "suite")}
        for sweep in sweeps
    ]
    return [*_differences(files)]


def _differences(values: Sequence[Any], path: str = "") -> Iterator[FieldDifference]:
    """Yield the leaves in which JSON values differ."""
    if all(isinstance(value, Mapping) for value in values):
        for name in dict.fromkeys(name for value in values for name in value):
            yield from _differences([value.get(name) for value in values], f"{path}.{name}".lstrip("."))
    elif len({json.dumps(value, sort_keys=True) for value in values}) > 1:
        yield FieldDifference(path, tuple(values))


def _common(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what all mappings have in common."""
    found: dict[str, Any] = {}
    for name, value in values[0].items():
        own = [other.get(name) for other in values]
        if len(inner := [one for one in own if isinstance(one, dict)]) == len(own):
            found[name] = _common(inner)
        elif all(one == value for one in own):
            found[name] = value
    return found


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
