"""Does the worth of demonstrations find the bad ones, and are scenes classified rightly?

    python -m experiments.demo_worth              some minutes
    python -m experiments.demo_worth --quick      few worlds

Pure statistics, no simulator. A store has 50 demonstrations, 10 of them bad; an arm learns from 20. Each bad
one among them lowers the log odds of success by a fixed amount; trainings differ by luck (standard deviation
0.3 in log odds) and scenes by difficulty (1.0). Every arm plays the same 50 scenes. "points" is what a bad
demonstration changes in success when it takes the place of an average other one. Precision and recall are
over all worlds; their 95 % intervals are bootstraps of worlds, or exact ones if these are wider. The last
columns are the share of worlds in which the permutation test rejects at 5 %, and the coverage of the 95 %
intervals of all demonstrations; "gain" is the mean change of success, in points, of arms from a store without
the named ones. Nested: 5 demo counts from 5 to 30, the same seeds at each.

Scenes: arms of 6 demo counts, 3 seeds each; a scene's true class is that of average trainings.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from bench import harness
from orchestrator.stats.demo_worth import DemoWorth, ScoredSubsets, demo_worth
from orchestrator.stats.fixed_sample import Interval, clopper_pearson, interval_of
from orchestrator.stats.sample_efficiency import Floats
from orchestrator.stats.scene_difficulty import scene_difficulties

STORE, BAD, DEMOS, SCENES = 50, 10, 20, 50
LUCK, DIFFICULTY = 0.3, 1.0
NESTED = (5, 8, 12, 20, 30)
EPISODES = tuple(f"episode-{number:02}" for number in range(STORE))


@dataclass(frozen=True)
class World:
    """A store with bad demonstrations, the first BAD ones, and a suite of scenes."""

    harm: float
    """Log odds that each bad one takes from an arm with DEMOS demos."""
    difficulties: Floats
    """(SCENES,)"""

    def rates(self, bad: Floats) -> Floats:
        """Return the success rates (A, SCENES) of average trainings. bad: (A,) share of bad demos."""
        ability = -self.harm * DEMOS * (np.asarray(bad) - BAD / STORE)
        return np.asarray(expit(ability[:, None] - self.difficulties))

    def scored(self, seeds: int, counts: tuple[int, ...], rng: np.random.Generator) -> ScoredSubsets:
        """Return the arms of seeds x counts; the subsets of a seed are nested."""
        members, cells = list[NDArray[np.bool_]](), list[int]()
        for _ in range(seeds):
            order = rng.permutation(STORE)
            members += [np.isin(np.arange(STORE), order[:count]) for count in counts]
            cells += range(len(counts))
        chosen = np.array(members)
        demos = chosen.sum(1).astype(float)
        odds = np.log(1 / (1 / self.rates(chosen[:, :BAD].sum(1) / demos) - 1))
        odds += LUCK * rng.normal(size=(len(demos), 1)) + 0.5 * np.log(demos / DEMOS)[:, None]
        won = (rng.random(odds.shape) < expit(odds)).astype(float)
        return ScoredSubsets(
            EPISODES, np.array(cells), demos, np.repeat(np.arange(seeds), len(counts)), chosen, won
        )

    def changes(self, demos: int) -> Floats:
        """Return (STORE,) the true change of success by each demonstration in place of an average other."""
        bad = np.arange(STORE) < BAD
        others = (BAD - bad) / (STORE - 1)
        share = BAD / STORE
        base = self.rates(np.array([share])).mean()
        return np.asarray(self.rates(share + (bad - others) / demos).mean(1) - base)


def world(harm: float, rng: np.random.Generator) -> World:
    """Return a world with scenes at random."""
    return World(harm, DIFFICULTY * rng.normal(size=SCENES))


@dataclass(frozen=True)
class Found:
    """Names and intervals in one world."""

    named: int
    right: int
    rejected: bool
    covered: float
    points: float
    """True change of success by a bad demonstration."""
    gain: float
    """True change of success, in points, of arms that are drawn from the store without the named ones."""

    @classmethod
    def of(cls, truth: World, told: DemoWorth) -> "Found":
        """Compare what was told with the truth."""
        changes = dict(zip(EPISODES, truth.changes(told.demos), strict=True))
        inside = [one.interval.low <= changes[one.episode] <= one.interval.high for one in told.episodes]
        right = sum(one.episode in EPISODES[:BAD] for one in told.hurting)
        named = len(told.hurting)
        shares = np.array([(BAD - right) / (STORE - named), BAD / STORE])
        after, before = truth.rates(shares).mean(1)
        return cls(
            named,
            right,
            told.told,
            float(np.mean(inside)),
            100 * changes[EPISODES[0]],
            100 * float(after - before),
        )


def ratio(over: list[int], under: list[int]) -> tuple[float, Interval]:
    """Return a ratio of sums over worlds, with the wider of a bootstrap interval and the exact one of the
    sums; nan without any.
    """
    if not sum(under):
        return float("nan"), Interval(0.0, 1.0)
    exact = clopper_pearson(sum(over), sum(under))
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(over), size=(2000, len(over)))
    sums = np.array(over)[drawn].sum(1), np.maximum(np.array(under)[drawn].sum(1), 1)
    drawn_bounds = interval_of(sums[0] / sums[1])
    bounds = Interval(min(exact.low, drawn_bounds.low), max(exact.high, drawn_bounds.high))
    return sum(over) / sum(under), bounds


def worth(worlds: int) -> dict[str, float | None]:
    """Print the table of demonstrations; return its values."""
    print("arms          points  precision            recall               rejected  covered   gain\n")
    answer = dict[str, float | None]()
    cases: list[tuple[str, int, tuple[int, ...], float]]
    cases = [(f"{seeds}", seeds, (DEMOS,), harm) for harm in (0.0, 0.3, 0.6) for seeds in (30, 60, 120, 240)]
    cases += [("100, nested", 20, NESTED, 0.6)]
    for name, seeds, counts, harm in cases:
        found = list[Found]()
        for number in range(worlds):
            rng = np.random.default_rng([number, seeds, round(10 * harm)])
            truth = world(harm, rng)
            if told := demo_worth(truth.scored(seeds, counts, rng)):
                found.append(Found.of(truth, told))
        named, right = [one.named for one in found], [one.right for one in found]
        precision, recall = ratio(right, named), ratio(right, [BAD] * len(found))
        rejected, covered = np.mean([one.rejected for one in found]), np.mean([one.covered for one in found])
        shown = [
            f"{value:.2f} [{bounds.low:.2f}, {bounds.high:.2f}]" if value == value else "none named"
            for value, bounds in (precision, recall)
        ]
        gain = np.mean([one.gain for one in found])
        points = np.mean([one.points for one in found])
        print(
            f"{name:<13}{points:>7.1f}  {shown[0]:<20} {shown[1] if harm else '-':<20}"
            f"{rejected:>9.2f}{covered:>9.2f}{gain:>+7.1f}"
        )
        key = f"{name.replace(', ', '_')}_{harm:g}"
        answer |= {f"gain_{key}": float(gain)} if harm else {}
        answer |= {f"rejected_{key}": float(rejected), f"covered_{key}": float(covered)}
        if harm:
            answer |= {f"precision_{key}": precision[0] if sum(named) else None, f"recall_{key}": recall[0]}
    return answer


def scenes(worlds: int) -> dict[str, float]:
    """Print how scenes are classified; return the values."""
    counts, seeds, slope = np.array([5.0, 10, 20, 40, 80, 160]), 3, 0.7
    right, certain, total = 0, 0, 0
    for number in range(worlds):
        rng = np.random.default_rng([number, 7])
        difficulties = 1.5 * rng.normal(size=SCENES)
        demos = np.repeat(counts, seeds)
        ability = slope * (np.log(demos) - np.log(demos).mean())
        odds = (ability + LUCK * rng.normal(size=len(demos)))[:, None] - difficulties
        outcomes = (rng.random(odds.shape) < expit(odds)).astype(float)
        names = tuple(map(str, range(SCENES)))
        low, high = ability.min() > difficulties, ability.max() > difficulties
        truth = np.where(low, "easy", np.where(high, "more demos", "hard"))
        for one in scene_difficulties(names, np.zeros(len(demos), np.int64), demos, outcomes):
            total += 1
            certain += one.kind != "undecided"
            right += one.kind == truth[int(one.scene)]
    print(f"\nscenes: {certain / total:.2f} classified, of these {right / certain:.3f} rightly")
    return {"scenes_classified": certain / total, "scenes_right": right / certain}


@harness.command("demo_worth")
def main(quick: bool) -> dict[str, object]:
    """Print the tables; return the values of the last line."""
    worlds = 4 if quick else 40
    print(f"{worlds} worlds each\n")
    return {"worlds": worlds, **worth(worlds), **scenes(worlds)}


if __name__ == "__main__":
    main()
