"""What a plan says of the differences that a sweep can show."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli.main import main
from orchestrator.config.sweep_config import SweepConfig, SweepError
from orchestrator.data.episode_store import commit, put_episode
from orchestrator.planning.plan import make_plan
from orchestrator.planning.power_table import PowerTable
from orchestrator.planning.sample_size import what_it_takes
from orchestrator.stats.power import Comparison
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CONTRACT, make_episode


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    storage = open_storage(str(tmp_path_factory.mktemp("data") / "store"))
    episodes = [put_episode(storage, make_episode(seed, length=16), 20.0) for seed in range(8)]
    commit(storage, CONTRACT, episodes)
    return storage.uri


def sweep(store: str, seeds: tuple[int, ...], **sections: object) -> SweepConfig:
    whole = {
        "name": "planned",
        "seeds": seeds,
        "data": {"episodes": store, "demo_count": [2, 4], "action_free_ratio": [0, 1]},
        "train": {"steps": 100, "checkpoint_every": 50, "batch_size": 4},
        "suite": {"tasks": ["Lift"], "episodes": 50, "horizon": 40, "settle": 4},
        "storage": f"{store}-runs",
    }
    return SweepConfig.model_validate(whole | sections)


def test_plan_shows_the_smallest_differences_of_one_and_of_all_comparisons(store: str) -> None:
    told = [line[15:] for line in str(make_plan(sweep(store, (0, 1, 2, 3, 4)))).splitlines()]
    (row,) = [line.split() for line in told if line.startswith("on the same episodes")]
    planned = Comparison(seeds=5, episodes=50)
    assert row[-2:] == [f"{Comparison(5, 50, n).smallest_difference():.2f}" for n in (1, 2)]
    (other,) = [line.split() for line in told if line.startswith("on other episodes")]
    assert float(other[-1]) > planned.smallest_difference()
    assert any(line.startswith("5 seeds, 50 episodes per arm; assumed: ") for line in told)


def test_plan_of_one_seed_shows_differences_between_trained_policies(store: str) -> None:
    text = str(make_plan(sweep(store, (0,))))
    assert "between trained policies" in text
    assert "One seed of a point says nothing about its recipe; that takes at least 3." in text


def test_plan_without_a_fixed_number_of_episodes_shows_no_power(store: str) -> None:
    suite = {"tasks": ["Lift"], "episodes": 50, "horizon": 40, "decide": {"threshold": 0.8}}
    decided = sweep(store, (0,), suite=suite)
    assert PowerTable.of(decided) is None
    with pytest.raises(SweepError, match="the number of episodes is not fixed"):
        what_it_takes(decided, 0.1, None)


def test_what_it_takes_needs_fewer_episodes_with_more_seeds(store: str) -> None:
    _, *rows = what_it_takes(sweep(store, (0,)), 0.1, None)
    seeds, episodes = [int(row[0]) for row in rows], [int(row[2]) for row in rows]
    assert seeds[0] > 3
    assert episodes == sorted(episodes, reverse=True)
    assert [int(row[3]) for row in rows] == [4 * number for number in seeds]
    assert rows[0][4] == f"{8 * seeds[0] * episodes[0]:,}", "two checkpoints of every arm are scored"


def test_plan_command_with_power_prints_seeds_episodes_and_assumptions(store: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(sweep(store, (0, 1, 2)).to_yaml())
    command = ["plan", str(tmp_path / "sweep.yaml"), "--power"]
    told = CliRunner().invoke(main, [*command, "0.1"], catch_exceptions=False).output
    assert "to find a difference of 0.1 between recipes with 80 % power, on the same episodes:" in told
    assert "episodes per task" in told
    assert "0.05 standard deviation between trainings" in told
    none = CliRunner().invoke(main, [*command, "0.01"], catch_exceptions=False).output
    assert "more than 20 seeds, or 1,000 episodes per task" in none
