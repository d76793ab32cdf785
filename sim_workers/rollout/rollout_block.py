"""Block of scenes whose rollouts may become training data.

It is not in `suite.py`, which is part of the keys of scores.
"""

ROLLOUT_BLOCK = 2000
"""Number of the block; `demoscale score` plays those below it. Its scene seeds stay below 2^31."""
