"""Which episodes are worth a film: chosen from their outcomes, and played again for the camera."""

from collections.abc import Iterable

from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.suite import EpisodeSpec


def episodes_to_film(outcomes: Iterable[Outcome]) -> list[EpisodeSpec]:
    """Of every task the success and the failure with the lowest scene seed, in that order of scenes; errors show nothing of the policy.

    A function of the outcomes alone, not of the order in which they came.
    """
    chosen: dict[tuple[str, str], EpisodeSpec] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.spec):
        if outcome.result != "error":
            chosen.setdefault((outcome.spec.task, outcome.result), outcome.spec)
    return list(chosen.values())
