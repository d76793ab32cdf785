"""Which demonstrations hurt, or that nothing can be told: `stats.demo_worth` of a sweep's arms. Pure."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.report.curve_types import Series
from orchestrator.stats.demo_worth import (
    EFFECT,
    FALSE_DISCOVERIES,
    FEWEST_ARMS,
    DemoWorth,
    EpisodeWorth,
    ScoredSubsets,
    demo_worth,
)
from orchestrator.stats.outcome_matrix import outcome_matrix

if TYPE_CHECKING:
    from orchestrator.report.sample_efficiency_curve import Curve

NAMED = 3
"""Number of demonstrations that the sentence names."""


@dataclass(frozen=True)
class DemoWorthReport:
    """What can be told of single demonstrations."""

    worth: DemoWorth | None
    """None if there are too few arms with other demonstrations each."""
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-safe object. As a file it is a quality list that leaves out the
        demonstrations that hurt (`data.episodes[].quality`).
        """
        told = self.worth
        return {
            "text": self.text,
            "findings": [_finding(one) for one in told.hurting] if told else [],
            "arms": told and told.arms,
            "demo_count": told and told.demos,
            "p_value": told and told.p_value,
            "detectable": told and told.detectable,
            "arms_for_5_points": told and told.arms_for(EFFECT),
        }


def _finding(one: EpisodeWorth) -> dict[str, Any]:
    return {
        "rule": "hurts",
        "episodes": [one.episode],
        "change": one.change,
        **one.interval._asdict(),
        "shrunk": one.shrunk,
        "p_value": one.p_value,
        "arms": one.arms,
    }


def demo_worth_report(curve: "Curve") -> DemoWorthReport | None:
    """Return what a curve tells of single demonstrations; None if it is not known what its arms learned
    from.
    """
    scored = scored_subsets(curve)
    if scored is None:
        return None
    worth = demo_worth(scored)
    return DemoWorthReport(worth, _in_words(worth) if worth else _too_few(scored))


def scored_subsets(curve: "Curve") -> ScoredSubsets | None:
    """Return demos and outcomes of the arms; None if the demos of an arm are not known."""
    if not all(scored.demos for scored in curve.arms):
        return None
    episodes = sorted({episode for scored in curve.arms for episode in scored.demos})
    _, outcomes = outcome_matrix([scored.outcomes for scored in curve.arms])
    column = {episode: place for place, episode in enumerate(episodes)}
    members = np.zeros((len(curve.arms), len(episodes)), bool)
    for row, scored in enumerate(curve.arms):
        members[row, [column[episode] for episode in scored.demos]] = True
    cells = {cell: number for number, cell in enumerate(dict.fromkeys(map(_cell, curve.arms)))}
    return ScoredSubsets(
        episodes=tuple(episodes),
        cells=np.array([cells[_cell(scored)] for scored in curve.arms]),
        demos=np.array([float(scored.arm.demo_count) for scored in curve.arms]),
        seeds=np.array([scored.arm.seed for scored in curve.arms]),
        members=members,
        outcomes=outcomes,
    )


def _cell(scored: Any) -> tuple[Series, int]:
    return Series.of(scored.arm), scored.arm.demo_count


def _too_few(scored: ScoredSubsets) -> str:
    beyond = len(scored.cells) - len(np.unique(scored.cells))
    return (
        "Nothing can be told about single demonstrations: that takes at least"
        f" {FEWEST_ARMS} further seeds of the points, each with other demonstrations and with successes and"
        f" failures; here are {beyond}."
    )


def _in_words(worth: DemoWorth) -> str:
    points = partial("{:+.0f}".format)
    needs = (
        f"One that changes success by {100 * EFFECT:.0f} points in place of another among {worth.demos} takes"
        f" about {worth.arms_for(EFFECT):,} arms."
    )
    if not worth.told:
        return (
            f"Nothing can be told about single demonstrations: success of {worth.arms} arms depends on which"
            f" ones they had no more than by chance (permutation test, p = {worth.p_value:.2g}). {needs}"
        )
    if not worth.hurting:
        return (
            f"Success of {worth.arms} arms depends on which demonstrations they had (permutation test, p ="
            f" {worth.p_value:.2g}), and none can be named. {needs}"
        )
    named = ", ".join(
        f"{one.episode} ({points(100 * one.change)} points,"
        f" {points(100 * one.interval.low)} to {points(100 * one.interval.high)})"
        for one in worth.hurting[:NAMED]
    )
    more = f" and {len(worth.hurting) - NAMED} more" if len(worth.hurting) > NAMED else ""
    number = len(worth.hurting)
    many = f"{number} demonstrations hurt" if number > 1 else "One demonstration hurts"
    return (
        f"{many} in place of another among {worth.demos}: {named}{more}. On average at most"
        f" {100 * FALSE_DISCOVERIES:.0f} % of such names are wrong; train again without them to be sure."
    )
