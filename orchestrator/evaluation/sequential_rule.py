"""When a checkpoint has been played enough: the rule, the blocks its episodes are played in, and the verdict. Pure.

Successes end sooner than failures, so whoever looks at what happens to be finished sees too many of them. A verdict therefore rests on a whole
beginning of the list: it is that of the first look at which the evidence is enough, whatever was finished in between, or is known beyond it.
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
    """Why no more episodes are played."""

    says: str
    """`above 0.8`, `better than demos-50_ratio-0_seed-0`; empty if the whole list left it open."""
    episodes: int
    """How many it rests on: the first so many of the blocks."""


@dataclass(frozen=True)
class Rule:
    """What has to be clear about a checkpoint: its side of a threshold, or whether it is better than the same step of another arm.

    The same step, not the other's last: both have been trained equally long, neither waits for the end of the other's training, and of last
    checkpoints it asks what the curve asks.
    """

    look_every: int
    """Episodes per task between looks."""
    confidence: float
    threshold: float | None = None
    against: str = ""
    """Arm id, where there is no threshold."""

    @property
    def key(self) -> str:
        """Names the rule where its verdicts are kept."""
        return digest(astuple(self))

    def says(self, outcomes: Sequence[Outcome], others: Mapping[str, Outcome]) -> str:
        """What is clear at one look, empty if nothing. others: the other arm's outcomes by episode; nothing is clear while one of them is missing."""
        won = [outcome.result == "success" for outcome in outcomes]
        level = "" if self.confidence == 0.95 else f" at {self.confidence:.2%}".replace(".00%", "%")
        if self.threshold is not None:
            side = side_of(self.threshold, sum(won), len(won), self.confidence)
            return side and f"{side} {self.threshold:g}{level}"
        theirs = [others.get(outcome.spec.episode_id) for outcome in outcomes]
        if not all(_tells(outcome) for outcome in theirs):
            return ""
        pairs = Counter(zip(won, (outcome is not None and outcome.result == "success" for outcome in theirs), strict=True))
        better = PairedEvidence(pairs[True, False], pairs[False, True]).better(self.confidence)
        return better and f"{'better' if better == 'first' else 'worse'} than {self.against.rpartition('_')[0]}{level}"


def blocks(specs: Iterable[EpisodeSpec], look_every: int) -> list[list[EpisodeSpec]]:
    """The list cut where it is looked at: the next `look_every` episodes of every task, in the list's order."""
    before, cut = Counter[str](), defaultdict[int, list[EpisodeSpec]](list)
    for spec in specs:
        cut[before[spec.task] // look_every].append(spec)
        before[spec.task] += 1
    return [cut[number] for number in sorted(cut)]


def to_play(cut: Sequence[Sequence[EpisodeSpec]], outcomes: Mapping[str, Outcome]) -> list[EpisodeSpec]:
    """What is missing of the first block that is not whole; nothing if there is none, or if an error keeps it from ever being whole in this run."""
    for block in cut:
        if not all(_tells(outcomes.get(spec.episode_id)) for spec in block):
            return [spec for spec in block if spec.episode_id not in outcomes]
    return []


def decide(
    rule: Rule,
    cut: Sequence[Sequence[EpisodeSpec]],
    outcomes: Mapping[str, Outcome],
    others: Mapping[str, Outcome],
    before: Verdict | None = None,
) -> Verdict | None:
    """The verdict of the first look that has one, by outcomes of a whole beginning of the list; None if more has to be played.

    before: the one that is kept from an earlier run; it stands, whatever has become of the other arm since, while its outcomes are there.
    """
    if before and len(beginning(cut, outcomes, before.episodes)) == before.episodes:
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


def beginning(cut: Sequence[Sequence[EpisodeSpec]], outcomes: Mapping[str, Outcome], episodes: int) -> list[Outcome]:
    """Of the first so many episodes of the blocks; fewer if some have no outcome."""
    first = [spec.episode_id for block in cut for spec in block][:episodes]
    return [outcome for episode in first if (outcome := outcomes.get(episode)) and _tells(outcome)]


def _tells(outcome: Outcome | None) -> bool:
    """Whether it says something about the policy."""
    return outcome is not None and outcome.result != "error"
