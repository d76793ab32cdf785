"""Scores of the references of a suite (`suite.references`): policies that anchor the scale of a curve."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

ARTIFACT = "references.json"
"""File of a sweep's run in MLflow."""
LABELS = {
    "random": "random actions",
    "expert": "scripted expert",
    "replay": "replayed demonstrations",
}
"""Names of references in legends."""


@dataclass(frozen=True)
class ReferenceScore:
    """Complete score of a reference on the nominal suite."""

    name: str
    """Name in `suite.references`."""
    successes: int
    episodes: int
    errors: int = 0

    @property
    def label(self) -> str:
        """Name in legends."""
        return LABELS.get(self.name, self.name)

    @property
    def success_rate(self) -> float:
        """Successes over episodes."""
        return self.successes / self.episodes


def encode(scores: Sequence[ReferenceScore]) -> bytes:
    """Return the artifact's bytes."""
    return json.dumps([asdict(score) for score in scores], indent=1).encode()


def decode(text: str) -> tuple[ReferenceScore, ...]:
    """Invert `encode`."""
    return tuple(ReferenceScore(**score) for score in json.loads(text))
