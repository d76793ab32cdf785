"""The examples, and the commands that score and serve any policy."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet
import pytest
from click.testing import CliRunner
from conftest import CHECKOUT, run

from command_session import Answer, answers
from orchestrator.cli.main import main
from orchestrator.evaluation.outcome_ledger import SCHEMA
from sim_workers.rollout.staged_outcome import StagedOutcome
from sim_workers.rollout.suite import SHIFTS, Suite

EXAMPLES = ("examples.waypoints:make", "examples.foreign_checkpoint:make")

# Each episode twice: with the policy in the simulator's process, and with the one at the URL.
PLAY = """
import json, sys
from sim_workers.envs.registry import make_env
from sim_workers.rollout.episode import run_episode
from sim_workers.rollout.policy_clients import FactoryPolicy, RemoteServer
from sim_workers.rollout.suite import EpisodeRules, Suite
name, url, tasks = sys.argv[1], sys.argv[2], ("Lift",)
rules = EpisodeRules(100)
specs = sorted(Suite(tasks, 6, rules).episode_list())
near, far = FactoryPolicy(name).connect(), RemoteServer(url).connect()
env = make_env("Lift", far.policy.contract)
told = []
for asker in (near, far):
    told.append([run_episode(env, spec, rules, asker.act).to_json() for spec in specs])
env.close()
print(json.dumps(told))
"""


@contextmanager
def served(*options: str) -> Iterator[str]:
    """Yield the URL at which `demoscale serve` answers; end it by Ctrl-C."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "serve", "--port", "0", *options],
        cwd=CHECKOUT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"answers at (http://\S+);", line)
        assert found, line
        yield found[1]
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopped\n"
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def untimed(outcome: dict[str, object]) -> dict[str, object]:
    made_by = ("worker", "simulated_on", "acted_on")
    return {name: value for name, value in outcome.items() if name not in made_by and not name.endswith("_s")}


@pytest.mark.full
@pytest.mark.sim
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_policy_succeeds_on_some_episodes_and_identically_over_http(name: str) -> None:
    with served("--policy", name) as url:
        done = run("-W", "ignore", "-c", PLAY, name, url)
    assert done.returncode == 0, done.stderr
    near, far = ([untimed(outcome) for outcome in told] for told in json.loads(done.stdout.splitlines()[-1]))
    assert near == far
    results = [outcome["result"] for outcome in near]
    assert 0 < results.count("success") < len(results), results


BROKEN = """
from examples.waypoints import make as waypoints
class Broken(type(waypoints())):
    def act(self, observations):
        raise RuntimeError("the weights are NaN")
def make():
    return Broken(waypoints().contract)
"""
OPTIONS = ("--task", "Lift", "--episodes", "6", "--horizon", "70", "--settle", "0")


def command_of_the_scoring_page() -> tuple[list[str], str]:
    """Return the first command of docs/scoring.md and what it prints, as the page says."""
    page = (CHECKOUT / "docs/scoring.md").read_text()
    command = re.search(r"^demoscale (score examples\.waypoints:make [^#\n]*)", page, re.MULTILINE)
    said = re.search(r"The first prints `(.*?)`", page)
    assert command
    assert said
    return command[1].split(), said[1]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Answer]]:
    """Score in a folder: the page's command, a policy whose outcomes are saved, one that raises."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "own_policy.py").write_text(BROKEN)
    commands = [
        command_of_the_scoring_page()[0],
        ["score", EXAMPLES[0], *OPTIONS, "--workers", "2", "--save", "near.parquet"],
        ["score", "own_policy:make", "--episodes", "1", "--horizon", "20", "--workers", "1"],
    ]
    return folder, answers(commands, folder, {"PYTHONPATH": f"{CHECKOUT}:{folder}"})


@pytest.mark.full
@pytest.mark.sim
@pytest.mark.ray
def test_first_command_of_the_scoring_page_prints_what_the_page_says(
    scored: tuple[Path, list[Answer]],
) -> None:
    answer = scored[1][0]
    assert answer.exit_code == 0, answer
    _, said = command_of_the_scoring_page()
    assert answer.stdout.splitlines()[-1] == said, "write what it prints into docs/scoring.md"


@pytest.mark.full
@pytest.mark.sim
@pytest.mark.ray
def test_score_command_gives_the_same_outcomes_locally_and_over_http(
    tmp_path: Path, scored: tuple[Path, list[Answer]]
) -> None:
    """Two workers or one, the policy in process or at a URL: the same outcomes, with their denominator."""
    folder, (_, near, _) = scored
    lines = tmp_path / "far.jsonl"
    with served("--policy", EXAMPLES[0]) as url:
        far = run("-m", "jobs.score", url, *OPTIONS, "--workers", "1", "--save", str(lines))
    assert far.returncode == 0, far.stderr
    assert near.exit_code == 0, near
    outcomes = [StagedOutcome.from_json(json.loads(line)) for line in lines.read_text().splitlines()]
    suite = Suite(("Lift",), 6, rules=None)  # type: ignore[arg-type]
    assert [outcome.spec for outcome in outcomes] == sorted(suite.episode_list())
    successes = sum(outcome.result == "success" for outcome in outcomes)
    assert re.search(rf"^{successes}/6 = \d\.\d\d \[\d\.\d\d, \d\.\d\d\]$", far.stdout, re.MULTILINE)
    assert far.stdout.splitlines()[-1] == near.stdout.splitlines()[-1]
    spec = ("task", "scene_seed", "noise_seed", "shift")
    saved = pyarrow.parquet.read_table(folder / "near.parquet")
    assert saved.schema.equals(SCHEMA), "every type is the ledger's, whatever happened to be played"
    rows = [
        untimed(row)
        for row in saved.drop_columns(["checkpoint", "protocol", "episode", "recorded"]).to_pylist()
    ]
    assert rows == [
        untimed(
            {
                **{name: getattr(o.spec, name) for name in spec},
                **{k: v for k, v in o.to_json().items() if k != "spec"},
            }
        )
        for o in outcomes
    ]


@pytest.mark.full
@pytest.mark.sim
@pytest.mark.ray
def test_score_command_of_a_raising_policy_exits_one(scored: tuple[Path, list[Answer]]) -> None:
    answer = scored[1][2]
    assert answer.exit_code == 1, answer
    assert "0/0 = nan [0.00, 1.00], 1 errors (PARTIAL: 1 listed)" in answer.stdout
    assert "the weights are NaN" in answer.stderr


@pytest.mark.parametrize(
    ("options", "sentences"),
    [
        (("nowhere",), ["CHECKPOINT: nowhere names no policy: it must look like package.module:function"]),
        (
            ("http://127.0.0.1:9",),
            ["CHECKPOINT: no policy server answers at http://127.0.0.1:9; is it running?"],
        ),
        (
            (EXAMPLES[0], "--rung", "faithful"),
            ["CHECKPOINT: --rung faithful: only a checkpoint's folder has rungs; leave it out"],
        ),
        (
            (EXAMPLES[0], "--task", "Wipe"),
            ["--task Wipe: proprioception layout: the policy was trained with"],
        ),
        (
            (EXAMPLES[0], "--task", "Juggle", "--save", "out.csv"),
            [
                "2 mistakes",
                "--task: unknown task Juggle; known are Lift",
                "--save: out.csv must end in .jsonl or .parquet",
            ],
        ),
        ((EXAMPLES[0], "--save", "no/out.jsonl"), ["--save: there is no folder no"]),
    ],
)
def test_score_command_lists_mistakes_before_it_plays(options: tuple[str, ...], sentences: list[str]) -> None:
    done = CliRunner().invoke(main, ["score", *options])
    assert done.exit_code == 2
    for sentence in sentences:
        assert sentence in done.stderr


@pytest.mark.parametrize("command", [("score",), ("serve", "--policy")])
def test_score_and_serve_of_a_folder_without_a_checkpoint_exit_one(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    done = CliRunner().invoke(main, [*command, str(tmp_path)])
    assert (done.exit_code, done.stderr) == (
        1,
        f"{tmp_path}: no checkpoint.json, so this is not a demoscale checkpoint; correct the path\n",
    )


def test_score_help_lists_every_shift() -> None:
    said = CliRunner().invoke(main, ["score", "--help"]).stdout
    assert all(shift in said for shift in (*SHIFTS, "every"))


def test_published_numbers_example_prints_verdicts(capfd: pytest.CaptureFixture[str]) -> None:
    from examples.published_numbers import main

    main()
    told = capfd.readouterr().out
    assert (
        "0.63 (50 demos) against 0.57 (DP-VLA, the best baseline): p = 0.0062, these trained policies differ"
        in told
    )
    assert "0.63 (50 demos) against 0.66 (300 demos): p = 0.14, no evidence that these trained" in told
