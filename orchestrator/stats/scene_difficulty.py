"""How hard each evaluation scene is, and for which arms: item response over scenes. Pure.

Rasch's model (1960): the log odds that an arm solves a scene are the arm's ability minus the scene's
difficulty. The ability is linear in log demos, with a constant and a slope for every line of the curve, plus
the luck of a training; luck and difficulties are normal random effects. The fit is penalised
quasi-likelihood, variances by expectation maximisation (Breslow and Clayton 1993). A scene is classified if
its class has a probability of CERTAIN among draws of the normal posterior. Shapes: A arms, S scenes, L lines,
D draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
    """Normal approximation of abilities (K: constants, slopes and lucks of arms) and difficulties (S), which
    are independent of each other given the abilities.
    """

    abilities: Floats
    covariance: Floats
    """(K, K) of the abilities."""
    difficulties: Floats
    """(S,) at the mode of the abilities."""
    moves: Floats
    """(K, S) change of the expected difficulties per change of abilities."""
    spread: Floats
    """(S,) standard deviations of difficulties given the abilities."""

    def draws(self, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Return DRAWS of abilities (D, K) and difficulties (D, S)."""
        root = np.linalg.cholesky(self.covariance)
        abilities = self.abilities + rng.normal(size=(DRAWS, len(root))) @ root.T
        noise = self.spread * rng.normal(size=(DRAWS, len(self.spread)))
        difficulties = self.difficulties + (abilities - self.abilities) @ self.moves + noise
        return np.asarray(abilities, np.float64), np.asarray(difficulties, np.float64)


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
    drawn = _fit(lines, log_demos, outcomes).draws(np.random.default_rng(seed))
    low, high = _at_ends(lines, log_demos, *drawn)  # (L, D, S)
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
    lines: NDArray[np.int64], log_demos: Floats, abilities: Floats, difficulties: Floats
) -> tuple[Floats, Floats]:
    """Return the log odds (L, D, S) of every line with its fewest and with its most demos, for trainings of
    average luck.
    """
    number = int(lines.max()) + 1

    def odds(end: Callable[[Floats], Any]) -> Floats:
        at = [end(log_demos[lines == line]) for line in range(number)]
        constants, slopes = abilities[:, :number], abilities[:, number : 2 * number]
        return np.stack(
            [
                (constants[:, line] + slopes[:, line] * place)[:, None] - difficulties
                for line, place in enumerate(at)
            ]
        )

    return odds(np.min), odds(np.max)


def _fit(lines: NDArray[np.int64], log_demos: Floats, outcomes: Floats) -> _Fit:
    arms, scenes = outcomes.shape
    number = int(lines.max()) + 1
    played = np.isfinite(outcomes)
    wins = np.where(played, outcomes, 0.0)
    design = np.zeros((arms, 2 * number + arms))
    design[np.arange(arms), lines] = 1
    design[np.arange(arms), number + lines] = log_demos
    design[np.arange(arms), 2 * number + np.arange(arms)] = 1
    fixed = [np.full(number, CONSTANT**-2), np.full(number, SLOPE**-2)]
    abilities, difficulties = np.zeros(design.shape[1]), np.zeros(scenes)
    luck, variety = 0.3, 1.0
    for _ in range(ROUNDS):
        penalty = np.concatenate([*fixed, np.full(arms, 1 / luck)])
        rate = expit((design @ abilities)[:, None] - difficulties)
        weight = np.where(played, rate * (1 - rate), 0.0)
        error = np.where(played, wins - rate, 0.0)
        # Newton's step; the block of difficulties is diagonal and eliminated
        diagonal = weight.sum(0) + 1 / variety
        moves = design.T @ weight / diagonal
        own = np.diag(penalty) + design.T @ (weight.sum(1)[:, None] * design)
        schur = own - moves @ (moves * diagonal).T
        slope, slope_of_scenes = (
            design.T @ error.sum(1) - penalty * abilities,
            -error.sum(0) - difficulties / variety,
        )
        step = np.linalg.solve(schur, slope + moves @ slope_of_scenes)
        step_of_scenes = slope_of_scenes / diagonal + step @ moves
        short = min(1.0, 2.0 / max(float(np.abs(step).max()), float(np.abs(step_of_scenes).max()), 1e-12))
        abilities, difficulties = abilities + short * step, difficulties + short * step_of_scenes
        covariance = np.linalg.inv(schur)
        last = luck, variety
        lucks = slice(2 * number, None)
        luck = float(np.mean(abilities[lucks] ** 2 + np.diag(covariance)[lucks]))
        variances = 1 / diagonal + np.einsum("ks,kl,ls->s", moves, covariance, moves, optimize=True)
        variety = float(np.mean(difficulties**2 + variances))
        if short == 1 and abs(luck / last[0] - 1) + abs(variety / last[1] - 1) < 0.01:
            break
    return _Fit(abilities, covariance, difficulties, moves, np.sqrt(1 / diagonal))
