"""Seeds and episodes with which a sweep shows a given difference, and their cost."""

from collections.abc import Sequence
from math import ceil

from orchestrator.config.sweep_config import SweepConfig, SweepError
from orchestrator.planning.calibration import Calibration
from orchestrator.planning.cost_estimate import estimate
from orchestrator.planning.plan import make_plan
from orchestrator.planning.power_table import PowerTable, most_compared
from orchestrator.stats.claims import FEWEST_SEEDS
from orchestrator.stats.power import Comparison, fewest_episodes

SEEDS = (3, 4, 5, 6, 8, 10, 12, 15, 20)
"""Numbers of seeds for which `what_it_takes` looks for a number of episodes."""
MOST_EPISODES = 1000
"""Most episodes per task that `what_it_takes` names."""


def what_it_takes(
    sweep: SweepConfig, difference: float, measured: Calibration | None
) -> list[tuple[str, ...]]:
    """Return rows of a table, headings first: numbers of seeds and episodes with which a difference between
    recipes is found with 80 % power on common episodes, and their cost, as far as the machine is measured.

    Raises SweepError for a sweep without a fixed number of episodes, or with one seed by its nature.
    """
    rows: list[tuple[str, ...]] = [
        ("seeds", "episodes per task", "for all", "arms", "rollouts", "cost, for all"),
    ]
    if sweep.search.optuna:
        raise SweepError(
            sweep.name,
            ["search.optuna: its arms have one seed, by which no recipe is shown; list the arms instead"],
        )
    if PowerTable.of(sweep) is None:
        raise SweepError(
            sweep.name, ["suite: the number of episodes is not fixed; leave out decide or held_out"]
        )
    tasks, compared = len(sweep.suite.tasks), most_compared(sweep)
    for seeds in sorted({*SEEDS, *([len(sweep.seeds)] if len(sweep.seeds) >= FEWEST_SEEDS else [])}):
        one, every = (
            fewest_episodes(Comparison(seeds, 1, number), difference, MOST_EPISODES * tasks)
            for number in (1, compared)
        )
        if one is None or every is None:
            continue
        per_task = [ceil(number / tasks) for number in (one, every)]
        wanted = with_size(sweep, seeds, per_task[1])
        plan = make_plan(wanted)
        cost = estimate(wanted, measured).in_short() if measured else "not measured"
        rows.append((f"{seeds}", *(f"{n:,}" for n in per_task), f"{plan.arms}", f"{plan.rollouts:,}", cost))
    return rows


def with_size(sweep: SweepConfig, seeds: int, episodes: int) -> SweepConfig:
    """Return the sweep with this number of seeds, its own first, and of episodes per task."""
    more = _extended(sweep.seeds, seeds)
    suite = sweep.suite.model_copy(update={"episodes": episodes})
    return sweep.model_copy(update={"seeds": tuple(more), "suite": suite})


def _extended(seeds: Sequence[int], number: int) -> list[int]:
    following = max(seeds) + 1
    return [*seeds[:number], *range(following, following + number - len(seeds))]
