"""A sweep in separate processes, which are killed at random, like its storage server, until it is done."""

import os
import random
import re
import subprocess
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from orchestrator.provenance import CHECKOUT
from orchestrator.testing.seaweedfs import BUCKET, SeaweedFS

TITLES = {
    "trainer": "ray::RayTrainWorker",
    "policy server": "ray::PolicyServer",
    "rollout worker": "ray::RolloutWorker",
    "control actor": "ray::ControlChannel",
    "train controller": "ray::TrainController",
    "trial": "ray::ImplicitFunc",
}
KINDS = ("driver", *TITLES, "storage")
"""Kinds of killed processes. A run whose control actor dies ends with the exit code of infrastructure and is
restarted.
"""
AT_WORK = TITLES["trainer"], "ray::RolloutWorker.play"
AFTER_S = 0.0, 10.0
"""Range of the delay of a due kill, in seconds, drawn uniformly."""
SPREAD = 10 / 12
"""Share of the sweep's scores that are reported when the last kill is due: kills are spread evenly over the
sweep at any speed of the machine.
"""
AWAY_S = 1.0, 5.0
"""Range of the delay, in seconds, before a killed storage server is restarted."""
MOST_RESTARTS_PER_KILL = 3
"""Restarts per kill above which a sweep counts as making no progress."""
SWEEP = """
name: chaos
seeds: {seeds}
data: {{episodes: {episodes}, demo_count: [1, 2], action_free_ratio: [1]}}
train: {{mode: action_only, steps: 12, batch_size: 4, checkpoint_every: 6, warmup_steps: 2}}
suite: {{tasks: [Lift], episodes: 3, horizon: 16}}
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
    seeds: int = 3
    """Number of training seeds, of two arms each."""

    @property
    def scores(self) -> int:
        """Number of scores: two arms per seed, two checkpoints per arm."""
        return self.seeds * 2 * 2

    @property
    def storage(self) -> str:
        """URI of the sweep's storage."""
        return f"s3://{BUCKET}/{self.name}"

    @property
    def mlflow(self) -> str:
        """MLflow tracking URI of the sweep."""
        return f"sqlite:///{self.folder / self.name}.db"

    @property
    def log(self) -> Path:
        """File that takes the command's output."""
        return self.folder / f"{self.name}.log"

    def sweep_file(self, episodes: Path) -> Path:
        """Write the sweep file for an episode store and return its path."""
        path = self.folder / f"{self.name}.yaml"
        path.write_text(
            SWEEP.format(
                seeds=[*range(self.seeds)], episodes=episodes, storage=self.storage, mlflow=self.mlflow
            )
        )
        return path


class Driver:
    """Command that runs a sweep, in its own session, to which its descendants belong even when their parents
    are dead.
    """

    def __init__(self, place: Place, episodes: Path) -> None:
        self._command = [sys.executable, "-m", "orchestrator", "run", str(place.sweep_file(episodes))]
        self._log = place.log
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Start the command, with its output appended to the log."""
        self.starts += 1
        with self._log.open("a") as log:
            log.write(f"\n--- start {self.starts}\n")
            log.flush()
            self._process = subprocess.Popen(
                self._command, cwd=CHECKOUT, stdout=log, stderr=log, start_new_session=True
            )

    def ended(self) -> int | None:
        """Return the exit code; None while the command runs."""
        return self._process.poll()

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Return the live processes of the session with `title`, as Ray sets it, in their command line;
        zombies do not count.
        """
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                ours = (
                    os.getsid(process.pid) == self._process.pid and process.status() != psutil.STATUS_ZOMBIE
                )
                if ours and title in " ".join(process.cmdline()):
                    found.append(process)
        return found

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
    """Sweep with scheduled kills and the restarts after them."""

    def __init__(
        self,
        place: Place,
        episodes: Path,
        server: SeaweedFS,
        kills: int,
        rng: random.Random,
        kinds: tuple[str, ...] = KINDS,
    ) -> None:
        self._place, self._server, self._rng = place, server, rng
        self._todo = deque(
            kind for _ in range(-(-kills // len(kinds))) for kind in rng.sample(kinds, len(kinds))
        )
        while len(self._todo) > kills:
            self._todo.pop()
        self._kills = kills
        self._most_restarts = 3 + MOST_RESTARTS_PER_KILL * kills
        self._driver = Driver(place, episodes)
        self._next = time.monotonic() + rng.uniform(*AFTER_S)
        self._back = float("inf")  # when the killed storage server is restarted; infinite while it runs
        self.tally = Tally()

    def run(self) -> Tally:
        """Kill and restart until the sweep succeeds. Raises RuntimeError, with the end of its log, after too
        many restarts.
        """
        try:
            while (code := self._driver.ended()) != 0:
                if time.monotonic() > self._back:
                    self._server.start()
                    self._back = float("inf")
                if code is not None:
                    self._again(f"exit code {code}")
                elif self._todo and time.monotonic() > self._next and self._due():
                    self._next = time.monotonic() + self._rng.uniform(*AFTER_S)
                    self._strike()
                time.sleep(0.1)
            return self.tally
        finally:
            if self._driver.ended() is None:
                self._driver.kill()
            self._driver.clean()

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
        """Return whether enough distinct scores are reported for another kill; a restarted driver reports
        earlier scores again.
        """
        told = {*re.findall(r"score (\S+ after \d+ steps)", self._place.log.read_text(errors="replace"))}
        return len(told) * self._kills >= (self._kills - len(self._todo)) * SPREAD * self._place.scores

    def _strike(self) -> None:
        """Kill the first listed kind that is running, while the sweep trains or plays: most kills would hit
        its start otherwise.
        """
        if not any(self._driver.processes(title) for title in AT_WORK):
            self._next = time.monotonic() + self._rng.uniform(0, 2)
            return
        for _ in range(len(self._todo)):
            if self._kill(self._todo[0]):
                self._note(f"killed the {self._todo[0]}")
                self.tally.kills[self._todo.popleft()] += 1
                return
            self._todo.rotate(-1)

    def _kill(self, kind: str) -> bool:
        """Kill a process of this kind and return whether there was one."""
        if kind == "storage":
            if self._back < float("inf"):
                return False
            self._server.kill()
            self._back = time.monotonic() + self._rng.uniform(*AWAY_S)
        elif kind == "driver":
            self._driver.kill()
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
