"""A list of 100 episodes of two tasks, stopping rules, and outcomes of policies of known success rates."""

import numpy as np

from orchestrator.evaluation.sequential_rule import StoppingRule, blocks
from orchestrator.testing.outcomes import make_outcome
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.suite import EpisodeRules, Suite

SUITE = Suite(("Lift", "Stack"), 50, EpisodeRules(100))
LISTED = SUITE.episode_list()
ABOVE = StoppingRule(look_every=5, confidence=0.95, threshold=0.5)
CUT = blocks(LISTED, 5)
AGAINST = StoppingRule(look_every=5, confidence=0.95, against="demos-50_ratio-0_seed-0_12345678")


def played(rate: float, seed: int = 0) -> dict[str, Outcome]:
    """Draw the outcome of every listed episode at this success rate, by episode id."""
    luck = np.random.default_rng(seed).random(len(LISTED))
    return {
        spec.episode_id: make_outcome(spec, bool(luck[i] < rate), 30 if luck[i] < rate else 100)
        for i, spec in enumerate(sorted(LISTED))
    }
