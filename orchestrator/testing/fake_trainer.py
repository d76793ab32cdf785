"""Training runs without a network."""

import time
from dataclasses import dataclass
from typing import Any

from orchestrator.provenance import digest
from orchestrator.training.control_channel import send
from orchestrator.training.loop import TrainJob
from orchestrator.training.train_events import Reported
from orchestrator.training.worker_usage import WorkerUsage
from sim_workers.arithmetic import Arithmetic


@dataclass(frozen=True)
class FakeTrainer:
    """The `fit` argument of `SweepRun`: reports the steps and checkpoints of a real training run, and stops
    at the driver's request.

    It writes no checkpoint; the reported fingerprints are a function of arm and step, and `stall_s` is 1 ms
    per step.
    """

    step_s: float = 0.0
    """Seconds of sleep per optimiser step."""
    trained_on: tuple[Arithmetic, ...] = ()
    """Arithmetics that it reports; none: not recorded."""

    def __call__(
        self, job: TrainJob, folder: str, resources: dict[str, float], channel: Any, attempts: int = 1
    ) -> list[Reported]:
        """Train; the arguments and the result are those of `orchestrator.training.ray_train.fit`."""
        from orchestrator.training.ray_train import stop_request_poller

        every, reported = job.train.checkpoint_every, list[Reported]()
        stop_request = stop_request_poller(channel, job.arm_id, 1)
        for step in range(1, job.train.end + 1):
            time.sleep(self.step_s)
            if step % every and step != job.train.end and not stop_request():
                continue
            event = Reported(
                run=job.arm_id,
                step=step,
                loss=1 / step,
                loss_video=0.0,
                loss_action=1 / step,
                clips_with_actions=step,
                clips_action_free=0,
                action_free_ratio_consumed=0.0,
                usage=WorkerUsage(
                    cpu_s=self.step_s * every,
                    wall_s=self.step_s * every,
                    clips=job.train.batch_size * every,
                    steps=every,
                    step_s=self.step_s * every,
                    stall_s=0.001 * every,
                ),
                checkpoint=digest([job.arm_id, step]),
                trained_on=self.trained_on,
            )
            send(channel, event)
            reported.append(event)
            if stop_request():
                break
        return reported
