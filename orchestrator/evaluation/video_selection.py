"""Selection of the episodes that are played again and filmed, from their outcomes."""

from collections.abc import Iterable

from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.suite import EpisodeSpec


def select_episodes_to_record(outcomes: Iterable[Outcome]) -> list[EpisodeSpec]:
    """Return every task's success and failure with the lowest scene seed, in the order of scenes, without
    errors.

    The result depends on the set of outcomes, not on their order.
    """
    chosen: dict[tuple[str, str], EpisodeSpec] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.spec):
        if outcome.result != "error":
            chosen.setdefault((outcome.spec.task, outcome.result), outcome.spec)
    return list(chosen.values())
