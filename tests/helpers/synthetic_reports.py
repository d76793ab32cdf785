"""Reports of two made-up sweeps: one with all there is, one with as little as there can be."""

import math
from collections.abc import Iterator

import synthetic_insights
from orchestrator.report.curve_report import (
    ArmReport,
    CheckpointVideo,
    CostReport,
    CurveReport,
    EpisodeVideo,
    EquivalenceReport,
    PointReport,
    ReachReport,
    SeriesReport,
    VideoReport,
)
from orchestrator.report.curve_types import Comparison, DemosToReach, Point, Series, TaskScore
from orchestrator.report.scene_grid import GridArm, SceneGrid, TaskScenes
from orchestrator.stats.claims import Claim
from orchestrator.stats.fixed_sample import Correlation, Interval, PairedComparison, blaker
from orchestrator.stats.sample_efficiency import Estimate
from orchestrator.tracking.rollout_videos import RolloutVideo

COUNTS, SEEDS, TASKS, EPISODES = (10, 30, 100, 300), (0, 1, 2), ("Lift", "PickPlaceCan"), 25
DEMOS_ONLY, MIXED = Series("video_action", 0.0), Series("video_action", 1.0)
FILMED = "demos-100_ratio-1_seed-0"
"""Arm with films."""
BASELINE = Series("diffusion_policy", 0.0)
RATES = {
    DEMOS_ONLY: (0.22, 0.47, 0.71, 0.86),
    MIXED: (0.38, 0.66, 0.83, 0.90),
    BASELINE: (0.12, 0.30, 0.55, 0.79),
}


def rich() -> CurveReport:
    """Two ratios and a baseline, four demo counts, three seeds (one is missing once), two tasks, costs,
    films' distances.
    """
    arms: list[ArmReport] = []
    points = []
    for series, rates in RATES.items():
        for demos, rate in zip(COUNTS, rates, strict=True):
            seeds = [seed for seed in SEEDS if (series, demos, seed) != (MIXED, 300, 2)]
            scores = [dict(_by_task(rate + 0.05 * (seed - 1))) for seed in seeds]
            here = [
                _arm(series, demos, seed, score, len(arms) + number)
                for number, (seed, score) in enumerate(zip(seeds, scores, strict=True))
            ]
            arms += here
            points.append(_point(series, demos, here, scores))
    return CurveReport(
        name="lift-and-can",
        protocol="6b82c47c0ff95b91",
        caption=(
            "Success of svd-256 on Lift, PickPlaceCan; 50 held-out episodes per arm, the same for all, at"
            " most 400 control steps each; seeds 0, 1, 2, one thin line each; bars: exact 95 % intervals of"
            " the pooled episodes; shaded: 95 % with the spread between seeds."
        ),
        match="steps",
        answer=(
            "79 demos with one action-free video each reach 0.80; without video it takes 196.",
            "One action-free video per demo is worth 2.3 times the demos (95 % interval 1.4 to 4.0).",
            "Against the diffusion policy without video: better at every demo count.",
        ),
        claim=Claim(3),
        lines=(
            _line(
                DEMOS_ONLY, Estimate(52.0, Interval(38.0, 71.0)), Estimate(196.0, Interval(140, 290)), 0.56
            ),
            _line(
                MIXED,
                Estimate(17.0, Interval(11.0, 24.0)),
                Estimate(79.0, Interval(52.0, 118.0)),
                0.69,
                Estimate(2.3, Interval(1.4, 4.0)),
            ),
            _line(
                BASELINE,
                Estimate(84.0, Interval(60.0, 122.0)),
                Estimate(math.inf, Interval(240.0, math.inf)),
                0.44,
            ),
        ),
        points=tuple(points),
        arms=tuple(arms),
        comparisons=(
            _comparison(
                "30 demos + 1 action-free per demo",
                "30 demos",
                PairedComparison(150, 44, 15, 0.0002),
                Interval(0.09, 0.29),
                0.001,
            ),
            _comparison(
                "300 demos + 1 action-free per demo",
                "300 demos",
                PairedComparison(150, 12, 8, 0.5),
                Interval(-0.05, 0.13),
                1.0,
            ),
            _comparison(
                "10 demos without video (diffusion policy)",
                "10 demos with video",
                PairedComparison(150, 9, 24, 0.014),
                Interval(-0.18, -0.02),
                0.042,
            ),
        ),
        video=_video(arms),
        protocol_facts=(
            ("tasks", "Lift, PickPlaceCan"),
            ("episodes per task", "25, the same scenes for every checkpoint"),
            ("horizon", "400 control steps (20 s at 20 Hz)"),
            ("success rule", "done once, at any step"),
            ("seeds", "0, 1, 2"),
            ("search", "grid"),
            ("rendering", "EGL, pictures as the reference's"),
        ),
        where=synthetic_insights.where(DEMOS_ONLY),
        demonstrations=synthetic_insights.demonstrations(),
        provenance=(
            ("data", "s3://robot-data/lift, version 12, sha256 4c1f0a9be2d7"),
            ("code", "demoscale 0.2.0, 31a1a9e"),
            ("packages", "torch 2.13.0, diffusers 0.42.1, robosuite 1.5.2, mujoco 3.9.0"),
            ("tracked in", "https://reader:hunter2@mlflow.example.org"),
            ("when", "2026-11-23 10:00 UTC"),
        ),
    )


def bare() -> CurveReport:
    """One arm, one seed, one task; no costs, no films, nothing to compare."""
    score = TaskScore(17, 25, blaker(17, 25))
    point = Point(
        policy="video_action",
        demo_count=4,
        action_free_ratio=0.0,
        success_rate=0.68,
        successes=17,
        episodes=25,
        errors=0,
        interval=score.interval,
        band=None,
        seeds=1,
        missing_seeds=(),
        by_task={"Lift": score},
        cost=None,
        early=False,
    )
    arm = ArmReport(
        arm="demos-4_ratio-0_seed-0",
        policy="video_action",
        demo_count=4,
        action_free_ratio=0.0,
        seed=0,
        step=1000,
        successes=17,
        episodes=25,
        errors=0,
        interval=score.interval,
        cost=None,
        run_id="0" * 32,
        early=False,
    )
    return CurveReport(
        name="quickstart",
        protocol="6b82c47c0ff95b91",
        caption="Exact 95 % intervals; one seed, so no spread between seeds is known.",
        match="steps",
        answer=("No evidence: one demo count makes no curve. 4 demos: 17/25 = 0.68 [0.48, 0.83].",),
        claim=Claim(1),
        lines=(SeriesReport(DEMOS_ONLY, DEMOS_ONLY.label, None, (), None, Claim(1)),),
        points=(PointReport(point, None),),
        arms=(arm,),
        comparisons=(),
        video=None,
        protocol_facts=(("tasks", "Lift"),),
        provenance=(("code", "demoscale 0.2.0"),),
    )


def scenes(report: CurveReport, episodes: int = EPISODES) -> SceneGrid:
    """Results of the report's arms on `episodes` scenes of each task; where films are, as in `films`."""
    arms = tuple(GridArm(arm.series, arm.arm, arm.demo_count, arm.seed) for arm in report.arms)
    tasks = []
    for task in TASKS:
        ids = [f"{task}-{1_000_000 + place}-0" for place in range(episodes)]
        filmed = {ids[10]: True, ids[11]: False}
        results = []
        for number, arm in enumerate(report.arms):
            wins = arm.successes / arm.episodes * episodes
            own = [(place * 7 + 3 * number * (place % 4)) % episodes < wins for place in range(episodes)]
            kept = filmed if arm.arm == FILMED else {}
            results.append(tuple(kept.get(episode, result) for episode, result in zip(ids, own, strict=True)))
        won = [sum(column) for column in zip(*results, strict=True)]
        order = sorted(range(episodes), key=lambda place: (-won[place], place))
        tasks.append(
            TaskScenes(
                task,
                tuple(ids[place] for place in order),
                tuple(tuple(row[place] for place in order) for row in results),
            )
        )
    return SceneGrid(arms, tuple(tasks))


def films(mp4: bytes) -> list[RolloutVideo]:
    """A success and a failure of both tasks."""
    return [
        {
            "arm": FILMED,
            "episode": f"{task}-100001{n}-0",
            "result": result,
            "caption": f"{task}: 100 demos + 1 action-free per demo, seed 0",
            "mp4": mp4,
        }
        for task in TASKS
        for n, result in enumerate(("success", "failure"))
    ]


def _score(successes: int, episodes: int = EPISODES) -> TaskScore:
    successes = max(0, min(episodes, successes))
    return TaskScore(successes, episodes, blaker(successes, episodes))


def _by_task(rate: float) -> Iterator[tuple[str, TaskScore]]:
    for place, task in enumerate(TASKS):
        yield task, _score(round(EPISODES * (rate + (0.06 - 0.12 * place))))


def _arm(series: Series, demos: int, seed: int, scores: dict[str, TaskScore], number: int) -> ArmReport:
    ratio = series.action_free_ratio
    kind = f"{series.policy}_" if series.baseline else ""
    wins, episodes = sum(score.successes for score in scores.values()), EPISODES * len(TASKS)
    hours = 1.5 + demos * (1 + ratio) / 40
    return ArmReport(
        arm=f"{kind}demos-{demos}_ratio-{ratio:g}_seed-{seed}",
        policy=series.policy,
        demo_count=demos,
        action_free_ratio=ratio,
        seed=seed,
        step=20_000,
        successes=wins,
        episodes=episodes,
        errors=int(demos == 100 and seed == 1),
        interval=blaker(wins, episodes),
        cost=CostReport(hours, 8 * hours, 50, 14_321, None, f"{hours:.1f} GPU-h"),
        run_id=f"{number:032x}",
        early=series.baseline and demos == 10,
    )


def _point(
    series: Series, demos: int, arms: list[ArmReport], scores: list[dict[str, TaskScore]]
) -> PointReport:
    wins, episodes = sum(arm.successes for arm in arms), sum(arm.episodes for arm in arms)
    low, high = blaker(wins, episodes)
    hours = (1.5 + demos * (1 + series.action_free_ratio) / 40) * len(arms)
    point = Point(
        policy=series.policy,
        demo_count=demos,
        action_free_ratio=series.action_free_ratio,
        success_rate=wins / episodes,
        successes=wins,
        episodes=episodes,
        errors=sum(arm.errors for arm in arms),
        interval=Interval(low, high),
        band=Interval(max(0.0, low - 0.06), min(1.0, high + 0.06)),
        seeds=len(arms),
        missing_seeds=tuple(sorted(set(SEEDS) - {arm.seed for arm in arms})),
        by_task={
            task: _score(sum(score[task].successes for score in scores), EPISODES * len(arms))
            for task in TASKS
        },
        cost=None,
        early=arms[0].early,
    )
    return PointReport(
        point, CostReport(hours, 8 * hours, 50 * len(arms), 14_321, None, f"{hours:.1f} GPU-h")
    )


def _line(
    series: Series, half: Estimate, most: Estimate, area: float, factor: Estimate | None = None
) -> SeriesReport:
    def reach(rate: float, found: Estimate) -> ReachReport:
        demos, (low, high) = found.value, found.interval
        ends = f"{low:.0f} to {high:.0f}" if high < math.inf else f"{low:.0f} or more"
        text = f"{demos:.0f} demos ({ends})" if demos < math.inf else f"not reached ({ends})"
        return ReachReport(DemosToReach(series, rate, demos, found.interval), f"{rate:.2f}: {text}")

    return SeriesReport(
        series=series,
        label=series.label,
        area=Estimate(area, Interval(area - 0.03, area + 0.03)),
        reach=(reach(0.5, half), reach(0.8, most)),
        equivalence=factor
        and EquivalenceReport(
            factor, f"{factor.value} times the demos ({factor.interval.low} to {factor.interval.high})"
        ),
        claim=Claim(3),
    )


def _comparison(
    first: str, second: str, result: PairedComparison, interval: Interval, p_corrected: float
) -> Comparison:
    return Comparison(
        first=first,
        second=second,
        first_policy="video_action",
        second_policy="video_action",
        result=result,
        interval=interval,
        seeds=3,
        compared=3,
        test="exact McNemar",
        p_corrected=p_corrected,
    )


def _video(arms: list[ArmReport]) -> VideoReport:
    points, episodes = [], []
    for place, arm in enumerate(arm for arm in arms if arm.policy == "video_action"):
        rate = arm.successes / arm.episodes
        distance = 0.42 - 0.3 * rate + 0.02 * (place * 7 % 5 - 2)
        measures = {
            "success_rate": rate,
            "video_psnr": 18 + 9 * rate,
            "video_ssim": 0.5 + 0.4 * rate,
            "video_distance": distance,
        }
        points.append(CheckpointVideo(arm.arm, arm.step, measures))
        for n in range(8):
            result = "success" if n < 8 * rate else "failure"
            spread = distance + 0.015 * (n * 5 % 8 - 4) - (0.03 if result == "success" else 0)
            episodes.append(
                EpisodeVideo(arm.arm, f"{TASKS[n % 2]}-100000{n}-0", TASKS[n % 2], result, spread)
            )
    return VideoReport(
        measure="mean latent distance",
        points=tuple(points),
        episodes=tuple(episodes),
        correlation=Correlation(-0.91, Interval(-0.97, -0.74), len(points), len(points)),
        given_steps=None,
        text="Checkpoints whose imagination lies nearer to what then happened succeed more often.",
    )
