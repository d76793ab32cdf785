"""Which differences the seeds and episodes of a sweep can show."""

from dataclasses import dataclass, replace
from math import isfinite

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.report.curve_types import compared_cells, lines_of
from orchestrator.stats.claims import Claim
from orchestrator.stats.power import AROUND, POWER, SCENE_SD, TRAINING_SD, Comparison

ASSUMED = (
    f"assumed: success around {AROUND:g}, where differences are hardest to find; {TRAINING_SD:g} standard"
    f" deviation between trainings, {SCENE_SD:g} between scenes (logit)"
)


@dataclass(frozen=True)
class PowerTable:
    """Smallest differences between two points that a sweep finds with 80 % power."""

    comparison: Comparison
    """One comparison of the sweep, on common episodes."""
    tasks: int
    all_compared: int
    """Number of comparisons of the question with the most of them."""

    @classmethod
    def of(cls, sweep: SweepConfig) -> "PowerTable | None":
        """Return a sweep's table; None if its number of episodes is not fixed or it plays none."""
        if sweep.suite.held_out is not None or sweep.suite.decide:
            return None
        planned = Comparison(len(sweep.seeds), sweep.suite.listed)
        return cls(planned, len(sweep.suite.tasks), most_compared(sweep))

    def difference(self, paired: bool, every: bool) -> float:
        """Return the smallest difference that is found. every: in each of the comparisons of a question,
        whose p-values are corrected for their number.
        """
        compared = self.all_compared if every else 1
        return replace(self.comparison, paired=paired, compared=compared).smallest_difference()

    def lines(self) -> list[str]:
        """Return the table."""
        seeds, episodes = self.comparison.seeds, self.comparison.episodes
        claim = Claim(seeds)
        between = "recipes" if claim.of_recipe else "trained policies"
        rows = [
            (
                f"smallest difference found ({POWER * 100:.0f} % power) between {between}",
                "one comparison",
                f"all {self.all_compared} of a question",
            )
        ]
        for name, paired in (("on the same episodes", True), ("on other episodes of each", False)):
            found = [self.difference(paired, every) for every in (False, True)]
            one, all_ = (f"{least:.2f}" if isfinite(least) else "none" for least in found)
            rows.append((name, one, all_))
        told = [f"{name:<64}{one:>14}{all_:>21}" for name, one, all_ in rows]
        if self.all_compared == 1:
            told = [line[:-21] for line in told]
        tasks = f" of {self.tasks} tasks" if self.tasks > 1 else ""
        told.append(f"{seeds} seed{'s' if seeds > 1 else ''}, {episodes} episodes{tasks} per arm; {ASSUMED}")
        return told + ([claim.needs] if claim.needs else [])


def most_compared(sweep: SweepConfig) -> int:
    """Return the number of comparisons of the question with the most of them; 1 where Optuna proposes the
    arms.
    """
    arms = sweep.possible_arms()
    families = compared_cells(lines_of(arms, {}), sorted({arm.demo_count for arm in arms})) if arms else []
    return max([1, *map(len, families)])
