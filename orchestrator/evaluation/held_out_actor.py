"""Process that reads held-out episodes and queries policies about them, for generated video and for action
errors.
"""

import time
from typing import Any

from orchestrator.evaluation.action_error_score import ActionErrorBenchmark, Measured
from orchestrator.evaluation.video_score import VideoBenchmark, VideoScore
from sim_workers.checkout import Files, check_imported
from sim_workers.rollout.policy_clients import PolicySource


class HeldOutActor:
    """A Ray actor that decodes, queries and measures in a process of its own, so that it blocks neither
    policy servers nor the driver.

    Deterministic: a call retried after a restart gets the same answer.
    """

    def __init__(self, code: Files | None = None) -> None:
        """code: the driver's files; a method raises CodeChangedError if this process imported others. None:
        not compared.
        """
        self._code = code

    def measure(self, test: VideoBenchmark, source: PolicySource) -> tuple[VideoScore, float]:
        """Return the score of the source's policy, queried as simulators query it, and the CPU seconds that
        this process spent.
        """
        began = time.process_time()
        asker: Any = source.connect()
        score = test.measure(asker.imagine)
        check_imported(self._code)
        return score, time.process_time() - began

    def action_errors(self, test: ActionErrorBenchmark, source: PolicySource) -> tuple[list[Measured], float]:
        """Return the results of the test's episodes, and the CPU seconds that this process spent."""
        began = time.process_time()
        measured = test.measure(source.connect())
        check_imported(self._code)
        return measured, time.process_time() - began
