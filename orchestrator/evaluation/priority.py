"""Which checkpoint to score next: the one whose score tells most. Pure."""

from collections.abc import Callable, Sequence

from orchestrator.evaluation.scores import ScoringJob


class Urgency:
    """What others are held against first; then an arm without any score; then what a stop decision waits for; then the newest checkpoint of each arm.

    Older ones follow. Shifted worlds come last: no decision waits for them. Equally urgent ones keep the order in which they came.
    """

    def __init__(self, decides: Callable[[int], bool]) -> None:
        """decides: whether a decision about the arm waits for the score of its checkpoint of this step."""
        self._decides = decides
        self._newest: dict[str, int] = {}  # step, by arm
        self._begun: set[str] = set()

    def opened(self, job: ScoringJob) -> None:
        """There is a checkpoint to score."""
        self._newest[job.arm_id] = max(job.step, self._newest.get(job.arm_id, 0))

    def begun(self, job: ScoringJob) -> None:
        """The arm has a score, or is about to."""
        self._begun.add(job.arm_id)

    def first(self, jobs: Sequence[ScoringJob]) -> ScoringJob:
        """The most urgent of them."""
        return min(jobs, key=self._rank)

    def _rank(self, job: ScoringJob) -> tuple[int, int]:
        decides = self._decides(job.step)
        if job.suite.shift != "nominal":
            return 5, 0
        if job.reference:
            return -1, job.step
        if job.arm_id not in self._begun:  # of an arm without a score, what decides; else its newest
            return (0, job.step) if decides else (1, -job.step)
        if decides:
            return 2, job.step
        return (3, 0) if job.step == self._newest[job.arm_id] else (4, 0)
