"""Training runs without a network."""

import time
from dataclasses import dataclass
from typing import Any

from orchestrator.provenance import digest
from orchestrator.training.control_channel import tell
from orchestrator.training.loop import TrainJob


@dataclass(frozen=True)
class FakeTrainer:
    """The `fit` argument of `SweepRun`: reports the steps and checkpoints of a real training run, and stops
    at the driver's request.

    It writes no checkpoint; the reported fingerprints are a function of arm and step, and `stall_s` is 1 ms
    per step.
    """

    step_s: float = 0.0
    """Seconds of sleep per optimiser step."""

    def __call__(
        self, job: TrainJob, folder: str, resources: dict[str, float], desk: Any, attempts: int = 1
    ) -> list[dict[str, Any]]:
        """Train; the arguments and the result are those of `orchestrator.training.ray_train.fit`."""
        from orchestrator.training.ray_train import stop_request_poller

        asked, reported, every = stop_request_poller(desk, job.arm_id, 1), [], job.train.checkpoint_every
        for step in range(1, job.train.steps + 1):
            time.sleep(self.step_s)
            if step % every and step != job.train.steps and not asked():
                continue
            news: dict[str, Any] = {
                "step": step,
                "loss": 1 / step,
                "loss_video": 0.0,
                "loss_action": 1 / step,
            }
            news |= {"checkpoint": digest([job.arm_id, step])}
            news |= {"clips_with_actions": step, "clips_action_free": 0, "action_free_ratio_consumed": 0.0}
            news |= {"cpu_s": self.step_s * every, "wall_s": self.step_s * every, "bytes_read": 0}
            news |= {
                "clips": job.train.batch_size * every,
                "steps": every,
                "step_s": self.step_s * every,
                "stall_s": 0.001 * every,
            }
            tell(desk, job.arm_id, news)
            reported.append(news)
            if asked():
                break
        return reported
