"""Queue of checkpoints for the scoring of their generated video: each is scored once, concurrently with the
rollouts.
"""

import queue
import threading
from collections.abc import Callable

from orchestrator.config.lines import Line
from orchestrator.cost import Cost
from orchestrator.data.subset import SubsetError
from orchestrator.evaluation.score_events import GeneratedVideoScored
from orchestrator.evaluation.scores import EvalJob, HeldOutJob
from orchestrator.evaluation.video_score import VideoBenchmark, VideoScore
from orchestrator.sweep.state import SweepState
from sim_workers.rollout.worker import one_line


class VideoEvalQueue:
    """Thread that scores the generated video of checkpoints one after another; neither rollout scores nor
    training wait for it.

    Scores are kept in the storage and not computed again. A failed measurement is reported, and the next run
    retries it.
    """

    def __init__(
        self,
        state: SweepState,
        judge: Callable[[EvalJob | HeldOutJob, VideoBenchmark], tuple[VideoScore, Cost]],
        on_event: Callable[[GeneratedVideoScored], None],
        say: Callable[[str], None],
    ) -> None:
        """Start the thread, which alone calls `judge` and `on_event`; an error of `on_event` ends it.

        judge: scores a checkpoint's video, which may take long; returns the score and its cost.
        """
        self._state, self._judge, self._on_event, self._say = state, judge, on_event, say
        self._todo: queue.Queue[tuple[EvalJob | HeldOutJob, Line] | None] = queue.Queue()
        """Checkpoints with their lines; None: no more follow."""
        self._ending = False
        self.failure: BaseException | None = None
        """Error that ended the thread; None if there is none."""
        self._tests: dict[str, VideoBenchmark | None] = {}
        """By name of the line."""
        for line in state.sweep.lines:
            try:
                self._tests[line.name] = state.video_test(line)
            except SubsetError as error:
                self._tests[line.name] = None
                say(
                    f"no video score: {error}; record more episodes, or set suite.video_clips lower (0: none)"
                )
        self._thread = threading.Thread(target=self._run, name="video", daemon=True)
        self._thread.start()

    def submit(self, job: EvalJob | HeldOutJob, line: Line) -> None:
        """Enqueue a scored checkpoint of a line that generates video."""
        self._todo.put((job, line))

    def wind_down(self) -> None:
        """Finish the current measurement and start no other."""
        self._ending = True
        self._todo.put(None)

    def drain(self) -> None:
        """Wait until all submitted checkpoints are scored; raises the thread's error, if any."""
        self._todo.put(None)
        while self._thread.is_alive():
            self._thread.join(0.5)
        if self.failure:
            raise self.failure

    def _run(self) -> None:
        try:
            while (item := self._todo.get()) and not self._ending:
                job, line = item
                if test := self._tests[line.name]:
                    self._measure(test, job)
        except BaseException as error:
            self.failure = error

    def _measure(self, test: VideoBenchmark, job: EvalJob | HeldOutJob) -> None:
        storage, cost = self._state.storage, Cost()
        score = test.known(storage, job.checkpoint.fingerprint)
        if not score:
            try:
                score, cost = self._judge(job, test)
            except Exception as error:  # a damaged episode or an unresponsive policy must not end the sweep
                self._say(f"no video score of {job}: {one_line(error)}; the next run tries again")
                return
            test.keep(storage, job.checkpoint.fingerprint, score)
            self._say(f"video {job}: {score}")
        self._on_event(GeneratedVideoScored(job, score, cost))
