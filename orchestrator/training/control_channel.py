"""Control channel between a sweep's driver and its training processes: jobs and stop requests one way,
training events the other.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any

from orchestrator.cluster.ray_runtime import on_driver_node
from orchestrator.training.train_events import Retried, TrainEvent


class StopRequest(Enum):
    """Request to a training run to end."""

    PAUSE = "pause"
    """Save a checkpoint first, from which the next run of the sweep resumes."""
    STOP = "stop"
    """Save nothing: training is not resumed."""


EVENTS_WAIT_S = 1.0
"""Seconds for which a request for events waits for the first."""
STOP_REQUEST_WAIT_S = 30.0
"""Seconds for which a request for a stop request waits before it returns that there is none."""
ANSWER_S = 60.0
"""Seconds after which a control actor that has not answered counts as lost."""


class ControlChannel:
    """Ray actor that holds jobs and stop requests for training runs, and their events for the driver."""

    def __init__(self) -> None:
        self._jobs: dict[str, Any] = {}
        self._taken: set[str] = set()
        self._stop_requests: dict[str, StopRequest] = {}
        self._events: list[TrainEvent] = []
        self._changed = asyncio.Condition()

    async def put_job(self, run: str, job: Any) -> None:
        """Store a job for the trial that runs it, and clear an earlier stop request for the run."""
        self._jobs[run] = job
        self._taken.discard(run)
        self._stop_requests.pop(run, None)

    async def take_job(self, run: str) -> Any:
        """Return the job to the trial that runs it; a second call means that the first caller's process died,
        which is recorded as a retry.
        """
        if run in self._taken:
            await self.send(Retried(run, "its trial's process died"))
        self._taken.add(run)
        return self._jobs[run]

    async def request_stop(self, run: str, request: StopRequest) -> None:
        """Record a stop request for a run."""
        async with self._changed:
            self._stop_requests[run] = request
            self._changed.notify_all()

    async def stop_request(self, run: str) -> StopRequest | None:
        """Wait for a stop request for the run and return it; None after STOP_REQUEST_WAIT_S."""
        async with self._changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: run in self._stop_requests), STOP_REQUEST_WAIT_S
                )
            return self._stop_requests.get(run)

    async def send(self, event: TrainEvent) -> None:
        """Append an event for the driver."""
        async with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    async def receive(self) -> list[TrainEvent]:
        """Return all events since the last call, in order; waits up to EVENTS_WAIT_S for the first."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._events), EVENTS_WAIT_S)
            except TimeoutError:
                return []
            events, self._events = self._events, []
            return events


@contextmanager
def open_control_channel(name: str = "") -> Iterator[Any]:
    """Start a control actor on this process' node of a connected Ray and yield its handle; the actor is
    killed when the context closes.

    name: name of the actor in Ray.
    """
    import ray

    options = on_driver_node() | ({"name": name} if name else {})
    channel = ray.remote(ControlChannel).options(**options, max_concurrency=100_000).remote()
    try:
        yield channel
    finally:
        ray.kill(channel)


@contextmanager
def receiving(
    channel: Any,
    on_event: Callable[[TrainEvent], None],
    on_lost: Callable[[BaseException], None] | None = None,
) -> Iterator[None]:
    """While the context is open, call `on_event` with every event of the channel, one after another, in one
    thread of this process. Events sent before the context closes are still delivered.

    on_lost: called in that thread with the RayError if the actor dies or times out; without it, that error is
    raised when the context closes. Errors of `on_event` end the thread and are raised then, too.
    """
    import ray

    closing, failures = threading.Event(), list[BaseException]()

    def receive() -> None:
        try:
            while True:
                last = closing.is_set()
                for event in ray.get(channel.receive.remote(), timeout=ANSWER_S):
                    on_event(event)
                if last:
                    return
        except ray.exceptions.RayError as error:
            if on_lost:
                return on_lost(error)
            failures.append(error)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=receive, name="train-events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        closing.set()
        thread.join()
    if failures:
        raise failures[0]


def stop_requests(channel: Any, run: str) -> Iterator[StopRequest | None]:
    """Poll the channel for a stop request for a run and yield each answer; PAUSE once the channel is lost,
    since no driver would receive further steps.
    """
    import ray

    while True:
        try:
            yield ray.get(channel.stop_request.remote(run), timeout=STOP_REQUEST_WAIT_S + ANSWER_S)
        except ray.exceptions.RayError:
            yield StopRequest.PAUSE


def send(channel: Any, event: TrainEvent) -> None:
    """Send an event to the driver; a lost channel is ignored, since the driver then ends the sweep and the
    next run resumes from the saved state.
    """
    import ray

    with suppress(ray.exceptions.RayError):
        ray.get(channel.send.remote(event), timeout=ANSWER_S)
