"""Outcomes of arms on their scenes as one array. Pure."""

from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.stats.sample_efficiency import Floats


def outcome_matrix(outcomes: Sequence[Mapping[str, bool]]) -> tuple[list[str], Floats]:
    """Return the sorted ids of the scenes that any arm played, and whether each arm succeeded on each: 1
    success, 0 failure, nan not played, (number of arms, number of scenes). outcomes: per arm, by scene id.
    """
    scenes = sorted({scene for own in outcomes for scene in own})
    places = {scene: place for place, scene in enumerate(scenes)}
    won = np.full((len(outcomes), len(scenes)), np.nan)
    for row, own in zip(won, outcomes, strict=True):
        row[[places[scene] for scene in own]] = list(own.values())
    return scenes, won
