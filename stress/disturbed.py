"""A sweep in processes of its own, whose processes and storage server are killed at random until it is done all the same."""

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
    "control actor": "ray::Desk",
    "train controller": "ray::TrainController",
    "trial": "ray::ImplicitFunc",
}
KINDS = ("driver", *TITLES, "storage")
"""What is killed. A run whose control actor dies ends with the exit code of infrastructure, and is started again."""
AT_WORK = TITLES["trainer"], "ray::RolloutWorker.play"
AFTER_S = 0.0, 10.0
"""A kill that is due comes so much later, drawn evenly."""
SPREAD = 10 / 12
"""Share of the sweep's scores that are reported when the last kill is due: kills are spread evenly over the sweep, however fast the machine."""
AWAY_S = 1.0, 5.0
"""Until a killed storage server is started again."""
MOST_RESTARTS_PER_KILL = 3
"""A sweep that has to be started again more often does not get anywhere."""
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
    """Where one run of the sweep keeps what it makes: results in the storage, its tracking database and its log in a folder."""

    name: str
    folder: Path
    seeds: int = 3
    """Training seeds, of two arms each."""

    @property
    def scores(self) -> int:
        """Of its arms' two checkpoints each."""
        return self.seeds * 2 * 2

    @property
    def storage(self) -> str:
        return f"s3://{BUCKET}/{self.name}"

    @property
    def mlflow(self) -> str:
        return f"sqlite:///{self.folder / self.name}.db"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def sweep_file(self, episodes: Path) -> Path:
        path = self.folder / f"{self.name}.yaml"
        path.write_text(SWEEP.format(seeds=[*range(self.seeds)], episodes=episodes, storage=self.storage, mlflow=self.mlflow))
        return path


class Driver:
    """The command that runs a sweep, in a session of its own: whatever it starts belongs to that, even when its parents are dead."""

    def __init__(self, place: Place, episodes: Path) -> None:
        self._command = [sys.executable, "-m", "orchestrator", "run", str(place.sweep_file(episodes))]
        self._log = place.log
        self.starts = 0
        self.start()

    def start(self) -> None:
        self.starts += 1
        with self._log.open("a") as log:
            log.write(f"\n--- start {self.starts}\n")
            log.flush()
            self._process = subprocess.Popen(self._command, cwd=CHECKOUT, stdout=log, stderr=log, start_new_session=True)

    def ended(self) -> int | None:
        """The exit code, once there is one."""
        return self._process.poll()

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Of its session, by the title that Ray gave them; zombies do not count."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                ours = os.getsid(process.pid) == self._process.pid and process.status() != psutil.STATUS_ZOMBIE
                if ours and title in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill(self) -> None:
        """The command alone."""
        self._process.kill()
        self._process.wait()

    def clean(self) -> None:
        """Nothing of it is left: what does not go by itself once the command is gone is killed."""
        deadline = time.monotonic() + 5
        while left := self.processes():
            if time.monotonic() > deadline:
                for process in left:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            time.sleep(0.2)


@dataclass
class Tally:
    """What was done to a sweep, and how often it had to be started again."""

    kills: Counter[str] = field(default_factory=Counter)
    restarts: int = 0


def undisturbed(place: Place, episodes: Path) -> None:
    """Run the sweep once; RuntimeError with the end of its log if it fails."""
    driver = Driver(place, episodes)
    try:
        while driver.ended() is None:
            time.sleep(0.2)
        if driver.ended():
            raise RuntimeError(f"the undisturbed sweep ended with exit code {driver.ended()}:\n{place.log.read_text()[-3000:]}")
    finally:
        if driver.ended() is None:
            driver.kill()
        driver.clean()


class Disturbed:
    """A sweep, and what befalls it until it is done."""

    def __init__(self, place: Place, episodes: Path, server: SeaweedFS, kills: int, rng: random.Random, kinds: tuple[str, ...] = KINDS) -> None:
        self._place, self._server, self._rng = place, server, rng
        self._todo = deque(kind for _ in range(-(-kills // len(kinds))) for kind in rng.sample(kinds, len(kinds)))
        while len(self._todo) > kills:
            self._todo.pop()
        self._kills = kills
        self._most_restarts = 3 + MOST_RESTARTS_PER_KILL * kills
        self._driver = Driver(place, episodes)
        self._next = time.monotonic() + rng.uniform(*AFTER_S)
        self._back = float("inf")  # when the storage server, away now, is started again
        self.tally = Tally()

    def run(self) -> Tally:
        """Until the sweep has ended well. RuntimeError with the end of its log if it never does."""
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
            raise RuntimeError(f"started {self.tally.restarts} times, and it is not done ({why}):\n{self._place.log.read_text()[-3000:]}")
        self._driver.clean()
        self.tally.restarts += 1
        self._driver.start()

    def _due(self) -> bool:
        """Whether the sweep has come far enough for another kill; a driver tells all scores again that it finds."""
        told = {*re.findall(r"score (\S+ after \d+ steps)", self._place.log.read_text(errors="replace"))}
        return len(told) * self._kills >= (self._kills - len(self._todo)) * SPREAD * self._place.scores

    def _strike(self) -> None:
        """Kill the first of the list that is there to be killed, while the sweep is at work: most of it would meet a start otherwise."""
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
        """Whether there was one."""
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
