"""How hard each evaluation scene is, and for which arms: item response over scenes. Pure.

Rasch's model (1960): the log odds that an arm solves a scene are the arm's ability minus the scene's
difficulty. The ability is linear in log demos, with a constant and a slope for every line of the curve, plus
the luck of a training; luck and difficulties are normal random effects. The fit is penalised
quasi-likelihood, variances by expectation maximisation (Breslow and Clayton 1993). A scene is classified if
its class has a probability of CERTAIN among draws of the normal posterior. Shapes: A arms, S scenes, L lines,
D draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from orchestrator.stats.sample_efficiency import Floats

CERTAIN = 0.9
"""Probability from which a scene counts as one of a class."""
HALF = 0.5
"""Success rate above which an average arm solves a scene."""
DRAWS = 1000
ROUNDS = 40
CONSTANT, SLOPE = 3.0, 1.5
"""Prior standard deviations of an average scene's log odds at the mean of log demos, and of their change per
factor e of demos: wide, and finite where all arms agree.
"""

SceneClass = Literal["hard", "more demos", "easy", "depends on the policy", "undecided"]


@dataclass(frozen=True)
class SceneDifficulty:
    """One scene, for average trainings of every line."""

    scene: str
    kind: SceneClass
    """hard: below HALF with the fewest and the most demos of every line; easy: above it; more demos: below it
    with the fewest of a line and above with its most; depends on the policy: lines differ, at any demo count.
    """
    probability: float
    """Of the most probable class, even if it is not certain enough."""
    fewest: float
    """Success rate with the fewest demos, mean over lines."""
    most: float
    """Success rate with the most demos, mean over lines."""
    solved: int
    """Number of arms that solved it."""
    arms: int
    """Number of arms that played it."""


@dataclass(frozen=True)
class _Fit:
    """Mode and covariance of constants (L), slopes (L) and difficulties (S)."""

    mode: Floats
    covariance: Floats


def scene_difficulties(
    scenes: Sequence[str], lines: NDArray[np.int64], demos: Floats, outcomes: Floats, seed: int = 0
) -> tuple[SceneDifficulty, ...]:
    """Classify every scene that an arm played, the hardest first.

    lines: (A,) numbers of lines from 0; demos: (A,); outcomes: (A, S) 1 success, 0 failure, nan not played.
    """
    played = np.isfinite(outcomes)
    kept = np.flatnonzero(played.any(0))
    if not len(kept):
        return ()
    outcomes, played = outcomes[:, kept], played[:, kept]
    centre = float(np.log(demos).mean())
    log_demos = np.log(demos) - centre
    fitted = _fit(lines, log_demos, outcomes)
    number = int(lines.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = rng.multivariate_normal(fitted.mode, fitted.covariance, size=DRAWS, method="eigh")
    low, high = _at_ends(lines, log_demos, drawn, number)  # (L, D, S)
    certain = _classes(low, high)
    expected_low, expected_high = expit(low).mean((0, 1)), expit(high).mean((0, 1))
    found = []
    for place, scene in enumerate(kept):
        probabilities = {kind: float(members[:, place].mean()) for kind, members in certain.items()}
        likely = max(probabilities, key=lambda kind: probabilities[kind])
        found.append(
            SceneDifficulty(
                scene=scenes[scene],
                kind=likely if probabilities[likely] >= CERTAIN else "undecided",
                probability=probabilities[likely],
                fewest=float(expected_low[place]),
                most=float(expected_high[place]),
                solved=int(np.nansum(outcomes[:, place])),
                arms=int(played[:, place].sum()),
            )
        )
    return tuple(sorted(found, key=lambda one: (one.most, one.fewest, one.scene)))


def _classes(low: Floats, high: Floats) -> dict[SceneClass, NDArray[np.bool_]]:
    """Return the draws (D, S) in which a scene is of a class. low, high: (L, D, S) log odds with the fewest
    and the most demos.
    """
    below, above = (low < 0) & (high < 0), (low > 0) & (high > 0)
    hard, easy = below.all(0), above.all(0)
    crossed = ((low < 0) & (high > 0)).any(0)
    return {
        "hard": hard,
        "more demos": crossed,
        "easy": easy,
        "depends on the policy": ~(hard | easy | crossed),
    }


def _at_ends(
    lines: NDArray[np.int64], log_demos: Floats, drawn: Floats, number: int
) -> tuple[Floats, Floats]:
    """Return the log odds (L, D, S) of every line with its fewest and with its most demos."""
    ends = [(log_demos[lines == line].min(), log_demos[lines == line].max()) for line in range(number)]
    constants, slopes, difficulties = np.split(drawn, [number, 2 * number], axis=1)
    low, high = (
        np.stack(
            [
                (constants[:, line] + slopes[:, line] * pair[end])[:, None] - difficulties
                for line, pair in enumerate(ends)
            ]
        )
        for end in (0, 1)
    )
    return low, high


def _fit(lines: NDArray[np.int64], log_demos: Floats, outcomes: Floats) -> _Fit:
    arms, scenes = outcomes.shape
    number = int(lines.max()) + 1
    played = np.isfinite(outcomes)
    wins = np.where(played, outcomes, 0.0)
    ability = np.zeros((arms, 2 * number + arms))
    ability[np.arange(arms), lines] = 1
    ability[np.arange(arms), number + lines] = log_demos
    ability[np.arange(arms), 2 * number + np.arange(arms)] = 1
    size = ability.shape[1]
    mode = np.zeros(size + scenes)
    luck, spread = 0.3, 1.0
    covariance = np.eye(size + scenes)
    for _ in range(ROUNDS):
        penalty = np.concatenate(
            [
                np.full(number, CONSTANT**-2),
                np.full(number, SLOPE**-2),
                np.full(arms, 1 / luck),
                np.full(scenes, 1 / spread),
            ]
        )
        for _ in range(4):
            odds = (ability @ mode[:size])[:, None] - mode[size:]
            rate = expit(odds)
            weight = np.where(played, rate * (1 - rate), 0.0)
            error = np.where(played, wins - rate, 0.0)
            gradient = np.concatenate([ability.T @ error.sum(1), -error.sum(0)]) - penalty * mode
            curvature = np.diag(penalty)
            curvature[:size, :size] += ability.T @ (weight.sum(1)[:, None] * ability)
            curvature[:size, size:] -= ability.T @ weight
            curvature[size:, :size] -= weight.T @ ability
            curvature[size:, size:] += np.diag(weight.sum(0))
            step = np.linalg.solve(curvature, gradient)
            mode = mode + step * min(1.0, 3.0 / max(float(np.abs(step).max()), 1e-12))
        covariance = np.linalg.inv(curvature)
        own = np.diag(covariance)
        last = luck, spread
        luck = float(np.mean(mode[2 * number : size] ** 2 + own[2 * number : size]))
        spread = float(np.mean(mode[size:] ** 2 + own[size:]))
        if abs(luck / last[0] - 1) + abs(spread / last[1] - 1) < 0.01:
            break
    shown = np.r_[0 : 2 * number, size : size + scenes]
    return _Fit(mode[shown], covariance[np.ix_(shown, shown)])
