"""Channel between a sweep's driver and its training processes: jobs and requests to end go down, news of
training comes up.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

from orchestrator.cluster.ray_runtime import on_driver_node

Wish = Literal["", "pause", "stop"]
"""Request to a training run: `pause`: save a checkpoint and end, to be resumed; `stop`: end without one;
empty: none.
"""
News = dict[str, Any]
"""Report of a run: metrics with their `step`; or `retried`, the trace of the failure that it restarts after;
or `trained`, all its checkpoints; or `failed`, the trace."""

PATIENCE_S = 1.0
"""Seconds for which a request for news waits for the first."""
WISH_S = 30.0
"""Seconds for which a request for a wish waits before it returns that there is none."""
ANSWER_S = 60.0
"""Seconds after which a control actor that has not answered counts as lost."""


class ControlChannel:
    """Ray actor that holds jobs and wishes for training runs, and their news for the driver."""

    def __init__(self) -> None:
        self._jobs: dict[str, Any] = {}
        self._taken: set[str] = set()
        self._wishes: dict[str, Wish] = {}
        self._news: list[tuple[str, News]] = []
        self._changed = asyncio.Condition()

    async def give(self, run: str, job: Any) -> None:
        """Store a job for the trial that runs it, and clear earlier wishes for the run."""
        self._jobs[run] = job
        self._taken.discard(run)
        self._wishes.pop(run, None)

    async def job(self, run: str) -> Any:
        """Return the job to the trial that runs it; a second call means that the first caller's process died,
        which is reported as news.
        """
        if run in self._taken:
            await self.tell(run, {"retried": "its trial's process died"})
        self._taken.add(run)
        return self._jobs[run]

    async def ask(self, run: str, wish: Wish) -> None:
        """Record a wish for a run."""
        async with self._changed:
            self._wishes[run] = wish
            self._changed.notify_all()

    async def asked(self, run: str) -> Wish:
        """Wait for a wish for the run and return it; "" after WISH_S."""
        async with self._changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(lambda: run in self._wishes), WISH_S)
            return self._wishes.get(run, "")

    async def tell(self, run: str, news: News) -> None:
        """Append news of a run."""
        async with self._changed:
            self._news.append((run, news))
            self._changed.notify_all()

    async def hear(self) -> list[tuple[str, News]]:
        """Return all news since the last call, in order; waits up to PATIENCE_S for the first."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._news), PATIENCE_S)
            except TimeoutError:
                return []
            news, self._news = self._news, []
            return news


@contextmanager
def open_control_channel(
    on_news: Callable[[str, News], None],
    name: str = "",
    on_lost: Callable[[BaseException], None] | None = None,
) -> Iterator[Any]:
    """Start a desk on this process' node of a connected Ray; while it is open, a thread of this process calls
    `on_news(run, news)`.

    name: name of the actor in Ray. on_lost: called in that thread with the RayError if the actor dies or
    times out; without it, that error is raised when the context closes. Errors of `on_news` are raised then,
    too.
    """
    import ray

    options = on_driver_node() | ({"name": name} if name else {})
    handle = ray.remote(ControlChannel).options(**options, max_concurrency=100_000).remote()
    closing, failures = threading.Event(), list[BaseException]()

    def listen() -> None:
        try:
            while True:
                last = closing.is_set()  # news sent before the close are still delivered
                for run, news in ray.get(handle.hear.remote(), timeout=ANSWER_S):
                    on_news(run, news)
                if last:
                    return
        except ray.exceptions.RayError as error:
            if on_lost:
                return on_lost(error)
            failures.append(error)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=listen, name="desk", daemon=True)
    thread.start()
    try:
        yield handle
    finally:
        closing.set()
        thread.join()
        ray.kill(handle)
    if failures:
        raise failures[0]


def wishes(desk: Any, run: str) -> Iterator[Wish]:
    """Poll the desk for wishes for a run and yield each answer; "pause" once the desk is lost, since no
    driver would receive further steps.
    """
    import ray

    while True:
        try:
            yield ray.get(desk.asked.remote(run), timeout=WISH_S + ANSWER_S)
        except ray.exceptions.RayError:
            yield "pause"


def tell(desk: Any, run: str, news: News) -> None:
    """Send news to a desk; a lost desk is ignored, since the driver then ends the sweep and the next run
    resumes from the saved state.
    """
    import ray

    with suppress(ray.exceptions.RayError):
        ray.get(desk.tell.remote(run, news), timeout=ANSWER_S)
