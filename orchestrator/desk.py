"""Between a sweep's driver and its training processes: jobs and requests to stop go down, news of training comes up."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

Wish = Literal["", "pause", "stop"]
"""What is asked of a training run: `pause`: save a checkpoint and end, to be continued; `stop`: end, it is not worth going on."""
News = dict[str, Any]
"""What a run reported: metrics with their `step`; or `retried`, the trace of what it is begun again after;
or `trained`, all its checkpoints; or `failed`, the trace."""

PATIENCE_S = 1.0


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
        """What is asked of the run, once something is."""
        async with self._changed:
            await self._changed.wait_for(lambda: run in self._wishes)
            return self._wishes[run]

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
def desk(on_news: Callable[[str, News], None]) -> Iterator[Any]:
    """A desk in a connected Ray; while it is open `on_news` hears (run, news) in a thread of this process. What it raises is raised here."""
    import ray

    handle = ray.remote(Desk).options(num_cpus=0, max_concurrency=100_000).remote()
    closing, failures = threading.Event(), list[BaseException]()

    def listen() -> None:
        try:
            while True:
                last = closing.is_set()  # what was told before it closed is still heard
                for run, news in ray.get(handle.hear.remote()):
                    on_news(run, news)
                if last:
                    return
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
