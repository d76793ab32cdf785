"""The scorer with simulators that only pretend: what is scored first, what is told when, and what is
dropped.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from orchestrator.evaluation.outcome_ledger import Ledger
from orchestrator.evaluation.score_events import OutcomesRecorded, ScoreConcluded, ScorerEvent
from orchestrator.evaluation.scorer import Scorer
from orchestrator.evaluation.scores import EvalJob, Score
from orchestrator.storage.base import Storage, open_storage
from orchestrator.testing.episodes import CONTRACT
from orchestrator.testing.outcomes import make_outcome
from orchestrator.testing.rollout_pool import FakeRolloutPool
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.policy_clients import InProcessPolicy
from sim_workers.rollout.suite import EpisodeRules, Suite
from waiting import until as until_within

until = partial(until_within, seconds=20.0)

SUITE = Suite(("Lift",), 4, EpisodeRules(10))


class Heard:
    """What the scorer told, and what of it was in the ledger by then."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.played: list[tuple[str, int]] = []
        self.scores: dict[tuple[str, int], Score] = {}
        self.error: Exception | None = None
        """Raised for every event, if there is one."""

    def on_event(self, event: ScorerEvent) -> None:
        if self.error:
            raise self.error
        job = event.job
        if isinstance(event, OutcomesRecorded):
            self.played += [(job.arm_id, job.step)] * len(event.outcomes)
        elif isinstance(event, ScoreConcluded):
            ledger = Ledger(self._storage, job.fingerprint, job.protocol)
            assert {outcome.spec.episode_id for outcome in event.outcomes} == ledger.read().keys(), (
                "a score was told before it was written down"
            )
            assert ledger.sealed
            self.scores[job.arm_id, job.step] = event.score


def job(arm: str, step: int, suite: Suite = SUITE) -> EvalJob:
    return EvalJob(
        arm, step, f"{arm}/{step}", f"{arm}{step}", suite, "protocol", InProcessPolicy(lambda: None)
    )  # type: ignore[arg-type, return-value]


Start = Callable[..., tuple[Scorer, FakeRolloutPool, Heard]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A scorer, its pool, and what it tells; closed in the end."""
    scorers = []

    def make(decides: Callable[[int], bool] = lambda _: False) -> tuple[Scorer, FakeRolloutPool, Heard]:
        storage, pool = (
            open_storage(str(tmp_path)),
            FakeRolloutPool(lambda job: make_outcome(job.spec), num_workers=1, paused=True),
        )
        heard = Heard(storage)
        scorers.append(Scorer(storage, CONTRACT, pool, heard.on_event, decides=decides))
        return scorers[-1], pool, heard

    yield make
    for scorer in scorers:
        scorer.close()


def test_checkpoints_that_come_later_may_be_scored_first(start: Start) -> None:
    """While the first checkpoint is played three more come: the other arm has no score yet, then comes the
    decision, then the rest.
    """
    scorer, pool, heard = start(decides=lambda step: step == 100)
    scorer.submit(job("a", 300))
    until(lambda: pool.waiting == 4)
    for one in (job("a", 100), job("a", 200), job("b", 300)):
        scorer.submit(one)
    for _ in range(16):
        pool.release()
    scorer.drain()
    assert [*dict.fromkeys(heard.played)] == [("a", 300), ("b", 300), ("a", 100), ("a", 200)]
    assert all(score.complete for score in heard.scores.values())


def test_of_an_arm_that_is_dropped_nothing_more_is_played_and_what_was_is_kept(
    start: Start, tmp_path: Path
) -> None:
    scorer, pool, heard = start()
    for one in (job("a", 100), job("a", 200), job("b", 100)):
        scorer.submit(one)
    until(lambda: pool.waiting == 4)
    pool.release()
    until(lambda: len(heard.played) == 1)
    dropped = heard.played[0][0]
    scorer.drop(dropped)
    scorer.submit(job(dropped, 300))
    until(lambda: bool(pool.queue) and all(not playing.key.startswith(dropped) for playing in pool.queue))
    for _ in range(20):
        pool.release()
    scorer.drain()
    assert heard.played.count((dropped, heard.played[0][1])) == 1
    assert {arm for arm, _ in heard.scores} == {"a", "b"} - {dropped}
    ledger = Ledger(open_storage(str(tmp_path)), f"{dropped}{heard.played[0][1]}", "protocol")
    assert len(ledger.read()) == 1
    assert not ledger.sealed


def test_winding_down_ends_with_what_is_written_and_the_next_run_plays_only_the_rest(start: Start) -> None:
    scorer, pool, heard = start()
    scorer.submit(job("a", 100))
    until(lambda: pool.waiting == 4)
    for _ in range(2):
        pool.release()
    until(lambda: len(heard.played) == 2)
    scorer.wind_down()
    scorer.drain()
    assert heard.scores == {}
    again, pool, heard = start()
    again.submit(job("a", 100))
    for _ in range(9):
        pool.release()
    again.drain()
    assert len(pool.played) == 2
    assert heard.scores["a", 100].successes == 4


def test_a_checkpoint_played_to_the_end_by_a_run_that_died_before_sealing_is_sealed(
    start: Start, tmp_path: Path
) -> None:
    outcomes = [Outcome(spec, "failure", 10, 2, 0.1, 0.1) for spec in SUITE.episode_list()]
    Ledger(open_storage(str(tmp_path)), "a100", "protocol").record(outcomes)
    scorer, pool, heard = start()
    scorer.submit(job("a", 100))
    scorer.drain()
    assert not pool.played
    assert heard.scores["a", 100].failures == 4


def test_what_goes_wrong_in_the_thread_is_raised_where_it_is_waited_for(start: Start) -> None:
    scorer, _, heard = start()
    heard.error = ZeroDivisionError()
    scorer.submit(job("a", 100))
    with pytest.raises(ZeroDivisionError):
        scorer.drain()
