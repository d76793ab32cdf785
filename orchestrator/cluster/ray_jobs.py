"""From this machine to a Ray cluster: the only file with ray.job_submission.

A job is known by what is written beside it on the cluster, so that nothing has to be remembered here: whoever submits the same again, from any
machine, meets the job that runs. Its id ends in a number that only one of two who submit at the same moment can have.
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
from orchestrator.redaction import redacted
from policy.errors import DemoscaleError

CONNECT_S = 10.0
STOP_WAIT_S = 600
"""How long a job that is asked to end may take: a large policy's state is saved, episodes in progress are played."""
QUIET_S, LONGEST_QUIET_S = 20.0, 600.0  # without a word: ask how the job is; begin the stream anew
RECONNECT_S = 600.0
"""How long a cluster that stopped answering is waited for."""

_KIND, _NAME, _PLACE, _SETTINGS, _CODE = (f"demoscale.{name}" for name in ("kind", "name", "place", "settings", "code"))
_LOST = (OSError, RuntimeError, aiohttp.ClientError, ValueError)  # what Ray's client says of a connection that broke, or of half an answer


class SubmitError(DemoscaleError):
    """One sentence: what the cluster or its Ray cannot do, and the mend."""


class ForgottenError(SubmitError):
    """The cluster does not know a job that it was given."""


@dataclass(frozen=True)
class Load:
    """What is to run."""

    kind: str
    """`sweep`, or another of jobs/."""
    name: str
    """Of the sweep; else the kind."""
    place: str
    """The sweep's storage; else what tells it from others of its kind. Together with kind and name it says what counts as the same."""
    settings: str
    """Digest of all that was asked for."""
    command: str

    @property
    def stem(self) -> str:
        return f"demoscale-{self.name}-{digest([self.kind, self.name, self.place])[:8]}"


@dataclass(frozen=True)
class Job:
    """One that was submitted before."""

    job_id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    message: str
    told: dict[str, str]

    @property
    def going(self) -> bool:
        return not JobStatus(self.status).is_terminal()

    @property
    def name(self) -> str:
        return self.told.get(_NAME, "")

    @property
    def place(self) -> str:
        return self.told.get(_PLACE, "")


class Cluster:
    """A Ray cluster, by its dashboard's address; SubmitError if it cannot be spoken to."""

    def __init__(self, address: str, poll_s: float = 2.0) -> None:
        """poll_s: seconds between two attempts to follow a job; half of it between two polls of one that is being stopped."""
        self.address, self._poll_s = redacted(address).rstrip("/"), poll_s
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        _knock(address, self.address)
        with self._answers(), _only(address):
            self._client = JobSubmissionClient(address)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Ray's errors as a sentence."""
        try:
            yield
        except AuthenticationError:
            mend = "set RAY_AUTH_MODE=token and, to the cluster's own token, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            raise SubmitError(f"the cluster at {self.address} asks for a token and was not given the right one; {mend}") from None
        except _LOST as error:
            lines = [line for line in str(error).splitlines() if line.strip()]  # a server's traceback ends in what happened
            said = redacted(lines[-1].strip() if lines else type(error).__name__)[:300]
            raise SubmitError(
                f"what answers at {self.address} could not do it ({said}); is it a Ray dashboard (port 8265), of a head with ray[default]?"
            ) from None

    def versions(self) -> tuple[str, str]:
        """(Ray, Python) of the head; empty where it does not tell."""
        with self._answers():
            if not hasattr(self._client, "_do_request"):  # the client has no public method for it
                return "", ""
            told = self._client._do_request("GET", "/api/v0/cluster_metadata")
            data = told.json().get("data", {}) if told.status_code == 200 else {}
            return data.get("rayVersion") or getattr(self._client, "_server_ray_version", "") or "", data.get("pythonVersion", "")

    def check_versions(self) -> str:
        """SubmitError if the head's Ray or Python does not fit; otherwise what should be known, or nothing."""
        there, python = self.versions()
        differ = [f"Ray {there} instead of {ray.__version__}"] if there != ray.__version__ else []
        minor = tuple(int(part) for part in python.split(".")[:2]) if python else sys.version_info[:2]
        if minor not in PYTHONS:
            differ.append(f"Python {python} instead of 3.11 or 3.12")
        if differ:
            mend = "run it on an image built from this checkout (deploy/)"
            raise SubmitError(f"the cluster at {self.address} has {' and '.join(differ)}; {mend}")
        if minor != sys.version_info[:2]:
            return f"the cluster runs Python {python}, this machine {sys.version_info[0]}.{sys.version_info[1]}"
        return ""

    def jobs(self) -> list[Job]:
        """Those of this project that the cluster remembers, oldest first."""
        with self._answers():
            found = self._client.list_jobs()
        ours = [job for job in found if job.submission_id and _KIND in (job.metadata or {})]
        ours.sort(key=lambda job: job.start_time or 0)
        return [Job(job.submission_id, job.status.value, job.message or "", job.metadata) for job in ours]

    def job(self, job_id: str) -> Job:
        """ForgottenError if the cluster does not know it."""
        for job in self.jobs():
            if job.job_id == job_id:
                return job
        raise ForgottenError(f"the cluster at {self.address} knows no job {job_id}: it was started anew; submit again, and what was finished is kept")

    def submit(self, load: Load, folder: Path, pip: bool = False) -> tuple[Job, bool]:
        """Start it with the code in `folder`, or find it running; whether it was started. SubmitError if it runs with other settings."""
        while True:
            known = [job for job in self.jobs() if (job.told[_KIND], job.name, job.place) == (load.kind, load.name, load.place)]
            if going := [job for job in known if job.going]:
                return self._same(going[-1], load), False
            number = 1 + max((int(job.job_id.rpartition("-")[2]) for job in known), default=0)
            job_id = f"{load.stem}-{number}"
            with self._answers():
                try:
                    self._client.submit_job(
                        entrypoint=load.command, submission_id=job_id, runtime_env=_runtime_env(folder, pip), metadata=_metadata(load)
                    )
                except RuntimeError as error:
                    if "already exists" not in str(error):
                        raise
                    continue  # somebody else was faster; it is found now
            return self.job(job_id), True

    def _same(self, job: Job, load: Load) -> Job:
        if job.told.get(_SETTINGS) != load.settings:
            raise SubmitError(
                f"{load.name} is running already, with other settings ({job.job_id} at {self.address}); let it end, or end it with `demoscale stop "
                f"{load.name}`, then submit again"
            )
        return job

    def running(self, name: str, place: str = "") -> Job:
        """The job of that name, or id, that runs; SubmitError if there is none, or more than one."""
        jobs = [job for job in self.jobs() if name in (job.name, job.job_id) and place in ("", job.place)]
        going = [job for job in jobs if job.going]
        if len(going) > 1:
            raise SubmitError(f"{len(going)} jobs called {name} run at {self.address}; name one by its id: {', '.join(job.job_id for job in going)}")
        if not going:
            last = f"; the last one, {jobs[-1].job_id}, is {jobs[-1].status}" if jobs else ""
            raise SubmitError(f"nothing called {name} runs at {self.address}{last}")
        return going[0]

    def stop(self, job: Job) -> Job:
        """Ask it to end in good order and wait until it has; the job as it ended. SubmitError if it takes longer than it may."""
        with self._answers():
            self._client.stop_job(job.job_id)
        deadline = time.monotonic() + STOP_WAIT_S + 60
        while (job := self.job(job.job_id)).going:
            if time.monotonic() > deadline:
                raise SubmitError(f"{job.job_id} was asked to end and has not for {STOP_WAIT_S + 60} s; look at it at {self.address}/#/jobs")
            time.sleep(self._poll_s / 2)
        return job

    def follow(self, job_id: str, echo: Callable[[str], None], say: Callable[[str], None]) -> Job:
        """Pass on all that the job prints, from its beginning, until it ends; a connection that breaks is made again.

        `echo` hears text as it comes, `say` a line about the connection. SubmitError if the cluster stays away or forgot the job.
        """
        seen, lost = _Seen(echo), 0.0
        while True:
            try:
                asyncio.run(self._stream(job_id, seen))
                job = self.job(job_id)
                if not job.going:
                    seen.part(0, self._client.get_job_logs(job_id))
                    return job
                lost = 0.0
            except ForgottenError:
                raise
            except (*_LOST, SubmitError):
                if not lost:
                    lost = time.monotonic()
                    say(f"the connection to {self.address} broke; the job goes on, trying again")
                elif time.monotonic() - lost > RECONNECT_S:
                    waited = f"{self.address} has not answered for {RECONNECT_S / 60:.0f} minutes"
                    raise SubmitError(f"{waited}; the job may go on, and the same command follows it again") from None
            time.sleep(self._poll_s)

    async def _stream(self, job_id: str, seen: "_Seen") -> None:
        """What the job prints, until the stream ends or is silent for suspiciously long."""
        lines = self._client.tail_job_logs(job_id)
        position, quiet, coming = 0, 0.0, None
        try:
            while quiet < LONGEST_QUIET_S:
                coming = coming or asyncio.ensure_future(anext(lines))
                if not (await asyncio.wait({coming}, timeout=QUIET_S))[0]:
                    quiet += QUIET_S
                    if not (await asyncio.to_thread(self.job, job_id)).going:
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
    """Passes on each character of a log once, however often it is read from its beginning."""

    def __init__(self, echo: Callable[[str], None]) -> None:
        self._echo, self._count = echo, 0

    def part(self, position: int, text: str) -> None:
        if new := text[max(0, self._count - position) :]:
            self._count = position + len(text)
            self._echo(new)


def _knock(address: str, shown: str) -> None:
    """Ray's client would wait for minutes for an address where nobody is."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SubmitError(f"{shown} is not the address of a Ray dashboard; write it as http://head:8265")
    if urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(parts.hostname):
        return  # only the proxy is to be reached from here
    try:
        socket.create_connection((parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]), CONNECT_S).close()
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        mend = "is the cluster up, and does its dashboard's port (8265) lead here, for example by kubectl port-forward or ssh -L?"
        raise SubmitError(f"nothing answers at {shown} ({why}); {mend}") from None


@contextmanager
def _only(address: str) -> Iterator[None]:
    """Ray's client prefers these variables to the address it is given."""
    hidden = {name: os.environ.pop(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _metadata(load: Load) -> dict[str, str]:
    return {_KIND: load.kind, _NAME: load.name, _PLACE: load.place, _SETTINGS: load.settings, _CODE: git_commit()}


def _runtime_env(folder: Path, pip: bool) -> dict[str, Any]:
    """Nothing of this machine's environment goes along."""
    # Ray's supervisor of the job reads the second one; without it, a job has three seconds to end.
    variables = {COMMIT: git_commit(), "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    return {"working_dir": str(folder), "env_vars": variables} | ({"pip": {"packages": to_install()}} if pip else {})
