"""Job submission from this machine to a Ray cluster: the only file with ray.job_submission.

A job is identified by its metadata on the cluster, so this machine keeps no state: submitting the same again,
from any machine, finds the running job. Its id ends in a number, which only one of two concurrent submissions
can get.
"""

import asyncio
import logging
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from orchestrator.cluster.version_check import PYTHONS, to_install
from orchestrator.provenance import COMMIT, digest, git_commit
from orchestrator.redaction import redact
from policy.errors import DemoscaleError

CONNECT_S = 10.0
STOP_WAIT_S = 600
"""Seconds that a job may take to end after a stop request: a large policy's state is saved, episodes in
progress are played.
"""
QUIET_S, LONGEST_QUIET_S = 20.0, 600.0  # seconds without output: query the job's status; reopen the stream
RECONNECT_S = 600.0
"""Seconds after which waiting for a cluster that stopped answering times out."""

_KIND, _NAME, _PLACE, _SETTINGS, _CODE = (
    f"demoscale.{name}" for name in ("kind", "name", "place", "settings", "code")
)
# errors of Ray's client for a broken connection or a truncated answer
_LOST = (OSError, RuntimeError, aiohttp.ClientError, ValueError)


class SubmitError(DemoscaleError):
    """Error of a cluster or its Ray: one sentence that names the problem and the fix."""


class ForgottenError(SubmitError):
    """Error if the cluster does not know a job."""


@dataclass(frozen=True)
class JobSpec:
    """Work to submit."""

    kind: str
    """`sweep`, or another module of jobs/."""
    name: str
    """Name of the sweep; for other jobs the kind."""
    place: str
    """URI of the sweep's storage; for other jobs what distinguishes them. Jobs with equal kind, name and
    place count as the same.
    """
    settings: str
    """Digest of all requested settings."""
    command: str

    @property
    def stem(self) -> str:
        """Job id without its number."""
        return f"demoscale-{self.name}-{digest([self.kind, self.name, self.place])[:8]}"


@dataclass(frozen=True)
class Job:
    """Submitted job."""

    job_id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    message: str
    told: dict[str, str]

    @property
    def is_running(self) -> bool:
        """Whether the job is pending or running."""
        return not JobStatus(self.status).is_terminal()

    @property
    def name(self) -> str:
        """Name that it was submitted under; empty for a job of another program."""
        return self.told.get(_NAME, "")

    @property
    def place(self) -> str:
        """Place that it was submitted with (`JobSpec.place`); empty for a job of another program."""
        return self.told.get(_PLACE, "")


class Cluster:
    """Client of a Ray cluster, by its dashboard's address. Raises SubmitError if the cluster cannot be
    reached.
    """

    def __init__(self, address: str, poll_s: float = 2.0) -> None:
        """Connect. poll_s: seconds between two attempts to follow a job; half of it between two polls of one
        that is being stopped.
        """
        self.address, self._poll_s = redact(address).rstrip("/"), poll_s
        for name in (
            "ray.dashboard.modules.dashboard_sdk",
            "ray.dashboard.modules.job.sdk",
            "ray._private.runtime_env.packaging",
        ):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        _check_reachable(address, self.address)
        with self._answers(), _only(address):
            self._client = JobSubmissionClient(address)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Turn errors of Ray's client into SubmitError."""
        try:
            yield
        except AuthenticationError:
            mend = (
                "set RAY_AUTH_MODE=token and, to the cluster's own token, RAY_AUTH_TOKEN or"
                " RAY_AUTH_TOKEN_PATH"
            )
            raise SubmitError(
                f"the cluster at {self.address} requires a token, and the right one was not sent; {mend}"
            ) from None
        except _LOST as error:
            # a server's traceback ends with the error
            lines = [line for line in str(error).splitlines() if line.strip()]
            said = redact(lines[-1].strip() if lines else type(error).__name__)[:300]
            raise SubmitError(
                f"the server at {self.address} failed the request ({said}); is it a Ray dashboard (port"
                " 8265), of a head with ray[default]?"
            ) from None

    def versions(self) -> tuple[str, str]:
        """Return the versions (Ray, Python) of the head; empty where it does not report them."""
        with self._answers():
            if not hasattr(self._client, "_do_request"):  # the client has no public method for it
                return "", ""
            told = self._client._do_request("GET", "/api/v0/cluster_metadata")
            data = told.json().get("data", {}) if told.status_code == 200 else {}
            return data.get("rayVersion") or getattr(self._client, "_server_ray_version", "") or "", data.get(
                "pythonVersion", ""
            )

    def check_versions(self) -> str:
        """Return a sentence if the head's Python differs from this machine's, else nothing. Raises
        SubmitError if its Ray or Python does not fit.
        """
        there, python = self.versions()
        differ = [f"Ray {there} instead of {ray.__version__}"] if there != ray.__version__ else []
        minor = tuple(int(part) for part in python.split(".")[:2]) if python else sys.version_info[:2]
        if minor not in PYTHONS:
            differ.append(f"Python {python} instead of 3.11 or 3.12")
        if differ:
            mend = "run it on an image built from this checkout (deploy/)"
            raise SubmitError(f"the cluster at {self.address} has {' and '.join(differ)}; {mend}")
        if minor != sys.version_info[:2]:
            return (
                f"the cluster runs Python {python}, this machine {sys.version_info[0]}.{sys.version_info[1]}"
            )
        return ""

    def jobs(self) -> list[Job]:
        """Return the jobs of this project that the cluster lists, oldest first."""
        with self._answers():
            found = self._client.list_jobs()
        ours = [job for job in found if job.submission_id and _KIND in (job.metadata or {})]
        ours.sort(key=lambda job: job.start_time or 0)
        return [Job(job.submission_id, job.status.value, job.message or "", job.metadata) for job in ours]

    def job(self, job_id: str) -> Job:
        """Return the job of this id. Raises ForgottenError if the cluster does not know it."""
        for job in self.jobs():
            if job.job_id == job_id:
                return job
        raise ForgottenError(
            f"the cluster at {self.address} has no job {job_id}: it was restarted; submit again to resume"
            " from the saved results"
        )

    def submit(self, load: JobSpec, folder: Path, pip: bool = False) -> tuple[Job, bool]:
        """Start the load with the code in `folder`, or find it running; return its job and whether it was
        started.

        Raises SubmitError if it runs with other settings. pip: have Ray install the required packages.
        """
        while True:
            known = [
                job
                for job in self.jobs()
                if (job.told[_KIND], job.name, job.place) == (load.kind, load.name, load.place)
            ]
            if going := [job for job in known if job.is_running]:
                return self._same(going[-1], load), False
            number = 1 + max((int(job.job_id.rpartition("-")[2]) for job in known), default=0)
            job_id = f"{load.stem}-{number}"
            with self._answers():
                try:
                    self._client.submit_job(
                        entrypoint=load.command,
                        submission_id=job_id,
                        runtime_env=_runtime_env(folder, pip),
                        metadata=_metadata(load),
                    )
                except RuntimeError as error:
                    if "already exists" not in str(error):
                        raise
                    continue  # a concurrent submission got the id; the next iteration finds it
            return self.job(job_id), True

    def _same(self, job: Job, load: JobSpec) -> Job:
        if job.told.get(_SETTINGS) != load.settings:
            raise SubmitError(
                f"{load.name} is running already, with other settings ({job.job_id} at {self.address}); wait"
                f" until it ends, or stop it with `demoscale stop {load.name}`, then submit again"
            )
        return job

    def running(self, name: str, place: str = "") -> Job:
        """Return the running job of that name or id. Raises SubmitError if there is none, or more
        than one.
        """
        jobs = [job for job in self.jobs() if name in (job.name, job.job_id) and place in ("", job.place)]
        going = [job for job in jobs if job.is_running]
        if len(going) > 1:
            raise SubmitError(
                f"{len(going)} jobs called {name} run at {self.address}; name one by its id:"
                f" {', '.join(job.job_id for job in going)}"
            )
        if not going:
            last = f"; the last one, {jobs[-1].job_id}, is {jobs[-1].status}" if jobs else ""
            raise SubmitError(f"no job called {name} is running at {self.address}{last}")
        return going[0]

    def stop(self, job: Job) -> Job:
        """Stop the job cleanly, wait for its end and return it. Raises SubmitError if that takes longer than
        STOP_WAIT_S + 60 s.
        """
        with self._answers():
            self._client.stop_job(job.job_id)
        deadline = time.monotonic() + STOP_WAIT_S + 60
        while (job := self.job(job.job_id)).is_running:
            if time.monotonic() > deadline:
                raise SubmitError(
                    f"{job.job_id} has not ended {STOP_WAIT_S + 60} s after the stop request; see its log at"
                    f" {self.address}/#/jobs"
                )
            time.sleep(self._poll_s / 2)
        return job

    def follow(self, job_id: str, echo: Callable[[str], None], say: Callable[[str], None]) -> Job:
        """Pass on the job's output from its beginning until it ends, and return the job; a broken connection
        is reopened.

        `echo` receives text as it arrives, `say` lines about the connection. Raises SubmitError if the
        cluster does not answer for RECONNECT_S, ForgottenError if it does not know the job.
        """
        seen, lost = _Seen(echo), 0.0
        while True:
            try:
                asyncio.run(self._stream(job_id, seen))
                job = self.job(job_id)
                if not job.is_running:
                    seen.part(0, self._client.get_job_logs(job_id))
                    return job
                lost = 0.0
            except ForgottenError:
                raise
            except (*_LOST, SubmitError):
                if not lost:
                    lost = time.monotonic()
                    say(f"lost the connection to {self.address}; the job keeps running; reconnecting")
                elif time.monotonic() - lost > RECONNECT_S:
                    waited = f"{self.address} has not answered for {RECONNECT_S / 60:.0f} minutes"
                    raise SubmitError(
                        f"{waited}; the job may be running still: run the same command to follow it"
                    ) from None
            time.sleep(self._poll_s)

    async def _stream(self, job_id: str, seen: "_Seen") -> None:
        """Pass on the job's output until the stream ends, the job ends, or no output arrives for
        LONGEST_QUIET_S.
        """
        lines = self._client.tail_job_logs(job_id)
        position, quiet, coming = 0, 0.0, None
        try:
            while quiet < LONGEST_QUIET_S:
                coming = coming or asyncio.ensure_future(anext(lines))
                if not (await asyncio.wait({coming}, timeout=QUIET_S))[0]:
                    quiet += QUIET_S
                    if not (await asyncio.to_thread(self.job, job_id)).is_running:
                        return
                    continue
                try:
                    text = coming.result()
                except StopAsyncIteration:
                    return
                coming, quiet = None, 0.0
                seen.part(position, text)
                position += len(text)
        finally:
            if coming:
                coming.cancel()
                await asyncio.wait({coming})
            await lines.aclose()


class _Seen:
    """Filter that passes on each character of a log once, however often the log is read from its
    beginning.
    """

    def __init__(self, echo: Callable[[str], None]) -> None:
        self._echo, self._count = echo, 0

    def part(self, position: int, text: str) -> None:
        if new := text[max(0, self._count - position) :]:
            self._count = position + len(text)
            self._echo(new)


def _check_reachable(address: str, shown: str) -> None:
    """Raise SubmitError if nothing answers at the address within CONNECT_S; Ray's client would wait for
    minutes.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SubmitError(f"{shown} is not the address of a Ray dashboard; write it as http://head:8265")
    if urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(parts.hostname):
        return  # this machine connects to the proxy only
    try:
        socket.create_connection(
            (parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]), CONNECT_S
        ).close()
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        mend = (
            "is the cluster up, and is its dashboard's port (8265) reachable from here, for example by"
            " kubectl port-forward or ssh -L?"
        )
        raise SubmitError(f"nothing answers at {shown} ({why}); {mend}") from None


@contextmanager
def _only(address: str) -> Iterator[None]:
    """Hide the environment variables that Ray's client prefers to the given address."""
    hidden = {
        name: os.environ.pop(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if name in os.environ
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


def _metadata(load: JobSpec) -> dict[str, str]:
    return {
        _KIND: load.kind,
        _NAME: load.name,
        _PLACE: load.place,
        _SETTINGS: load.settings,
        _CODE: git_commit(),
    }


def _runtime_env(folder: Path, pip: bool) -> dict[str, Any]:
    """Return the job's runtime environment; no variable of this machine's environment is passed on."""
    # Ray's job supervisor reads the second variable; without it, a job has 3 s to end.
    variables = {COMMIT: git_commit(), "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    return {"working_dir": str(folder), "env_vars": variables} | (
        {"pip": {"packages": to_install()}} if pip else {}
    )
