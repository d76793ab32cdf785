"""Significance of published success rates: "Video Generators are Robot Policies" (arXiv 2508.00795) on
RoboCasa.

    python -m examples.published_numbers

Each rate is over 24 tasks x 50 episodes. The papers share no episodes, so the test is Fisher's exact one,
corrected for three comparisons (Holm). One rate per policy shows nothing of the spread between trainings, so
the verdicts are about the trained policies.
"""

from orchestrator.stats.claims import Claim
from orchestrator.stats.fixed_sample import Interval, blaker, holm, unpaired_p_value

EPISODES = 24 * 50
OURS, MORE, BASELINE, AGAIN = (
    "50 demos",
    "300 demos",
    "DP-VLA, the best baseline",
    "300 demos, checkpoint run again by others",
)
RATES = {OURS: 0.63, MORE: 0.66, BASELINE: 0.57, AGAIN: 0.58}
PAIRS = (OURS, BASELINE), (OURS, MORE), (MORE, AGAIN)


def main() -> None:
    """Print every rate with its interval, and the verdict on each pair."""
    counted = {name: (round(rate * EPISODES), EPISODES) for name, rate in RATES.items()}
    for name, (successes, episodes) in counted.items():
        low, high = blaker(successes, episodes)
        print(f"{successes / episodes:.2f} [{low:.2f}, {high:.2f}]  {successes:,}/{episodes:,}  {name}")
    p_values = holm([unpaired_p_value(counted[first], counted[second]) for first, second in PAIRS])
    for (first, second), p_value in zip(PAIRS, p_values, strict=True):
        told = Claim(seeds=1).verdict(RATES[first] - RATES[second], p_value, Interval(-1.0, 1.0))
        print(f"{RATES[first]} ({first}) against {RATES[second]} ({second}): p = {p_value:.2g}, {told}")


if __name__ == "__main__":
    main()
