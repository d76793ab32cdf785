"""Sweeps, pools and policy servers whose processes are killed at random end as if nothing had happened."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run

from orchestrator.testing.seaweedfs import NoServerError
from stress.chaos import chaos, harmless
from stress.disturbed import KINDS

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.sim]
FEW = ("driver", "trainer", "policy server", "rollout worker", "storage")
"""What the full round kills, once each; the stress round kills all kinds."""
Point = Callable[[dict[str, str]], None]


def run_chaos(
    folder: Path, episodes: Path, kinds: tuple[str, ...], kills: int, seeds: int, point: Point, seed: int = 0
) -> None:
    """Kill the processes of a sweep at random; assert that every kind was killed and that the results are
    those of an undisturbed sweep.
    """
    try:
        answers = chaos(folder, episodes, kills, seed, point=point, seeds=seeds, kinds=kinds)
    except NoServerError as error:
        pytest.skip(str(error))
    assert answers["kills"] == kills
    assert all(answers["kills_by_kind"].values())
    assert answers["arms"] == seeds * 2
    assert answers["episodes"] == answers["arms"] * 2 * 3
    assert harmless(answers), answers


@pytest.mark.full
@pytest.mark.weed
@pytest.mark.timeout(1800)
def test_sweep_with_five_kills_ends_as_the_undisturbed_one(
    tmp_path: Path, lift_store: Path, s3_environment: Point
) -> None:
    """Seed 1 draws the trainer's kill first and the policy server's last: training of two arms is over before the
    sweep is, and the server lives until its end.
    """
    run_chaos(tmp_path, lift_store, kinds=FEW, kills=len(FEW), seeds=1, point=s3_environment, seed=1)


@pytest.mark.stress
@pytest.mark.weed
@pytest.mark.timeout(7200)
def test_sweep_with_thirty_kills_ends_as_the_undisturbed_one(
    tmp_path: Path, lift_store: Path, s3_environment: Point
) -> None:
    run_chaos(tmp_path, lift_store, kinds=KINDS, kills=30, seeds=3, point=s3_environment)


@pytest.mark.stress
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("module", ["faults", "soak"])
def test_stress_run_exits_zero(module: str) -> None:
    done = run("-m", f"stress.{module}")
    assert done.returncode == 0, done.stdout + done.stderr
