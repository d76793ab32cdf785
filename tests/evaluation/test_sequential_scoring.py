"""Sequentially decided scores: the real scorer and ledger with a fake pool."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.evaluation.outcome_ledger import Ledger, scores
from orchestrator.evaluation.score_events import ScoreConcluded, ScorerEvent
from orchestrator.evaluation.scorer import Scorer
from orchestrator.evaluation.scores import EvalJob, Score
from orchestrator.evaluation.sequential_rule import StoppingRule, decide, prefix
from orchestrator.stats.fixed_sample import blaker
from orchestrator.stats.sequential import anytime_interval
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CONTRACT
from orchestrator.testing.outcomes import make_error
from orchestrator.testing.rollout_pool import FakeRolloutPool
from sequential_cases import ABOVE, AGAINST, CUT, SUITE, played
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.policy_clients import InProcessPolicy
from sim_workers.rollout.suite import EpisodeSpec
from sim_workers.rollout.worker import RolloutJob


def shuffled(
    rates: dict[str, float], seed: int = 0, cursed: EpisodeSpec | None = None, paused: bool = False
) -> FakeRolloutPool:
    """Return a pool of seven simulators whose episodes end in random order, successes sooner; `rates`:
    success rate by arm; `cursed` is an error.
    """
    outcomes = {arm: played(rate, seed=len(arm)) for arm, rate in rates.items()}
    rng = np.random.default_rng(seed)

    def play(job: RolloutJob) -> Outcome:
        if job.spec == cursed:
            return make_error(job.spec, "the driver is gone (given up after 3 attempts)")
        return outcomes[job.key.partition("/")[0]][job.spec.episode_id]

    return FakeRolloutPool(
        play, num_workers=7, order=lambda job: rng.random() + (play(job).result == "failure"), paused=paused
    )


class ScoreListener:
    def __init__(self) -> None:
        self.scores: dict[tuple[str, int], Score] = {}
        self.counted: dict[tuple[str, int], Sequence[Outcome]] = {}

    def on_event(self, event: ScorerEvent) -> None:
        if isinstance(event, ScoreConcluded):
            key = event.job.arm_id, event.job.step
            assert key not in self.scores, "a score was reported twice"
            self.scores[key], self.counted[key] = event.score, event.outcomes


def job(arm: str, rule: StoppingRule | None = ABOVE, step: int = 100, reference: bool = False) -> EvalJob:
    source = InProcessPolicy(lambda: None)  # type: ignore[arg-type, return-value]
    return EvalJob(
        arm,
        step,
        CheckpointRef(f"{arm}/{step}", f"{arm}{step}"),
        SUITE,
        "protocol",
        source,
        rule=rule,
        reference=reference,
    )


def score(folder: Path, pool: FakeRolloutPool, *jobs: EvalJob) -> ScoreListener:
    """Return the listener of one run of the scorer."""
    heard = ScoreListener()
    scorer = Scorer(open_storage(str(folder)), CONTRACT, pool, heard.on_event)
    for one in jobs:
        scorer.submit(one)
    scorer.drain()
    scorer.close()
    return heard


def recorded(folder: Path, arm: str) -> dict[str, Outcome]:
    return Ledger(open_storage(str(folder)), f"{arm}100", "protocol").read()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), rate=st.sampled_from([0.05, 0.3, 0.6, 0.8, 0.95]))
def test_decided_score_is_independent_of_episode_order_and_plays_no_more(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rate: float
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    pool = shuffled({"a": rate}, seed)
    heard = score(folder, pool, job("a"))
    verdict = decide(ABOVE, CUT, played(rate, seed=1), {})
    assert verdict
    told = heard.scores["a", 100]
    assert told.complete
    assert (told.verdict, told.episodes) == (verdict, verdict.episodes)
    assert len(pool.played) == verdict.episodes, (
        "an episode was played that the verdict does not need, or twice"
    )
    assert list(heard.counted["a", 100]) == prefix(CUT, played(rate, seed=1), verdict.episodes)


def test_decided_score_has_its_verdict_and_an_anytime_interval(
    tmp_path: Path,
) -> None:
    told = score(tmp_path, shuffled({"a": 0.9}), job("a")).scores["a", 100]
    assert told.episodes < 100
    assert told.decided == f"above 0.5 after {told.episodes} of 100 listed"
    assert told.interval == anytime_interval(told.successes, told.episodes)
    assert told.interval[0] > 0.5
    assert str(told).endswith(told.decided)
    assert "PARTIAL" not in str(told)


def test_undecided_score_is_played_whole_with_an_anytime_interval(
    tmp_path: Path,
) -> None:
    pool = shuffled({"a": 0.5})
    told = score(tmp_path, pool, job("a")).scores["a", 100]
    assert len(pool.played) == told.episodes == 100
    assert (told.complete, told.decided) == (True, "")
    assert told.interval == anytime_interval(told.successes, 100) != blaker(told.successes, 100)
    assert str(told).endswith("undecided")
    assert scores(open_storage(str(tmp_path))).num_rows == 100


def test_restarted_score_finds_the_verdict_and_plays_nothing(tmp_path: Path) -> None:
    first = score(tmp_path, shuffled({"a": 0.9}), job("a"))
    pool = shuffled({"a": 0.9})
    again = score(tmp_path, pool, job("a"))
    assert not pool.played
    assert again.scores == first.scores
    assert scores(open_storage(str(tmp_path))).num_rows == 0, "a part of the list is sealed as the whole"


def test_score_with_another_rule_or_none_plays_only_what_is_missing(tmp_path: Path) -> None:
    few = score(tmp_path, shuffled({"a": 0.9}), job("a")).scores["a", 100].episodes
    pool = shuffled({"a": 0.9})
    stricter = score(tmp_path, pool, job("a", StoppingRule(5, 0.99, 0.5))).scores["a", 100]
    assert stricter.decided.startswith("above 0.5 at 99% after")
    assert few + len(pool.played) == stricter.episodes < 100
    pool = shuffled({"a": 0.9})
    whole = score(tmp_path, pool, job("a", None)).scores["a", 100]
    assert stricter.episodes + len(pool.played) == whole.episodes == 100
    assert whole.interval == blaker(whole.successes, 100)
    assert not whole.decided
    assert scores(open_storage(str(tmp_path))).num_rows == 100
    # And back: the first rule's score is what it was.
    pool = shuffled({"a": 0.9})
    assert score(tmp_path, pool, job("a")).scores["a", 100].episodes == few
    assert not pool.played


def test_score_interrupted_before_its_verdict_continues(tmp_path: Path) -> None:
    """All of the first block is known, and a part of the third."""
    truth = played(0.9, seed=1)
    known = [truth[spec.episode_id] for spec in [*CUT[0], *CUT[2][:4]]]
    Ledger(open_storage(str(tmp_path)), "a100", "protocol").record(known)
    pool = shuffled({"a": 0.9})
    told = score(tmp_path, pool, job("a")).scores["a", 100]
    verdict = decide(ABOVE, CUT, truth, {})
    assert verdict
    assert told.verdict == verdict
    assert {job.spec.episode_id for job in pool.played}.isdisjoint(one.spec.episode_id for one in known)
    assert len(pool.played) == verdict.episodes - sum(
        one in prefix(CUT, truth, verdict.episodes) for one in known
    )


def test_score_with_an_error_is_undecided_and_retried_by_the_next_run(tmp_path: Path) -> None:
    cursed = CUT[0][2]
    pool = shuffled({"a": 0.9}, cursed=cursed)
    told = score(tmp_path, pool, job("a")).scores["a", 100]
    assert (told.errors, told.episodes, told.complete, told.decided) == (1, 9, False, "")
    assert "1 errors (PARTIAL: 100 listed)" in str(told)
    assert told.causes == ((cursed.episode_id, "the driver is gone (given up after 3 attempts)"),)
    pool = shuffled({"a": 0.9})
    again = score(tmp_path, pool, job("a")).scores["a", 100]
    assert pool.played[0].spec == cursed
    assert again.verdict == decide(ABOVE, CUT, played(0.9, seed=1), {})


REFERENCE = AGAINST.against


def test_arms_are_compared_with_a_reference_that_is_played_first_and_whole(tmp_path: Path) -> None:
    """The other arms wait for it whenever they were submitted, and end as soon as the common episodes
    decide.
    """
    rates = {"best": 0.95, "worst-arm": 0.05, REFERENCE: 0.5}
    pool, heard = shuffled(rates, paused=True), ScoreListener()
    scorer = Scorer(open_storage(str(tmp_path)), CONTRACT, pool, heard.on_event)
    for one in (job("best", AGAINST), job("worst-arm", AGAINST), job(REFERENCE, None, reference=True)):
        scorer.submit(one)
    while scorer.unscored < 3:
        time.sleep(0.01)
    pool.resume()
    scorer.drain()
    scorer.close()
    order = [*dict.fromkeys(playing.key.partition("/")[0] for playing in pool.played)]
    assert order.index(REFERENCE) <= 1, "at most the first block of the first arm was played by then"
    whole = heard.scores[REFERENCE, 100]
    assert (whole.episodes, whole.interval) == (100, blaker(whole.successes, 100))
    theirs = played(0.5, seed=len(REFERENCE))
    for arm, words in (("best", "succeeds more often"), ("worst-arm", "succeeds less often")):
        told = heard.scores[arm, 100]
        assert told.decided == f"{words} than demos-50_ratio-0_seed-0 after {told.episodes} of 100 listed"
        assert told.verdict == decide(AGAINST, CUT, played(rates[arm], seed=len(arm)), theirs)
        assert told.episodes < 100


def test_verdict_against_a_reference_is_kept_without_the_reference(tmp_path: Path) -> None:
    first = score(
        tmp_path,
        shuffled({"best": 0.95, REFERENCE: 0.5}),
        job(REFERENCE, None, reference=True),
        job("best", AGAINST),
    )
    assert first.scores["best", 100].decided
    pool = shuffled({"best": 0.95})
    alone = score(tmp_path, pool, job("best", AGAINST))
    assert alone.scores["best", 100] == first.scores["best", 100]
    assert not pool.played


def test_score_without_its_reference_plays_the_whole_list(tmp_path: Path) -> None:
    told = score(tmp_path, shuffled({"best": 0.95}), job("best", AGAINST)).scores["best", 100]
    assert (told.episodes, told.complete, told.decided) == (100, True, "")


def test_score_is_compared_with_the_same_step_of_the_reference(tmp_path: Path) -> None:
    jobs = job(REFERENCE, None, step=50, reference=True), job("best", AGAINST)
    assert not score(tmp_path, shuffled({"best": 0.95, REFERENCE: 0.1}), *jobs).scores["best", 100].decided


def test_scorer_wind_down_within_a_block_loses_nothing(tmp_path: Path) -> None:
    """Half a block is played: the next run plays the other half and goes on."""
    pool, heard = shuffled({"a": 0.9}, paused=True), ScoreListener()
    pool.release(4)
    scorer = Scorer(open_storage(str(tmp_path)), CONTRACT, pool, heard.on_event)
    scorer.submit(job("a"))
    deadline = time.monotonic() + 20
    while len(recorded(tmp_path, "a")) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    scorer.wind_down()
    scorer.drain()
    assert heard.scores == {}
    assert len(recorded(tmp_path, "a")) == 4
    rest = shuffled({"a": 0.9})
    told = score(tmp_path, rest, job("a")).scores["a", 100]
    assert told.decided
    assert len(rest.played) == told.episodes - 4
