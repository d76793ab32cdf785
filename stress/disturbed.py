"""A sweep in separate processes, which are killed at random, like the servers and the node that it uses,
until it is done.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from orchestrator.provenance import CHECKOUT
from orchestrator.testing.seaweedfs import BUCKET

TITLES = {
    "trainer": "ray::RayTrainWorker",
    "policy server": "ray::PolicyServer",
    "rollout worker": "ray::RolloutWorker",
    "control actor": "ray::ControlChannel",
    "train controller": "ray::TrainController",
    "trial": "ray::ImplicitFunc",
    "video judge": "ray::HeldOutActor",
}
OUTAGES = "storage", "mlflow server", "full disk"
"""Kinds that end by themselves after a few seconds (`AWAY_S`)."""
KINDS = ("driver", *TITLES, "heartbeat", "node", *OUTAGES)
"""Kinds of faults. A process is killed; `heartbeat`: an error in the driver's watching thread; `node`: a
second Ray node with all its processes; `full disk`: no byte left for the driver's outbox and the node's
checkpoint cache. A run whose control actor or heartbeat fails, or whose disk is full, ends and is restarted.
"""
AT_WORK = TITLES["trainer"], "ray::RolloutWorker.play"
AFTER_S = 0.0, 5.0
"""Range of the delay of a due kill, in seconds, drawn uniformly."""
SPREAD = 1 / 2
"""Share of the sweep's scores that are reported when the last kill is due: kills are spread evenly over the
sweep at any speed of the machine.
"""
AWAY_S = 1.0, 5.0
"""Range of the length of an outage, in seconds, and of the time until a killed node is replaced."""
MOST_RESTARTS_PER_KILL = 3
"""Restarts per kill above which a sweep counts as making no progress."""
SWEEP = """
name: chaos
seeds: {seeds}
data: {{episodes: {episodes}, demo_count: [1, 2], action_free_ratio: [1]}}
train:
  {{mode: two_stage, videos: sweep, video_steps: 8,
   steps: 12, batch_size: 4, checkpoint_every: 6, warmup_steps: 2}}
suite: {{tasks: [Lift], episodes: 3, horizon: 16, video_clips: {video_clips}}}
rollout_actors: 2
attempts: 10
storage: {storage}
mlflow: {mlflow}
"""


@dataclass(frozen=True)
class Place:
    """Locations of one run's output: its results in the storage, its tracking database and its log in a
    folder.
    """

    name: str
    folder: Path
    mlflow: str
    seeds: int = 3
    """Number of training seeds, of two arms each."""
    video_clips: int = 1
    """Held-out clips on which generated video is measured. 0: no actor measures any."""

    @property
    def scores(self) -> int:
        """Number of scores: two arms per seed, two checkpoints per arm."""
        return self.seeds * 2 * 2

    @property
    def storage(self) -> str:
        """URI of the sweep's storage."""
        return f"s3://{BUCKET}/{self.name}"

    @property
    def work(self) -> Path:
        """Working directory of the driver; it holds the outbox and the node's checkpoint cache."""
        return self.folder / self.name

    @property
    def log(self) -> Path:
        """File that takes the command's output."""
        return self.folder / f"{self.name}.log"

    def sweep_file(self, episodes: Path) -> Path:
        """Write the sweep file for an episode store and return its path."""
        path = self.folder / f"{self.name}.yaml"
        path.write_text(
            SWEEP.format(
                seeds=[*range(self.seeds)],
                episodes=episodes,
                video_clips=self.video_clips,
                storage=self.storage,
                mlflow=self.mlflow,
            )
        )
        return path


def session(leader: int, title: str = "") -> list[psutil.Process]:
    """Return the live processes of a session with `title`, as Ray sets it, in their command line; zombies do
    not count.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            ours = os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE
            if ours and title in " ".join(process.cmdline()):
                found.append(process)
    return found


class Outage(Protocol):
    """Something that the sweep uses and that can be taken away: a server, or room on a disk."""

    def begin(self) -> None:
        """Make the resource unavailable."""
        ...

    def end(self) -> None:
        """Make the resource available again."""
        ...


class Driver:
    """Command that runs a sweep, in its own session, to which its descendants belong even when their parents
    are dead.
    """

    def __init__(self, place: Place, episodes: Path) -> None:
        place.work.mkdir(exist_ok=True)
        self._command = [sys.executable, "-m", "stress.faulty_driver", "run"]
        self._command.append(str(place.sweep_file(episodes)))
        self._log, self._folder = place.log, place.work
        # Ray's sockets need a short path, and its files would not fit a small disk.
        self._variables = {"PYTHONPATH": str(CHECKOUT), "TMPDIR": str(place.work), "RAY_TMPDIR": "/tmp"}
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Start the command, with its output appended to the log."""
        self.starts += 1
        with self._log.open("a") as log:
            log.write(f"\n--- start {self.starts}\n")
            log.flush()
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=os.environ | self._variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ended(self) -> int | None:
        """Return the exit code; None while the command runs."""
        return self._process.poll()

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Return the live processes of the session with `title`, as Ray sets it, in their command line;
        zombies do not count.
        """
        return session(self._process.pid, title)

    def fail_heartbeat(self) -> None:
        """Raise an error in the thread that watches the run."""
        self._process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """Kill the command alone, and wait for its end."""
        self._process.kill()
        self._process.wait()

    def clean(self) -> None:
        """Wait until the session has no process left, and kill the remaining ones after 5 s."""
        deadline = time.monotonic() + 5
        while left := self.processes():
            if time.monotonic() > deadline:
                for process in left:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            time.sleep(0.2)


class Node:
    """Second Ray node with two CPUs, in its own session, that joins the driver's local cluster."""

    def __init__(self, driver: Driver, log: Path) -> None:
        self._driver, self._log = driver, log
        self._process: subprocess.Popen[bytes] | None = None
        self._joined = 0

    def join(self) -> None:
        """Join the cluster of the running driver, once per start of the driver and per `kill`."""
        if self._process and self._process.poll() is None and self._joined == self._driver.starts:
            return
        for raylet in self._driver.processes("raylet/raylet"):
            with suppress(psutil.Error):
                address = re.search(r"--gcs-address=(\S+)", " ".join(raylet.cmdline()))
                # Ray asks for the cluster's token where the machine has one.
                token = {
                    name: value for name, value in raylet.environ().items() if name.startswith("RAY_AUTH")
                }
                if address:
                    self.kill()
                    command = [str(Path(sys.executable).parent / "ray"), "start", f"--address={address[1]}"]
                    with self._log.open("ab") as log:
                        self._process = subprocess.Popen(
                            [*command, "--num-cpus=2", "--block"],
                            env=os.environ | token | {"PYTHONPATH": str(CHECKOUT), "RAY_TMPDIR": "/tmp"},
                            stdout=log,
                            stderr=log,
                            start_new_session=True,
                        )
                    self._joined = self._driver.starts
                    return

    def at_work(self) -> bool:
        """Return whether a process of the sweep runs on the node."""
        return self._process is not None and any(
            session(self._process.pid, title) for title in TITLES.values()
        )

    def kill(self) -> None:
        """Kill all processes of the node at once."""
        if self._process:
            for process in session(self._process.pid):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()
            self._process = None


@dataclass
class Tally:
    """Numbers of kills, by kind, and of restarts of a sweep."""

    kills: Counter[str] = field(default_factory=Counter)
    restarts: int = 0


def undisturbed(place: Place, episodes: Path) -> None:
    """Run the sweep once. Raises RuntimeError, with the end of its log, if it fails."""
    driver = Driver(place, episodes)
    try:
        while driver.ended() is None:
            time.sleep(0.2)
        if driver.ended():
            raise RuntimeError(
                "the undisturbed sweep ended with exit code"
                f" {driver.ended()}:\n{place.log.read_text()[-3000:]}"
            )
    finally:
        if driver.ended() is None:
            driver.kill()
        driver.clean()


class Disturbed:
    """Sweep with scheduled faults and the restarts after them.

    outages: by kind, of OUTAGES. node: whether a second node joins the driver's cluster.
    """

    def __init__(
        self,
        place: Place,
        episodes: Path,
        outages: dict[str, Outage],
        kills: int,
        rng: random.Random,
        kinds: tuple[str, ...] = KINDS,
    ) -> None:
        self._place, self._outages, self._rng = place, outages, rng
        self._todo = deque(
            kind for _ in range(-(-kills // len(kinds))) for kind in rng.sample(kinds, len(kinds))
        )
        while len(self._todo) > kills:
            self._todo.pop()
        self._kills = kills
        self._most_restarts = 3 + MOST_RESTARTS_PER_KILL * kills
        self._driver = Driver(place, episodes)
        self._node = Node(self._driver, place.log.with_name("node.log")) if "node" in kinds else None
        self._node_due = 0.0  # when the node joins, or is replaced
        self._next = time.monotonic() + rng.uniform(*AFTER_S)
        self._ends: dict[str, float] = {}  # when each outage in progress ends
        self.tally = Tally()

    def run(self) -> Tally:
        """Disturb and restart until the sweep succeeds. Raises RuntimeError, with the end of its log, after
        too many restarts.
        """
        try:
            while (code := self._driver.ended()) != 0:
                self._recover()
                if code is not None:
                    self._again(f"exit code {code}")
                elif self._todo and time.monotonic() > self._next and self._due():
                    self._next = time.monotonic() + self._rng.uniform(*AFTER_S)
                    self._strike()
                time.sleep(0.1)
            return self.tally
        finally:
            for kind in self._ends:
                self._outages[kind].end()
            if self._driver.ended() is None:
                self._driver.kill()
            if self._node:
                self._node.kill()
            self._driver.clean()

    def _recover(self) -> None:
        """End the outages that are due, and have a node join the driver's cluster."""
        for kind, end in list(self._ends.items()):
            if time.monotonic() > end:
                self._outages[kind].end()
                del self._ends[kind]
        if self._node and time.monotonic() > self._node_due:
            self._node.join()
            self._node_due = time.monotonic() + 1.0  # looking for the cluster reads every process

    def _again(self, why: str) -> None:
        if self.tally.restarts == self._most_restarts:
            raise RuntimeError(
                f"started {self.tally.restarts} times, and it is not done"
                f" ({why}):\n{self._place.log.read_text()[-3000:]}"
            )
        self._driver.clean()
        self.tally.restarts += 1
        self._driver.start()

    def _due(self) -> bool:
        """Return whether enough distinct scores are reported for another fault; a restarted driver reports
        earlier scores again.
        """
        scores = {*re.findall(r"score (\S+ after \d+ steps)", self._place.log.read_text(errors="replace"))}
        return len(scores) * self._kills >= (self._kills - len(self._todo)) * SPREAD * self._place.scores

    def _strike(self) -> None:
        """Cause the first listed fault that is possible, while the sweep trains or plays: most faults would
        hit its start otherwise.
        """
        if not any(self._driver.processes(title) for title in AT_WORK):
            self._next = time.monotonic() + self._rng.uniform(0, 2)
            return
        for _ in range(len(self._todo)):
            if self._cause(self._todo[0]):
                self._note(f"fault: {self._todo[0]}")
                self.tally.kills[self._todo.popleft()] += 1
                return
            self._todo.rotate(-1)

    def _cause(self, kind: str) -> bool:
        """Cause a fault of this kind and return whether that was possible."""
        if kind in OUTAGES:
            if kind in self._ends:
                return False
            self._outages[kind].begin()
            self._ends[kind] = time.monotonic() + self._rng.uniform(*AWAY_S)
        elif kind == "driver":
            self._driver.kill()
        elif kind == "heartbeat":
            self._driver.fail_heartbeat()
        elif kind == "node":
            if not self._node or not self._node.at_work():
                return False
            self._node.kill()
            self._node_due = time.monotonic() + self._rng.uniform(*AWAY_S)
        else:
            processes = self._driver.processes(TITLES[kind])
            if not processes:
                return False
            with suppress(psutil.NoSuchProcess):
                self._rng.choice(processes).kill()
        return True

    def _note(self, line: str) -> None:
        with self._place.log.open("a") as log:
            log.write(f"\n--- {line}\n")
