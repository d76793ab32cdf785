"""What a number of trainings allows to say. Tables, sentences, pictures, pages, JSON and MLflow read it from
here, so that none claims more than another. Pure.
"""

from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.stats.fixed_sample import LEVEL, Interval

FEWEST_SEEDS = 3
"""Fewest trainings of a point, each with a seed of its own, from which anything about its recipe is said. One
shows no spread between trainings; of two, Student's t makes an interval of 12.7 standard errors to each
side, which excludes next to nothing.
"""
RECIPE_VERDICTS = "no evidence of a difference", "better", "worse"
POLICY_VERDICTS = "no evidence that these trained policies differ", "these trained policies differ"


@dataclass(frozen=True)
class Claim:
    """What the trainings behind a number allow to say: of the recipe, which is what any training of it would
    do on average, or only of the policies that were trained.
    """

    seeds: int
    """Fewest seeds of the points that the number rests on."""

    @property
    def of_recipe(self) -> bool:
        """Whether something can be said of the recipe."""
        return self.seeds >= FEWEST_SEEDS

    @property
    def about(self) -> Literal["recipe", "trained policies"]:
        """What statements are about."""
        return "recipe" if self.of_recipe else "trained policies"

    @property
    def needs(self) -> str:
        """What a statement about the recipe takes, in a sentence; empty if there is one."""
        if self.of_recipe:
            return ""
        few = "One seed of a point says" if self.seeds == 1 else f"{self.seeds} seeds of a point say"
        return f"{few} nothing about its recipe; that takes at least {FEWEST_SEEDS}."

    def to_json(self) -> dict[str, Any]:
        """Return the claim as a JSON-safe object."""
        return {
            "about": self.about,
            "seeds": self.seeds,
            "seeds_for_recipe": FEWEST_SEEDS,
            "text": self.needs,
        }

    def verdict(self, better_by: float, p_value: float, interval: Interval) -> str:
        """Return the verdict on a first against a second at the 5 % level.

        better_by: the difference, positive if the first is better. p_value: of the paired test of the trained
        policies, corrected. interval: 95 %, of the difference between the recipes. A difference between
        recipes is shown only if the policies differ and the interval excludes 0 too.
        """
        differ = p_value < LEVEL and better_by != 0
        if not self.of_recipe:
            return POLICY_VERDICTS[differ]
        if not differ or interval.low <= 0 <= interval.high:
            return RECIPE_VERDICTS[0]
        return RECIPE_VERDICTS[1] if better_by > 0 else RECIPE_VERDICTS[2]


def enough_seeds(seeds: list[int]) -> list[int]:
    """Return these seeds and as many more as statements about recipes take."""
    following = max(seeds, default=-1) + 1
    return [*seeds, *range(following, following + FEWEST_SEEDS - len(seeds))]
