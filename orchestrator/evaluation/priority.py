"""The order in which checkpoints are scored. Pure."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class RankedJob(Protocol):
    """Part of a job (`evaluation/scores.py`) that determines its urgency."""

    @property
    def arm_id(self) -> str:
        """Id of the arm."""

    @property
    def step(self) -> int:
        """Optimiser step of the checkpoint."""

    @property
    def shift(self) -> str:
        """Shift of the suite; `nominal` without."""

    @property
    def reference(self) -> bool:
        """Whether rules of other jobs compare with its outcomes."""
        ...


_Job = TypeVar("_Job", bound=RankedJob)


class EvalPriority:
    """Ranks checkpoints by the urgency of their score.

    Reference checkpoints, which others are compared with, come first; then an arm without any score; then a
    checkpoint that a stop decision waits for; then the newest checkpoint of each arm; then older ones.
    Shifted suites come last: no decision waits for them. Equally urgent jobs keep the order of the sequence.
    """

    def __init__(self, decides: Callable[[int], bool]) -> None:
        """decides: whether a decision about an arm waits for the score of its checkpoint at the given
        step.
        """
        self._decides = decides
        self._newest: dict[str, int] = {}  # step, by arm
        self._begun: set[str] = set()

    def opened(self, job: RankedJob) -> None:
        """Record a checkpoint that is to be scored."""
        self._newest[job.arm_id] = max(job.step, self._newest.get(job.arm_id, 0))

    def begun(self, job: RankedJob) -> None:
        """Record that the scoring of the arm has begun."""
        self._begun.add(job.arm_id)

    def first(self, jobs: Sequence[_Job]) -> _Job:
        """Return the most urgent job."""
        return min(jobs, key=self._rank)

    def _rank(self, job: RankedJob) -> tuple[int, int]:
        decides = self._decides(job.step)
        if job.shift != "nominal":
            return 5, 0
        if job.reference:
            return -1, job.step
        # arm without a score: the earliest deciding checkpoint, else the newest
        if job.arm_id not in self._begun:
            return (0, job.step) if decides else (1, -job.step)
        if decides:
            return 2, job.step
        return (3, 0) if job.step == self._newest[job.arm_id] else (4, 0)
