"""Findings of the quality checks: their kinds, and how those of many episodes are reported."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from orchestrator.data.manifest import EpisodeEntry
from orchestrator.data.quality.limits import Limits
from orchestrator.data.store_summary_text import amount

KINDS = {
    "unreadable": ("high", "the episode cannot be read or decoded"),
    "blank-camera": ("high", "pictures of one even colour, black for example"),
    "frozen-camera": ("high", "the same picture for a second or more while the robot moves"),
    "frozen-proprio": ("high", "the same proprioception for a second or more while the actions change"),
    "same-camera": ("high", "two cameras show the same pictures"),
    "lag": ("high", "pictures follow the motion late or come before it"),
    "gripper": ("medium", "the gripper's action never changes"),
    "jump": ("medium", "one step of the proprioception is many times the usual step"),
    "quaternion": (
        "medium",
        "an orientation changes its sign from one step to the next, or is not of length 1",
    ),
    "beyond": ("medium", "an action that is scaled to [-1, 1] reaches further"),
    "saturated": ("medium", "an action is at its limit in most steps of an episode"),
    "repeated": ("medium", "the camera gives fewer pictures than there are steps"),
    "duplicate": ("medium", "an episode that repeats another"),
    "constant": ("medium", "a dimension that does not change, in an episode or in the whole store"),
    "clipped": ("low", "an action is cut off at one value throughout the store"),
    "length": ("low", "an episode far shorter or longer than the others of its task"),
    "idle": ("low", "the robot stands still for a large part of the episode"),
    "far": ("low", "an episode unlike the others of its task"),
    "instruction": ("low", "an episode without an instruction"),
}
"""Kind of finding -> (severity, meaning)."""
SEVERITIES = ("high", "medium", "low")


@dataclass(frozen=True)
class Finding:
    """One problem found by a check."""

    severity: str
    kind: str
    episodes: tuple[str, ...]
    """Ids of the episodes concerned; empty for the whole store."""
    where: str
    """Name of the camera or dimension, or empty."""
    value: float
    unit: str
    sentence: str

    @property
    def scope(self) -> str:
        """Id of the only episode, or the number of episodes."""
        return (
            self.episodes[0]
            if len(self.episodes) == 1
            else amount(len(self.episodes), "episode")
            if self.episodes
            else "whole store"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields and `episode`, the id if exactly one is affected, else None; JSON-safe."""
        return asdict(self) | {"episode": self.episodes[0] if len(self.episodes) == 1 else None}


@dataclass
class Report:
    """Collector of findings."""

    limits: Limits
    found: list[Finding] = field(default_factory=list)

    def add(
        self,
        kind: str,
        entry: EpisodeEntry | None,
        where: str,
        value: float,
        unit: str,
        sentence: str,
        severity: str = "",
    ) -> None:
        """Add a finding. entry: affected episode; None: the whole store. severity: by default the kind's."""
        episodes = () if entry is None else (entry.episode_id,)
        self.found.append(
            Finding(
                severity=severity or KINDS[kind][0],
                kind=kind,
                episodes=episodes,
                where=where,
                value=round(float(value), 4),
                unit=unit,
                sentence=sentence,
            )
        )

    def sorted(self, episodes: int) -> list[Finding]:
        """Return the findings by severity; one that most episodes share is reported once."""
        groups: dict[tuple[str, str, bool], list[Finding]] = defaultdict(list)
        for finding in self.found:
            groups[finding.kind, finding.where, not finding.episodes].append(finding)
        said = []
        for (*_, whole), some in groups.items():
            if whole or len(some) <= max(3, self.limits.systematic * episodes):
                said += some
                continue
            worst = max(some, key=lambda finding: abs(finding.value))
            ids = tuple(dict.fromkeys(episode for finding in some for episode in finding.episodes))
            sentence = (
                f"in {len(ids)} of {amount(episodes, 'episode')}; in {worst.episodes[0]}: {worst.sentence}"
            )
            said.append(replace(worst, episodes=ids, sentence=sentence))
        order = list(KINDS)
        return sorted(
            said, key=lambda f: (SEVERITIES.index(f.severity), order.index(f.kind), f.episodes[:1], f.where)
        )


def concerned(findings: Sequence[Finding], most: int) -> dict[str, list[Finding]]:
    """Return the first `most` episodes with findings, the most severe first, and their findings.

    A finding in many episodes counts for its first three.
    """
    chosen: dict[str, list[Finding]] = {}
    for finding in findings:
        for episode in finding.episodes[:3]:
            if episode in chosen or len(chosen) < most:
                chosen.setdefault(episode, []).append(finding)
    return chosen
