"""The scorer with a fake pool: the order of scoring, the order of notifications, and dropped arms."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.evaluation.outcome_ledger import Ledger
from orchestrator.evaluation.score_events import OutcomesRecorded, ScoreConcluded, ScorerEvent
from orchestrator.evaluation.scorer import Scorer
from orchestrator.evaluation.scores import EvalJob, Score
from orchestrator.storage.base import Storage, open_storage
from orchestrator.testing.episodes import CONTRACT
from orchestrator.testing.outcomes import make_outcome
from orchestrator.testing.rollout_pool import FakeRolloutPool
from polling import until as until_within
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.policy_clients import InProcessPolicy
from sim_workers.rollout.suite import EpisodeRules, Suite
from sim_workers.rollout.worker import RolloutJob

until = partial(until_within, seconds=20.0)

SUITE = Suite(("Lift",), 4, EpisodeRules(10))


class CheckingListener:
    """Records what the scorer reports, and asserts that a reported score is in the ledger."""

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
            ledger = Ledger(self._storage, job.checkpoint.fingerprint, job.protocol)
            assert {outcome.spec.episode_id for outcome in event.outcomes} == ledger.read().keys(), (
                "a score was reported before it was recorded"
            )
            assert ledger.sealed
            self.scores[job.arm_id, job.step] = event.score


def job(arm: str, step: int, suite: Suite = SUITE) -> EvalJob:
    return EvalJob(
        arm,
        step,
        CheckpointRef(f"{arm}/{step}", f"{arm}{step}"),
        suite,
        "protocol",
        InProcessPolicy(lambda: None),
    )  # type: ignore[arg-type, return-value]


Start = Callable[..., tuple[Scorer, FakeRolloutPool, CheckingListener]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Yield a factory of a scorer, its pool and its listener; the scorers are closed at the end."""
    scorers = []

    def make(
        decides: Callable[[int], bool] = lambda _: False,
    ) -> tuple[Scorer, FakeRolloutPool, CheckingListener]:
        storage, pool = (
            open_storage(str(tmp_path)),
            FakeRolloutPool(lambda job: make_outcome(job.spec), num_workers=1, paused=True),
        )
        heard = CheckingListener(storage)
        scorers.append(Scorer(storage, CONTRACT, pool, heard.on_event, decides=decides))
        return scorers[-1], pool, heard

    yield make
    for scorer in scorers:
        scorer.close()


def test_scorer_prefers_unscored_arms_and_decisions_over_earlier_checkpoints(start: Start) -> None:
    """Three more checkpoints are submitted while the first is played: the arm without a score comes first,
    then the decision, then the rest.
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


def test_scorer_drop_stops_an_arm_and_keeps_its_outcomes(start: Start, tmp_path: Path) -> None:
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


def test_scorer_wind_down_keeps_outcomes_and_the_next_run_plays_the_rest(start: Start) -> None:
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


def test_scorer_seals_a_checkpoint_that_was_played_but_not_sealed(start: Start, tmp_path: Path) -> None:
    outcomes = [Outcome(spec, "failure", 10, 2, 0.1, 0.1) for spec in SUITE.episode_list()]
    Ledger(open_storage(str(tmp_path)), "a100", "protocol").record(outcomes)
    scorer, pool, heard = start()
    scorer.submit(job("a", 100))
    scorer.drain()
    assert not pool.played
    assert heard.scores["a", 100].failures == 4


def test_scorer_reports_what_another_driver_sealed_first(start: Start, tmp_path: Path) -> None:
    scorer, pool, heard = start()

    def play(job: RolloutJob) -> Outcome:
        if not pool.queue:  # the last episode: the other driver, whose policy acts otherwise, is faster
            other = Ledger(open_storage(str(tmp_path)), "a100", "protocol")
            other.seal([make_outcome(spec, won=False) for spec in SUITE.episode_list()])
        return make_outcome(job.spec)

    pool.play = play
    pool.resume()
    scorer.submit(job("a", 100))
    scorer.drain()
    assert (heard.scores["a", 100].failures, heard.scores["a", 100].successes) == (4, 0)


def test_scorer_drain_raises_the_error_of_the_thread(start: Start) -> None:
    scorer, _, heard = start()
    heard.error = ZeroDivisionError()
    scorer.submit(job("a", 100))
    with pytest.raises(ZeroDivisionError):
        scorer.drain()
