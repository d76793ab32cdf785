"""Early stopping of a checkpoint's scoring: the rule, the blocks in which its episodes are played, and the
verdict. Pure.

Successes end sooner than failures, so a check of the episodes that happen to be finished is biased towards
success. A verdict therefore rests on a complete prefix of the list, up to the first block boundary at which
the evidence suffices; outcomes beyond it are ignored.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

from orchestrator.provenance import digest
from orchestrator.stats.sequential import PairedEvidence, side_of
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.suite import EpisodeSpec


@dataclass(frozen=True)
class Verdict:
    """Result of a rule, after which no more episodes are played."""

    says: str
    """Decision about this trained policy, such as `above 0.8` or `succeeds more often than
    demos-50_ratio-0_seed-0`; empty if the whole list did not decide. It says nothing about a recipe, whose
    other trainings it has not seen.
    """
    episodes: int
    """Number of episodes that it rests on, counted from the start of the blocks."""


@dataclass(frozen=True)
class StoppingRule:
    """The question to decide about a checkpoint: its side of a threshold, or whether it is better than
    another arm at the same step.

    The other arm's checkpoint of the same step, not its last one: both have been trained equally long,
    neither waits for the end of the other's training, and for last checkpoints it is the comparison of the
    curve.
    """

    look_every: int
    """Episodes per task between two checks of the evidence."""
    confidence: float
    threshold: float | None = None
    against: str = ""
    """Id of the arm to compare with; empty if there is a threshold."""

    @property
    def key(self) -> str:
        """Hash of the rule, part of the keys of its verdicts."""
        return digest(astuple(self))

    def says(self, outcomes: Sequence[Outcome], others: Mapping[str, Outcome]) -> str:
        """Return the decision on a prefix of outcomes, empty if it is open.

        others: the other arm's outcomes by episode; the decision is open while one of them is missing.
        """
        won = [outcome.result == "success" for outcome in outcomes]
        level = "" if self.confidence == 0.95 else f" at {self.confidence:.2%}".replace(".00%", "%")
        if self.threshold is not None:
            side = side_of(self.threshold, sum(won), len(won), self.confidence)
            return side and f"{side} {self.threshold:g}{level}"
        theirs = [others.get(outcome.spec.episode_id) for outcome in outcomes]
        if not all(_tells(outcome) for outcome in theirs):
            return ""
        pairs = Counter(
            zip(won, (outcome is not None and outcome.result == "success" for outcome in theirs), strict=True)
        )
        better = PairedEvidence(pairs[True, False], pairs[False, True]).better(self.confidence)
        more = "more" if better == "first" else "less"
        return better and f"succeeds {more} often than {self.against.rpartition('_')[0]}{level}"


def blocks(specs: Iterable[EpisodeSpec], look_every: int) -> list[list[EpisodeSpec]]:
    """Cut the list into blocks of the next `look_every` episodes of every task, in the list's order."""
    before, cut = Counter[str](), defaultdict[int, list[EpisodeSpec]](list)
    for spec in specs:
        cut[before[spec.task] // look_every].append(spec)
        before[spec.task] += 1
    return [cut[number] for number in sorted(cut)]


def to_play(cut: Sequence[Sequence[EpisodeSpec]], outcomes: Mapping[str, Outcome]) -> list[EpisodeSpec]:
    """Return the episodes without an outcome of the first incomplete block.

    Empty if all blocks are complete, or if that block lacks only episodes that ended in an error, which this
    run does not retry.
    """
    for block in cut:
        if not all(_tells(outcomes.get(spec.episode_id)) for spec in block):
            return [spec for spec in block if spec.episode_id not in outcomes]
    return []


def decide(
    rule: StoppingRule,
    cut: Sequence[Sequence[EpisodeSpec]],
    outcomes: Mapping[str, Outcome],
    others: Mapping[str, Outcome],
    before: Verdict | None = None,
) -> Verdict | None:
    """Return the verdict of the first check that has one, on a complete prefix of the list; None if more has
    to be played.

    before: the stored verdict of an earlier run. It stands, whatever the other arm's outcomes are now, as
    long as its own outcomes are known.
    """
    if before and len(prefix(cut, outcomes, before.episodes)) == before.episodes:
        return before
    seen: list[Outcome] = []
    for block in cut:
        found = [outcomes.get(spec.episode_id) for spec in block]
        seen += [outcome for outcome in found if outcome and _tells(outcome)]
        if not all(map(_tells, found)):
            return None
        if says := rule.says(seen, others):
            return Verdict(says, len(seen))
    return Verdict("", len(seen))


def prefix(
    cut: Sequence[Sequence[EpisodeSpec]], outcomes: Mapping[str, Outcome], episodes: int
) -> list[Outcome]:
    """Return the outcomes of the first `episodes` of the blocks, without errors; fewer if some have no
    outcome.
    """
    first = [spec.episode_id for block in cut for spec in block][:episodes]
    return [outcome for episode in first if (outcome := outcomes.get(episode)) and _tells(outcome)]


def _tells(outcome: Outcome | None) -> bool:
    """Whether there is an outcome that is no error."""
    return outcome is not None and outcome.result != "error"
