"""Whether the policy trains, resumes and acts: `python -m pytest` on this file."""

from pathlib import Path

from orchestrator.testing.external import try_policy


def test_policy_trains_and_acts(tmp_path: Path) -> None:
    """Train half way, resume, and ask the last checkpoint."""
    tried = try_policy(Path(__file__).parent, tmp_path, steps=40)
    assert tried.losses[-1] < tried.losses[0]
    assert tried.chunk.actions.shape == (8, 7)
    assert tried.chunk.execute == 4
