"""Published results beside a curve: successes out of episodes, with their source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from orchestrator.config.arms import in_demos
from orchestrator.config.yaml_text import MOST_BYTES, read_yaml
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.report.simulator_versions import VERSION_TAG
from orchestrator.stats.fixed_sample import Interval, blaker
from policy.errors import DemoscaleError
from sim_workers.rollout.suite import task_in_ids

FIELDS = ("name", "source", "episodes", "successes", "rate", "demos", "tasks", "versions")


class PublishedError(DemoscaleError):
    """Error of one sentence: what is wrong with a file of published results."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """One published success rate."""

    name: str
    source: str
    """Where it is published: a paper's table, a repository, a model's page."""
    successes: int
    episodes: int
    rounded: bool = False
    """Whether the successes are computed from a rate, which is rounded."""
    demos: int | None = None
    """Demonstrations per task; None if not stated."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks; empty if not stated."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the simulator's packages by name; empty if not stated."""

    @property
    def rate(self) -> float:
        """Success rate."""
        return self.successes / self.episodes

    @property
    def interval(self) -> Interval:
        """95 % interval over the pooled episodes (Blaker), without the spread between training seeds."""
        return blaker(self.successes, self.episodes)

    def __str__(self) -> str:
        low, high = self.interval
        demos = "" if self.demos is None else f", {in_demos(self.demos)}"
        about = "about " if self.rounded else ""
        return (
            f"published: {self.name}{demos}: {about}{self.successes}/{self.episodes} = {self.rate:.2f}"
            f" [{low:.2f}, {high:.2f}] ({self.source})"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields, the rate and its interval, JSON-safe."""
        return {**vars(self), "tasks": list(self.tasks), "rate": self.rate, **self.interval._asdict()}


def read_published(path: str | Path) -> tuple[PublishedResult, ...]:
    """Return the results of a YAML file; its format is that of `examples/published/`.

    Raises PublishedError with the first mistake.
    """
    try:
        text = Path(path).read_bytes()
        if len(text) > MOST_BYTES:
            raise PublishedError(f"{path}: it has more than {MOST_BYTES} bytes; name fewer results")
        raw = read_yaml(text.decode())
    except OSError as error:
        raise PublishedError(f"{path}: it cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise PublishedError(f"{path}: it is no YAML file ({' '.join(str(error).split())[:200]})") from None
    results = raw.get("results") if isinstance(raw, dict) else None
    if not isinstance(results, list) or not results:
        raise PublishedError(f"{path}: write a list of results under `results`, as in examples/published/")
    return tuple(_result(path, number, entry) for number, entry in enumerate(results, 1))


def _result(path: str | Path, number: int, entry: Any) -> PublishedResult:
    where = f"{path}: result {number}"
    if not isinstance(entry, dict):
        raise PublishedError(f"{where} is {entry!r}; write its fields: {', '.join(FIELDS)}")
    if unknown := sorted(map(str, entry.keys() - {*FIELDS})):
        raise PublishedError(f"{where}: unknown field {unknown[0]}; there are {', '.join(FIELDS)}")
    for name in ("name", "source"):
        if not isinstance(entry.get(name), str) or not entry[name].strip():
            raise PublishedError(f"{where}: {name} is missing; write it as text")
    where = f"{where} ({entry['name']})"
    episodes = _count(where, "episodes", entry.get("episodes"), 1)
    rate, tasks, versions = entry.get("rate"), entry.get("tasks", []), entry.get("versions", {})
    if ("successes" in entry) == ("rate" in entry):
        raise PublishedError(f"{where}: write either successes or rate")
    if "rate" not in entry:
        successes = _count(where, "successes", entry.get("successes"), 0)
    elif isinstance(rate, int | float) and 0 <= rate <= 1:
        successes = round(rate * episodes)
    else:
        raise PublishedError(f"{where}: rate is {rate!r}; write a number from 0 to 1")
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        raise PublishedError(f"{where}: tasks is {tasks!r}; write a list of names")
    if not isinstance(versions, dict) or not all(isinstance(value, str) for value in versions.values()):
        raise PublishedError(f"{where}: versions is {versions!r}; write a version in quotes for each package")
    if successes > episodes:
        raise PublishedError(f"{where}: successes is {successes}, more than its {episodes} episodes")
    return PublishedResult(
        name=entry["name"].strip(),
        source=entry["source"].strip(),
        successes=successes,
        episodes=episodes,
        rounded="rate" in entry,
        demos=None if entry.get("demos") is None else _count(where, "demos", entry["demos"], 1),
        tasks=tuple(tasks),
        versions=versions,
    )


def _count(where: str, name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PublishedError(f"{where}: {name} is {value!r}; write a whole number from {least} on")
    return value


def warnings_for(curve: Curve, results: Sequence[PublishedResult]) -> list[str]:
    """Return one sentence for each difference between a curve's conditions and the published ones, and for
    each that is not stated.
    """
    tasks = sorted({task for point in curve.points for task in point.by_task})
    said = ["Published results are of other scenes and seeds: compare rates with care, not episodes."]
    for result in results:
        if result.tasks and sorted(map(task_in_ids, result.tasks)) != tasks:
            said.append(
                f"{result.name}: its tasks differ ({', '.join(result.tasks)}; here {', '.join(tasks)})."
            )
        for package, version in result.versions.items():
            here = curve.tags.get(f"{VERSION_TAG}{package}", "")
            if here != version:
                said.append(
                    f"{result.name}: played with {package} {version}, here with {here or 'an unknown one'};"
                    " success rates may differ between versions of a simulator."
                )
    if silent := [result.name for result in results if not result.versions]:
        said.append(f"Versions of the simulator are not stated for {', '.join(silent)}.")
    if silent := [result.name for result in results if not result.tasks]:
        said.append(f"Tasks are not stated for {', '.join(silent)}: check that they are {_few(tasks)}.")
    return said


def _few(tasks: Sequence[str]) -> str:
    return ", ".join(tasks) if len(tasks) < 4 else f"the {len(tasks)} of this sweep"
