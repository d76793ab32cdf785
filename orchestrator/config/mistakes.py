"""Error that lists everything that is wrong with a file of a user."""

from orchestrator.redaction import redact
from policy.errors import DemoscaleError


class MistakesError(DemoscaleError):
    """Mistakes in a file, one sentence each; no secrets are repeated."""

    exit_code = 2

    def __init__(self, where: str, problems: list[str]) -> None:
        """where: the file, or the sweep. problems: with the field."""
        self.problems = [redact(problem) for problem in problems]
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        super().__init__(
            f"{redact(where)}: {count}\n" + "\n".join(f"  - {problem}" for problem in self.problems)
        )
