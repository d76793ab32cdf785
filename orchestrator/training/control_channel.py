"""Between a sweep's driver and its training processes: jobs and requests to stop go down, news of training comes up."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

from orchestrator.cluster.ray_runtime import beside_driver

Wish = Literal["", "pause", "stop"]
"""What is asked of a training run: `pause`: save a checkpoint and end, to be continued; `stop`: end, it is not worth going on."""
News = dict[str, Any]
"""What a run reported: metrics with their `step`; or `retried`, the trace of what it is begun again after;
or `trained`, all its checkpoints; or `failed`, the trace."""

PATIENCE_S = 1.0
"""Seconds for which a request for news waits for the first."""
WISH_S = 30.0
"""Seconds for which a request for wishes waits for one, before it answers that there is none."""
ANSWER_S = 60.0
"""Seconds after which a control actor that has not answered counts as lost."""


class Desk:
    """A Ray actor."""

    def __init__(self) -> None:
        self._jobs: dict[str, Any] = {}
        self._taken: set[str] = set()
        self._wishes: dict[str, Wish] = {}
        self._news: list[tuple[str, News]] = []
        self._changed = asyncio.Condition()

    async def give(self, run: str, job: Any) -> None:
        """Have a job ready for whoever runs it; nothing is asked of it any more."""
        self._jobs[run] = job
        self._taken.discard(run)
        self._wishes.pop(run, None)

    async def job(self, run: str) -> Any:
        """For whoever runs it; asked for a second time, whoever did first has died."""
        if run in self._taken:
            await self.tell(run, {"retried": "its trial's process died"})
        self._taken.add(run)
        return self._jobs[run]

    async def ask(self, run: str, wish: Wish) -> None:
        """Ask a run to end."""
        async with self._changed:
            self._wishes[run] = wish
            self._changed.notify_all()

    async def asked(self, run: str) -> Wish:
        """What is asked of the run, as soon as something is; "" after WISH_S."""
        async with self._changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(lambda: run in self._wishes), WISH_S)
            return self._wishes.get(run, "")

    async def tell(self, run: str, news: News) -> None:
        async with self._changed:
            self._news.append((run, news))
            self._changed.notify_all()

    async def hear(self) -> list[tuple[str, News]]:
        """All news since the last time, in order; waits a moment for the first."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._news), PATIENCE_S)
            except TimeoutError:
                return []
            news, self._news = self._news, []
            return news


@contextmanager
def desk(on_news: Callable[[str, News], None], name: str = "", on_lost: Callable[[BaseException], None] | None = None) -> Iterator[Any]:
    """Start a desk on this process' node of a connected Ray; while it is open, a thread of this process calls `on_news(run, news)`.

    name: under which Ray lists the actor. on_lost: called in that thread if the actor dies or does not answer; without it, that and what
    `on_news` raises is raised here.
    """
    import ray

    options = beside_driver() | ({"name": name} if name else {})
    handle = ray.remote(Desk).options(**options, max_concurrency=100_000).remote()
    closing, failures = threading.Event(), list[BaseException]()

    def listen() -> None:
        try:
            while True:
                last = closing.is_set()  # what was told before it closed is still heard
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
    """Yield what the desk asks of a run, again and again; "pause" once the desk is lost, since no driver would hear of further steps."""
    import ray

    while True:
        try:
            yield ray.get(desk.asked.remote(run), timeout=WISH_S + ANSWER_S)
        except ray.exceptions.RayError:
            yield "pause"


def tell(desk: Any, run: str, news: News) -> None:
    """Tell a desk; a desk that is lost is passed over, since the driver ends the sweep then and the next run finds what was saved."""
    import ray

    with suppress(ray.exceptions.RayError):
        ray.get(desk.tell.remote(run, news), timeout=ANSWER_S)
