"""A sweep of a policy with memory that an installed package offers: its package edited while the sweep runs, its
driver killed while it trains, a checkpoint scored by one and by three simulators.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from begun_command import BegunCommand, begin
from command_session import outputs
from installed_package import install, path_with
from learner_package import MODULE
from policy.entry_points import POLICIES
from sim_workers.rollout.staged_outcome import StagedOutcome

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.sim, pytest.mark.stress]

SLOW = '''
import os, time


def log(line):
    with open(os.environ["LEARNER_LOG"], "a") as file:
        file.write(line + "\\n")


class Slow(Remembering):
    """Trains slowly enough to be killed in between, and logs its steps and its answers."""

    def forward(self, *told):
        time.sleep(0.2)
        log("trained")
        return super().forward(*told)

    def act(self, seen, states, sampler):
        actions, after = super().act(seen, states, sampler)
        for (seed, _), step, chunk in zip(seen.noise_seeds, seen.steps, actions):
            log(f"{float(self.body.weight.sum())!r} {seed} {step} {float(chunk.sum())!r}")
        return actions, after
'''
STEPS, EVERY = 12, 4


@dataclass(frozen=True)
class Place:
    """A folder with the package, the sweep and its storage."""

    folder: Path

    def install(self, version: str = "1.0", more: str = "") -> None:
        offers = {POLICIES.name: {"slow": "slow_policy:Slow"}}
        install(
            self.folder / "site", "slow-policy", {"slow_policy.py": MODULE + SLOW + more}, offers, version
        )

    def variables(self, log: str) -> dict[str, str]:
        """Return the environment in which the package is found and its policy writes the log of that name."""
        return {"PYTHONPATH": path_with(self.folder / "site"), "LEARNER_LOG": str(self.folder / log)}

    def begin(self, log: str, ready: Callable[[], object]) -> BegunCommand:
        """Start the sweep; return once `ready` returns a true value."""
        command = ["-m", "orchestrator", "run", str(self.folder / "sweep.yaml")]
        return begin(command, self.folder / f"{log}_output", ready, self.variables(log))

    def run(self, log: str, *arguments: str) -> str:
        """Run a command to its end; return what it printed."""
        (printed,) = outputs([arguments], variables=self.variables(log))
        return printed

    def lines(self, log: str) -> list[str]:
        file = self.folder / log
        return file.read_text().splitlines() if file.exists() else []

    def answers(self, log: str) -> dict[tuple[str, ...], str]:
        """Return the sums of the chunks by sum of the weights, noise seed, which names episode and observation,
        and step.
        """
        rows = {tuple(line.split()) for line in self.lines(log) if line != "trained"}
        found = {row[:3]: row[3] for row in rows}
        assert len(found) == len(rows), "one answer per observation"
        return found

    def written(self) -> dict[Path, int]:
        """Return outcomes and checkpoints, and the time at which each was written."""
        root = self.folder / "runs"
        complete = [file.relative_to(root / "checkpoints") for file in root.glob("checkpoints/*/*.json")]
        files = [root / "arms" / step.with_suffix("") / "checkpoint.json" for step in complete]
        files += root.glob("outcomes/**/*.parquet")
        return {file.relative_to(root): file.stat().st_mtime_ns for file in files}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, store: str) -> Place:
    return prepared(tmp_path_factory.mktemp("learner"), store)


def prepared(folder: Path, store: str) -> Place:
    """Install the package in a folder, and write the sweep file."""
    place = Place(folder)
    place.install()
    (place.folder / "sweep.yaml").write_text(f"""
name: learner
data: {{episodes: {store}, demo_count: [2]}}
policy: {{lines: [{{policy: slow, options: {{scale: 0.5}}}}]}}
train: {{steps: {STEPS}, batch_size: 4, checkpoint_every: {EVERY}, warmup_steps: 2}}
suite: {{tasks: [Lift], episodes: 4, horizon: 40, video_clips: 0}}
rollout_actors: 3
storage: {place.folder / "runs"}
""")
    return place


@pytest.fixture(scope="module")
def swept(place: Place) -> dict[Path, int]:
    """Kill the driver after the arm's first checkpoint and run the same command again; return what was there
    when it was killed.
    """
    place.begin("killed", lambda: [*place.folder.glob("runs/checkpoints/slow_*/*.json")]).kill()
    before = place.written()
    place.run("swept", "run", str(place.folder / "sweep.yaml"))
    return before


def test_package_edited_during_a_sweep_ends_it_before_anything_is_trained(tmp_path: Path, store: str) -> None:
    place = prepared(tmp_path, store)
    # The sweep is recorded after the driver has read the package.
    running = place.begin("edited", (place.folder / "runs/sweeps/learner.json").exists)
    place.install(more="\n\nEDITED = True\n")
    assert running.process.wait(timeout=400) == 75, running.stderr
    assert "an installed package was edited while the run was in progress" in running.stderr
    advice = "(slow_policy.py); install one version on every node and start the same command again"
    assert advice in running.stderr
    assert place.lines("edited") == []


def test_killed_sweep_of_a_packages_policy_trains_and_plays_nothing_again(
    place: Place, swept: dict[Path, int]
) -> None:
    assert any(file.name == "checkpoint.json" for file in swept)
    assert swept.items() <= place.written().items()
    assert place.lines("swept").count("trained") <= STEPS - EVERY
    (arm,) = (place.folder / "runs/arms").iterdir()
    assert sorted(step.name for step in arm.glob("step_*")) == ["step_000004", "step_000008", "step_000012"]


def test_curve_has_the_line_of_a_packages_policy(place: Place, swept: dict[Path, int]) -> None:
    storage = str(place.folder / "runs")
    curve: dict[str, Any] = json.loads(place.run("curve", "curve", "learner", "--storage", storage, "--json"))
    assert [line["label"] for line in curve["lines"]] == ["slow"]
    (point,) = curve["points"]
    assert (point["policy"], point["demo_count"], point["episodes"]) == ("slow", 2, 4)


def test_policy_with_memory_acts_equally_with_one_and_three_workers(
    place: Place, swept: dict[Path, int]
) -> None:
    """The sweep has played with three; its outcomes are those of the command too."""
    saved, alone = place.folder / "sweep.jsonl", place.folder / "alone.jsonl"
    asked = ("score", "slow_demos-2_ratio-0_seed-0", "--sweep", "learner", "--storage")
    told = place.run("none", *asked, str(place.folder / "runs"), "--save", str(saved))
    assert "nothing to play" in told
    (checkpoint,) = place.folder.glob("runs/arms/slow_*/step_000012")
    asked = ("score", str(checkpoint), "--suite", str(place.folder / "sweep.yaml"), "--save", str(alone))
    place.run("alone", *asked, "--workers", "1", "--storage", str(place.folder / "alone_runs"))
    three, one = (
        [StagedOutcome.from_json(json.loads(line)) for line in file.read_text().splitlines()]
        for file in (saved, alone)
    )
    assert [outcome.played for outcome in one] == [outcome.played for outcome in three]
    answers = place.answers("alone")
    assert len(answers) == sum(outcome.looks for outcome in one)
    assert answers.items() <= {**place.answers("killed"), **place.answers("swept")}.items()
