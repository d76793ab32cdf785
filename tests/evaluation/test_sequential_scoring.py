"""Scores that end when enough is known: the real scorer and ledger, with simulators that only pretend."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from listed_outcomes import ABOVE, AGAINST, CUT, SUITE, played
from orchestrator.evaluation.outcome_ledger import Ledger, scores
from orchestrator.evaluation.score_events import ScoreConcluded, ScorerEvent
from orchestrator.evaluation.scorer import Scorer
from orchestrator.evaluation.scores import EvalJob, Score
from orchestrator.evaluation.sequential_rule import StoppingRule, decide, prefix
from orchestrator.stats.fixed_sample import wilson
from orchestrator.stats.sequential import anytime_interval
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CONTRACT
from orchestrator.testing.outcomes import make_error
from orchestrator.testing.rollout_pool import FakeRolloutPool
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.policy_clients import InProcessPolicy
from sim_workers.rollout.suite import EpisodeSpec
from sim_workers.rollout.worker import RolloutJob


def shuffled(
    rates: dict[str, float], seed: int = 0, cursed: EpisodeSpec | None = None, paused: bool = False
) -> FakeRolloutPool:
    """Seven simulators whose episodes end in random order, successes sooner; `rates`: success rate by arm;
    `cursed` is an error.
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


class Heard:
    def __init__(self) -> None:
        self.scores: dict[tuple[str, int], Score] = {}
        self.counted: dict[tuple[str, int], Sequence[Outcome]] = {}

    def on_event(self, event: ScorerEvent) -> None:
        if isinstance(event, ScoreConcluded):
            key = event.job.arm_id, event.job.step
            assert key not in self.scores, "a score was told twice"
            self.scores[key], self.counted[key] = event.score, event.outcomes


def job(arm: str, rule: StoppingRule | None = ABOVE, step: int = 100, reference: bool = False) -> EvalJob:
    source = InProcessPolicy(lambda: None)  # type: ignore[arg-type, return-value]
    return EvalJob(
        arm, step, f"{arm}/{step}", f"{arm}{step}", SUITE, "protocol", source, rule=rule, reference=reference
    )


def score(folder: Path, pool: FakeRolloutPool, *jobs: EvalJob) -> Heard:
    """What one run of the scorer comes to."""
    heard = Heard()
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
def test_in_whatever_order_simulators_end_the_score_is_the_same_and_nothing_beyond_it_is_played(
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


def test_a_decided_score_says_so_and_its_interval_holds_for_whoever_looked_all_the_time(
    tmp_path: Path,
) -> None:
    told = score(tmp_path, shuffled({"a": 0.9}), job("a")).scores["a", 100]
    assert told.episodes < 100
    assert told.decided == f"above 0.5 after {told.episodes} of 100 listed"
    assert told.interval == anytime_interval(told.successes, told.episodes)
    assert told.interval[0] > 0.5
    assert str(told).endswith(told.decided)
    assert "PARTIAL" not in str(told)


def test_what_stays_open_is_played_to_the_end_sealed_and_keeps_the_interval_of_one_who_looked(
    tmp_path: Path,
) -> None:
    pool = shuffled({"a": 0.5})
    told = score(tmp_path, pool, job("a")).scores["a", 100]
    assert len(pool.played) == told.episodes == 100
    assert (told.complete, told.decided) == (True, "")
    assert told.interval == anytime_interval(told.successes, 100) != wilson(told.successes, 100)
    assert str(told).endswith("undecided")
    assert scores(open_storage(str(tmp_path))).num_rows == 100


def test_a_restart_finds_the_verdict_and_plays_nothing(tmp_path: Path) -> None:
    first = score(tmp_path, shuffled({"a": 0.9}), job("a"))
    pool = shuffled({"a": 0.9})
    again = score(tmp_path, pool, job("a"))
    assert not pool.played
    assert again.scores == first.scores
    assert scores(open_storage(str(tmp_path))).num_rows == 0, "a beginning of the list passes for the whole"


def test_without_a_rule_or_with_another_the_rest_is_played_and_nothing_twice(tmp_path: Path) -> None:
    few = score(tmp_path, shuffled({"a": 0.9}), job("a")).scores["a", 100].episodes
    pool = shuffled({"a": 0.9})
    stricter = score(tmp_path, pool, job("a", StoppingRule(5, 0.99, 0.5))).scores["a", 100]
    assert stricter.decided.startswith("above 0.5 at 99% after")
    assert few + len(pool.played) == stricter.episodes < 100
    pool = shuffled({"a": 0.9})
    whole = score(tmp_path, pool, job("a", None)).scores["a", 100]
    assert stricter.episodes + len(pool.played) == whole.episodes == 100
    assert whole.interval == wilson(whole.successes, 100)
    assert not whole.decided
    assert scores(open_storage(str(tmp_path))).num_rows == 100
    # And back: the first rule's score is what it was.
    pool = shuffled({"a": 0.9})
    assert score(tmp_path, pool, job("a")).scores["a", 100].episodes == few
    assert not pool.played


def test_a_run_that_died_before_it_told_the_verdict_is_continued_where_it_was(tmp_path: Path) -> None:
    """Of the first block all is known, of the third a part."""
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


def test_an_error_decides_nothing_and_is_tried_again_by_the_next_run(tmp_path: Path) -> None:
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


def test_arms_are_held_against_another_that_is_played_first_and_whole(tmp_path: Path) -> None:
    """The others wait for it however early they came, and end as soon as it is clear on the common
    episodes.
    """
    rates = {"best": 0.95, "worst-arm": 0.05, REFERENCE: 0.5}
    pool, heard = shuffled(rates, paused=True), Heard()
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
    assert (whole.episodes, whole.interval) == (100, wilson(whole.successes, 100))
    theirs = played(0.5, seed=len(REFERENCE))
    for arm, words in (("best", "better"), ("worst-arm", "worse")):
        told = heard.scores[arm, 100]
        assert told.decided == f"{words} than demos-50_ratio-0_seed-0 after {told.episodes} of 100 listed"
        assert told.verdict == decide(AGAINST, CUT, played(rates[arm], seed=len(arm)), theirs)
        assert told.episodes < 100


def test_a_verdict_against_another_arm_stands_when_that_arm_is_not_there(tmp_path: Path) -> None:
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


def test_without_the_other_arm_the_list_is_played_to_its_end(tmp_path: Path) -> None:
    told = score(tmp_path, shuffled({"best": 0.95}), job("best", AGAINST)).scores["best", 100]
    assert (told.episodes, told.complete, told.decided) == (100, True, "")


def test_the_same_step_of_the_other_arm_is_what_counts(tmp_path: Path) -> None:
    jobs = job(REFERENCE, None, step=50, reference=True), job("best", AGAINST)
    assert not score(tmp_path, shuffled({"best": 0.95, REFERENCE: 0.1}), *jobs).scores["best", 100].decided


def test_winding_down_between_blocks_loses_nothing(tmp_path: Path) -> None:
    """Half a block was played: the next run plays the other half and goes on."""
    pool, heard = shuffled({"a": 0.9}, paused=True), Heard()
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
