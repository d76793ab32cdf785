"""Paired differences between the suite's scenes and the same scenes in a shifted world, point by point.
Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.config.arms import in_demos
from orchestrator.report.curve_types import Series
from orchestrator.stats.claims import POLICY_VERDICTS, Claim
from orchestrator.stats.fixed_sample import (
    Interval,
    PairedComparison,
    hierarchical_draws,
    holm,
    interval_of,
    paired_comparison,
)
from orchestrator.stats.sequential import PairedEvidence
from sim_workers.rollout.suite import EpisodeSpec

if TYPE_CHECKING:
    from orchestrator.report.sample_efficiency_curve import Curve
    from orchestrator.tracking.mlflow_reader import ScoredArm

SHIFT_VERDICTS = (
    "no evidence that the shift changes the success of these trained policies",
    "the shift changes the success of these trained policies",
)
"""Verdicts where the seeds are too few for statements about recipes, in the order of POLICY_VERDICTS."""


@dataclass(frozen=True)
class ShiftDifference:
    """A point of the curve under a shift, against its nominal scenes."""

    series: Series
    label: str
    demo_count: int
    shift: str
    successes: int
    """Under the shift."""
    nominal_successes: int
    result: PairedComparison
    """The shifted scenes against the same nominal ones."""
    interval: Interval
    """95 %, of the difference, with the spread between training seeds if there are enough of them."""
    seeds: int
    compared: int
    """Number of differences of the curve."""
    test: str
    """Name of the test of the p-value."""
    p_corrected: float
    """P-value corrected for the number of differences (Holm)."""

    @property
    def verdict(self) -> str:
        """Verdict on the corrected p-value: better or worse under the shift, if the seeds allow to say so of
        the recipe; else whether the shift changes the success of the trained policies.
        """
        found = Claim(self.seeds).verdict(self.result.difference, self.p_corrected, self.interval)
        if found in POLICY_VERDICTS:
            return SHIFT_VERDICTS[POLICY_VERDICTS.index(found)]
        return found

    def __str__(self) -> str:
        r, (low, high) = self.result, self.interval
        corrected = f", {self.p_corrected:.3g} corrected for {self.compared}" if self.compared > 1 else ""
        return (
            f"{self.label}, {in_demos(self.demo_count)}, {self.shift} shifted: {self.successes}/{r.episodes},"
            f" nominal {self.nominal_successes}/{r.episodes} on the same scenes: {r.difference:+.2f}"
            f" [{low:+.2f}, {high:+.2f}], {self.test} p = {r.p_value:.3g}{corrected}: {self.verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the difference as a JSON-safe object."""
        return {
            "policy": self.series.policy,
            "action_free_ratio": self.series.action_free_ratio,
            "demo_count": self.demo_count,
            "shift": self.shift,
            "successes": self.successes,
            "nominal_successes": self.nominal_successes,
            "episodes": self.result.episodes,
            "difference": self.result.difference,
            **self.interval._asdict(),
            "p_value": self.result.p_value,
            "p_corrected": self.p_corrected,
            "verdict": self.verdict,
            "text": str(self),
        }


def shift_differences(curve: "Curve") -> list[ShiftDifference]:
    """Return the differences of all points with scores under shifts, in the order of the points."""
    shifts = dict.fromkeys(shift for scored in curve.arms for shift in scored.shifted)
    found = list[tuple[Series, int, str, int, int, int, PairedComparison, Interval]]()
    for point in curve.points:
        arms = [
            scored
            for scored in curve.arms
            if Series.of(scored.arm) == point.series and scored.arm.demo_count == point.demo_count
        ]
        for shift in shifts:
            pairs = [pair for scored in arms if (pair := _pair(scored, shift))]
            if not pairs:
                continue
            shifted, nominal = (
                {
                    f"{seed}/{scene}": won
                    for seed, pair in enumerate(pairs)
                    for scene, won in pair[side].items()
                }
                for side in (1, 0)
            )
            result = paired_comparison(shifted, nominal)
            if curve.looked_at:
                evidence = PairedEvidence(result.only_first, result.only_second)
                result = replace(result, p_value=evidence.p_value)
            wins = sum(shifted.values()), sum(nominal.values())
            found.append((point.series, point.demo_count, shift, len(pairs), *wins, result, _interval(pairs)))
    corrected = holm([result.p_value for *_, result, _ in found])
    return [
        ShiftDifference(
            series=series,
            label=curve.label(series),
            demo_count=demo_count,
            shift=shift,
            successes=successes,
            nominal_successes=nominal,
            result=result,
            interval=interval,
            seeds=seeds,
            compared=len(found),
            test="anytime-valid" if curve.looked_at else "exact McNemar",
            p_corrected=p,
        )
        for (series, demo_count, shift, seeds, successes, nominal, result, interval), p in zip(
            found, corrected, strict=True
        )
    ]


def _pair(scored: "ScoredArm", shift: str) -> tuple[dict[str, bool], dict[str, bool]] | None:
    """Return an arm's nominal and shifted outcomes by nominal episode id, of the scenes that have both; None
    if it was not scored under the shift.
    """
    own: Mapping[str, bool] = scored.shifted.get(shift, {})
    shifted = {_nominal_id(episode, shift): won for episode, won in own.items()}
    common = [episode for episode in scored.outcomes if episode in shifted]
    if not common:
        return None
    return {episode: scored.outcomes[episode] for episode in common}, {
        episode: shifted[episode] for episode in common
    }


def _nominal_id(episode: str, shift: str) -> str:
    """Return the id of the same scene without the shift (`EpisodeSpec.episode_id`)."""
    head, scene, noise = episode.rsplit("-", 2)
    return f"{head.removesuffix(f'-{shift}')}-{scene}-{noise}"


def _interval(pairs: list[tuple[dict[str, bool], dict[str, bool]]]) -> Interval:
    """Return the interval of the difference of the shifted and the nominal rate. pairs: one per replicate."""
    scenes = sorted({episode for nominal, _ in pairs for episode in nominal})
    tasks = {task: index for index, task in enumerate(dict.fromkeys(map(EpisodeSpec.task_of, scenes)))}
    outcomes = np.full((2, len(pairs), len(scenes)), np.nan)
    for row, pair in enumerate(pairs):
        for side in (0, 1):
            outcomes[side, row] = [pair[side].get(episode, np.nan) for episode in scenes]
    of_tasks = np.array([tasks[EpisodeSpec.task_of(scene)] for scene in scenes])
    draws = hierarchical_draws(outcomes, of_tasks, recipes=Claim(len(pairs)).of_recipe)
    return interval_of(np.clip(draws[:, 1] - draws[:, 0], -1, 1))
