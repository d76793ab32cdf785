"""The client of a Ray cluster with a dashboard that answers badly, disconnects, or is not a dashboard."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from aiohttp import web
from conftest import run

from orchestrator.cluster.ray_jobs import Cluster, ForgottenError, JobSpec, SubmitError
from orchestrator.cluster.version_check import PYTHONS


class Dashboard:
    """Answers as a Ray head's dashboard does, as configured by a test."""

    def __init__(self) -> None:
        self.ray, self.python, self.known = (
            ray.__version__,
            f"{sys.version_info[0]}.{sys.version_info[1]}.0",
            True,
        )
        self.log, self.status, self.streams, self.submitted = "", "RUNNING", 0, list[str]()

    def job(self) -> dict[str, Any]:
        metadata = {
            "demoscale.kind": "sweep",
            "demoscale.name": "lift",
            "demoscale.place": "s3://a",
            "demoscale.settings": "1",
        }
        return {
            "type": "SUBMISSION",
            "submission_id": "j-1",
            "status": self.status,
            "entrypoint": "",
            "metadata": metadata,
        }

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        """Disconnect twice in the middle, then end normally."""
        self.streams += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if self.streams <= 2:
            await socket.send_str(self.log[: 7 * self.streams])
            assert request.transport
            request.transport.abort()
            return socket
        for begin in range(0, len(self.log) - 3, 5):
            await socket.send_str(self.log[begin : min(begin + 5, len(self.log) - 3)])
        self.status = "SUCCEEDED"
        return socket

    async def taken(self, request: web.Request) -> web.Response:
        """Refuse the submission as a duplicate: another client submitted between the listing and this
        request.
        """
        asked = await request.json()
        self.submitted.append(asked["submission_id"])
        self.known = True
        said = (
            f"Traceback ...\nValueError: Job with submission_id {asked['submission_id']} already exists."
            " Please use a different submission_id.\n"
        )
        return web.Response(status=400, text="x" * 1000 + said)

    def app(self) -> web.Application:
        app = web.Application()

        def answer(told: Callable[[], Any]) -> Any:
            async def handler(_: web.Request) -> web.Response:
                return web.json_response(told())

            return handler

        app.router.add_get(
            "/api/version",
            answer(lambda: {"version": "4", "ray_version": self.ray, "ray_commit": "", "session_name": ""}),
        )
        app.router.add_get(
            "/api/v0/cluster_metadata",
            answer(lambda: {"data": {"rayVersion": self.ray, "pythonVersion": self.python}}),
        )
        app.router.add_get("/api/jobs/", answer(lambda: [self.job()] if self.known else []))
        app.router.add_post("/api/jobs/", self.taken)
        app.router.add_get("/api/packages/{protocol}/{name}", answer(dict))
        app.router.add_get("/api/jobs/j-1/logs", answer(lambda: {"logs": self.log}))
        app.router.add_get("/api/jobs/j-1/logs/tail", self.tail)
        return app


@contextmanager
def serving(app: web.Application) -> Iterator[str]:
    loop, runner = asyncio.new_event_loop(), web.AppRunner(app)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return int(runner.addresses[0][1])

    port = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Dashboard, Cluster]]:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # Ray's client would use this address instead
    fake = Dashboard()
    with serving(fake.app()) as address:
        yield fake, Cluster(address, poll_s=0.05)


def test_follow_after_broken_connections_prints_each_character_once(
    dashboard: tuple[Dashboard, Cluster],
) -> None:
    fake, cluster = dashboard
    fake.log = "".join(f"line {number}\n" for number in range(20))
    heard, said = list[str](), list[str]()
    job = cluster.follow("j-1", heard.append, said.append)
    assert job.status == "SUCCEEDED"
    assert "".join(heard) == fake.log
    assert fake.streams == 3
    assert said
    assert "the job keeps running; reconnecting" in said[0]


def test_follow_of_a_job_that_the_cluster_forgot_raises(dashboard: tuple[Dashboard, Cluster]) -> None:
    fake, cluster = dashboard
    fake.known = False
    with pytest.raises(
        ForgottenError,
        match="has no job j-1: it was restarted; submit again to resume from the saved results",
    ):
        cluster.follow("j-1", lambda _: None, lambda _: None)


def test_submit_that_loses_the_race_for_an_id_returns_the_running_job(
    dashboard: tuple[Dashboard, Cluster], tmp_path: Path
) -> None:
    fake, cluster = dashboard
    fake.known = False
    (tmp_path / "code.py").touch()
    load = JobSpec("sweep", "lift", "s3://a", "1", "python -m jobs.sweep sweep.yaml")
    job, started = cluster.submit(load, tmp_path)
    assert fake.submitted == [f"{load.stem}-1"]
    assert (job.job_id, started) == ("j-1", False)
    with pytest.raises(
        SubmitError, match=r"lift is running already, with other settings \(j-1 at http://127.0.0.1"
    ):
        cluster.submit(replace(load, settings="2"), tmp_path)


def test_check_versions_names_other_ray_and_python_versions(dashboard: tuple[Dashboard, Cluster]) -> None:
    fake, cluster = dashboard
    assert cluster.check_versions() == ""
    fake.python = next(f"{a}.{b}.1" for a, b in PYTHONS if (a, b) != sys.version_info[:2])
    assert cluster.check_versions().startswith("the cluster runs Python 3.")
    fake.ray, fake.python = "2.9.0", "3.9.1"
    with pytest.raises(
        SubmitError,
        match=(
            rf"has Ray 2.9.0 instead of {ray.__version__} and Python 3.9.1 instead of 3.11 or 3.12; run it on"
            r" an image"
        ),
    ):
        cluster.check_versions()


def test_cluster_at_an_address_without_dashboard_raises_one_sentence() -> None:
    with (
        serving(web.Application()) as address,
        pytest.raises(SubmitError, match=r"the server at .* failed the request"),
    ):
        Cluster(address)
    with pytest.raises(
        SubmitError, match=r"nothing answers at http://\*\*\*@127.0.0.1:1 \(Connection refused\)"
    ):
        Cluster("http://me:hunter2@127.0.0.1:1")
    with pytest.raises(
        SubmitError, match="head:6379 is not the address of a Ray dashboard; write it as http://head:8265"
    ):
        Cluster("head:6379")


def test_submit_command_without_an_address_exits_two() -> None:
    done = run(
        "-m",
        "orchestrator",
        "submit",
        "jobs/quickstart.yaml",
        env={"PATH": os.environ["PATH"], "RAY_ADDRESS": "10.0.0.1:6379"},
    )
    assert done.returncode == 2
    assert "name the cluster's dashboard, --address http://head:8265" in done.stderr
