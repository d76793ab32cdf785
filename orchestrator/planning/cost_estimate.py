"""A sweep's cost as a range with its uncertainty, from the counts of its plan and a calibration. Pure except
for reading the manifest.
"""

from collections.abc import Collection, Set
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from orchestrator.cluster.placement import ResourcePlan
from orchestrator.config.pinned_data import PinnedData
from orchestrator.config.schema import Budget, Prices
from orchestrator.config.sweep_config import SweepConfig, SweepError
from orchestrator.cost import Cost, added, hours, limits, size
from orchestrator.data.clip_sampler import CLIPS_PER_VISIT, POOL_VISITS
from orchestrator.data.clip_stream import CACHE_BYTES
from orchestrator.data.manifest import Manifest
from orchestrator.planning.calibration import KEPT, Calibration, Quantiles, stage_one_kind, step_kind
from orchestrator.planning.plan import planned_arms, planned_videos

Bound = Literal["low", "high"]


@dataclass(frozen=True)
class TrainingWork:
    """One training run of a sweep."""

    kind: str
    """Key of its steps in `Calibration.steps`."""
    steps: int
    """Optimiser steps, or seconds of a budget of time."""
    fewest: int
    """Of these, after which a search may stop it at the earliest."""
    clips: int
    """Clips of an epoch: the frames of its episodes."""
    episodes: int
    nbytes: int
    """Bytes of its episodes."""

    def steps_at(self, bound: Bound) -> int:
        """Return `fewest` for the low bound, `steps` for the high one."""
        return self.fewest if bound == "low" else self.steps


@dataclass(frozen=True)
class Work:
    """All trainings and rollouts of a sweep."""

    videos: tuple[TrainingWork, ...]
    """Stage-1 trainings, before all arms."""
    arms: tuple[TrainingWork, ...]
    rollouts: dict[Bound, int]
    by_line: dict[str, dict[Bound, int]]
    """Rollouts by name of the line."""
    control_steps: dict[Bound, int]
    """Control steps of one rollout: low if all rollouts succeed as soon as the quickest demonstrations, high
    if none does; or of a held-out episode.
    """


@dataclass(frozen=True)
class CostEstimate:
    """A range of costs."""

    low: Cost
    high: Cost
    wall_s: tuple[float, float] | None
    """Seconds of wall-clock time, low and high; None if the sweep cannot run on this machine."""
    where: str
    """Number of concurrent arms on this machine in words, or why the sweep cannot run on it."""
    calibration: Calibration
    control_steps: dict[Bound, int]
    prices: Prices
    budget: Budget
    stops_early: bool
    """Whether a search may stop arms before their last step."""
    unmeasured: tuple[str, ...] = ()
    """External lines, whose training and answers are not measured, and not part of the costs."""
    held_out: bool = False
    """Whether the action error is measured on recordings, and nothing is simulated."""

    def __str__(self) -> str:
        low, high = self.low, self.high
        lines = [
            ("to train", _devices((low.train_gpu_s, high.train_gpu_s), (low.train_cpu_s, high.train_cpu_s))),
            ("to answer", _devices((low.infer_gpu_s, high.infer_gpu_s), (low.infer_cpu_s, high.infer_cpu_s))),
            *(
                []
                if self.held_out
                else [
                    (
                        "to simulate",
                        (
                            f"{_devices((0, 0), (low.sim_cpu_s, high.sim_cpu_s))};"
                            f" {_counts(low.control_steps, high.control_steps)} control steps"
                        ),
                    ),
                    ("to render", f"{_counts(low.frames, high.frames)} frames, in the time to simulate"),
                ]
            ),
            ("to read", _to(size(low.bytes_read), size(high.bytes_read))),
            (
                "wall clock",
                f"{_clock(*self.wall_s)} on this machine, {self.where}" if self.wall_s else self.where,
            ),
        ]
        if self.prices != Prices():
            lines.append(
                (
                    "money",
                    _to(*(_money(cost.money(self.prices)) for cost in (low, high)))
                    + " at the sweep's prices",
                )
            )
        lines += [("budget", sentence) for sentence in self.over_budget()]
        lines.append(("how sure", self.how_sure()))
        return "\n".join(f"{name:<14} {value}" for name, value in lines)

    def in_short(self) -> str:
        """Return device hours, and money if the sweep has prices, on one line."""
        low, high = self.low, self.high
        hours_ = _devices((low.gpu_s, high.gpu_s), (low.cpu_s, high.cpu_s))
        if self.prices == Prices():
            return hours_
        return f"{hours_}; {_to(*(_money(cost.money(self.prices)) for cost in (low, high)))}"

    def over_budget(self) -> list[str]:
        """Return one sentence per budget limit that the sweep will or may reach before its end."""
        told, wall_s = [], self.wall_s or (0.0, 0.0)
        at_best, at_worst = (
            limits(self.budget, cost, clock)
            for cost, clock in zip((self.low, self.high), wall_s, strict=True)
        )
        for (name, limit, low, unit), (_, _, high, _) in zip(at_best, at_worst, strict=True):
            if high > limit:
                will, between = "will" if low > limit else "may", _to(_number(low), _number(high))
                told.append(
                    f"{name} is {_number(limit)} {unit}, the estimate {between}: the sweep {will} stop before"
                    " its end"
                )
        return told

    def how_sure(self) -> str:
        """Return the sentence on what was measured, when and where, and what the estimate leaves out."""
        shortest, longest = self.control_steps["low"], self.control_steps["high"]
        early = (
            f"rollouts between {shortest} control steps (all succeed as fast as the quickest demonstrations)"
            f" and {longest} (none does)"
        )
        measured = self.calibration.measured_at
        scored = "simulation"
        if self.held_out:
            early, scored = "every held-out episode measured to its end", "reading"
        return (
            f"10th to 90th percentile of steps, answers and {scored} measured on {measured} UTC on"
            f" {self.calibration.machine}; {early}, with a core per process or all processes on the cores"
            " of this machine; scoring entirely during training or entirely after it; "
            + ("all arms stopped as early as the search can, or none; " if self.stops_early else "")
            + "not included: starting Ray, films, other load on the machine"
            + "".join(f", training and answers of {name}" for name in self.unmeasured)
            + "; other machines differ"
        )


def estimate(sweep: SweepConfig, calibration: Calibration) -> CostEstimate:
    """Estimate the cost of the whole sweep, from the first step to the curve, with no results reused."""
    pinned = PinnedData.read(sweep)
    manifest = pinned.manifest(sweep)
    work = work_of(sweep, manifest, pinned.quarantined.keys(), pinned.evaluation(sweep, manifest))
    machine, at_once = calibration.machine, 0
    processes = 0
    try:
        placement = ResourcePlan.fit(
            machine.cluster,
            sweep.train.workers,
            sweep.scoring_processes,
            len(work.arms),
            decode=sweep.data.decode,
        )
        at_once = placement.concurrent_arms
        processes = at_once * sweep.train.workers + sweep.scoring_processes + placement.servers
        where = f"{at_once} {'arm' if at_once == 1 else 'arms'} at once"
    except SweepError as error:
        where = f"not on this machine: {'; '.join(error.problems)}"
    costs, walls = {}, {}
    for bound in BOUNDS:
        played, play_s = _playing(sweep, work, calibration, len(manifest.contract.cameras), bound)
        if bound == "high":
            played = _crowded(played, max(1.0, processes / machine.cores), bool(machine.gpus))
        costs[bound] = added(
            [
                played,
                *(
                    _training(sweep, training, calibration, bound)[0]
                    for training in (*work.videos, *work.arms)
                ),
            ]
        )
        train_s = 0.0
        for stage in (work.videos, work.arms):
            each = [
                calibration.process_s + _training(sweep, training, calibration, bound)[1]
                for training in stage
            ]
            train_s += max([sum(each) / max(1, at_once), *each])
        play_s = play_s / min(sweep.scoring_processes, machine.cores) + calibration.build.median
        # At best all cores are busy until the end; at worst scoring begins after training ends.
        walls[bound] = (
            max(train_s, play_s, costs[bound].cpu_s / machine.cores) if bound == "low" else train_s + play_s
        )
    return CostEstimate(
        costs["low"],
        costs["high"],
        (walls["low"], walls["high"]) if at_once else None,
        where,
        calibration,
        work.control_steps,
        sweep.prices,
        sweep.budget,
        bool(sweep.search.asha or sweep.search.median),
        tuple(line.name for line in sweep.lines if not line.own),
        sweep.suite.held_out is not None,
    )


BOUNDS: tuple[Bound, Bound] = "low", "high"


# -- what is to be done --------------------------------------------------------------------------------------


def work_of(
    sweep: SweepConfig,
    manifest: Manifest,
    quarantined: Set[str] = frozenset(),
    evaluation: Set[str] = frozenset(),
) -> Work:
    """Return every training and rollout of the sweep, or measurement of an episode of `evaluation`; no arm
    reads these and the `quarantined` episodes.
    """
    places = {episode: place for place, episode in enumerate(manifest.episode_ids)}
    nbytes, lengths = (manifest.column(name).to_numpy() for name in ("nbytes", "length"))
    rule = sweep.search.asha or sweep.search.median
    first = (rule.first or sweep.train.checkpoint_every) if rule else sweep.train.end
    lines = {line.name: line for line in sweep.lines}

    def training(kind: str, steps: int, fewest: int, episodes: Collection[str]) -> TrainingWork:
        rows = [places[episode] for episode in episodes]
        return TrainingWork(
            kind, steps, min(steps, fewest), int(lengths[rows].sum()), len(rows), int(nbytes[rows].sum())
        )

    arms = planned_arms(sweep)
    trainings = []
    for number, arm in enumerate(arms, 1):
        subset = sweep.select(manifest, arm, quarantined, evaluation)
        line, train = lines[arm.kind], sweep.train_of(arm)
        videos_too = train.objective != "action" if line.imagines else line.swept
        episodes = subset.episodes if videos_too else subset.demos
        # a search always trains one arm to the end
        fewest = train.end if number == len(arms) else first
        trainings.append(training(step_kind(sweep, line), train.end, fewest, episodes))
    videos = [
        training(stage_one_kind(lines[video.line]), video.steps, video.steps, video.episodes)
        for video in planned_videos(sweep, manifest, quarantined, evaluation)
    ]
    by_line = {name: dict.fromkeys(BOUNDS, 0) for name in lines}
    for bound in BOUNDS:
        of_each = len(evaluation) or (sweep.suite.fewest if bound == "low" else sweep.suite.deciding)
        for arm, each in zip(arms, trainings, strict=True):
            end = each.steps_at(bound)
            scored = sum(step <= end for step in sweep.scored_steps(arm))
            shifted = sweep.suite.reports * (end == each.steps)
            by_line[arm.kind][bound] += of_each * scored + sweep.suite.listed * shifted
    rollouts = {bound: sum(own[bound] for own in by_line.values()) for bound in BOUNDS}
    if evaluation:
        mean = round(float(lengths[[places[episode] for episode in sorted(evaluation)]].mean()))
        return Work(tuple(videos), tuple(trainings), rollouts, by_line, {"low": mean, "high": mean})
    shown = np.concatenate([manifest.tasks[task] for task in sweep.suite.tasks])
    quickest = int(np.quantile(lengths[shown[manifest.labelled[shown]]], 0.1)) + sweep.suite.settle
    suite = sweep.to_suite()
    shortest = min(suite.rules_of(task).horizon for task in suite.tasks)
    mean = -(-suite.control_steps // sweep.suite.listed)
    control_steps: dict[Bound, int] = {"low": min(shortest, quickest), "high": mean}
    return Work(tuple(videos), tuple(trainings), rollouts, by_line, control_steps)


# -- and what it takes ---------------------------------------------------------------------------------------


def _at(spread: Quantiles, bound: Bound) -> float:
    return spread.low if bound == "low" else spread.high


def _training(
    sweep: SweepConfig, training: TrainingWork, calibration: Calibration, bound: Bound
) -> tuple[Cost, float]:
    """Return the cost of a training over all its workers, and its seconds of wall-clock time; nothing for one
    that is not measured.
    """
    if training.kind not in calibration.steps:
        return Cost(), 0.0
    workers, batch_size, steps = sweep.train.workers, sweep.train.batch_size, training.steps_at(bound)
    fresh, kept = calibration.steps[training.kind], calibration.steps.get(KEPT)
    if sweep.train.timed:  # as many steps as fit, whichever of them are on cached features
        steps, kept = round(steps / workers / _at(fresh.wall, bound)), None
    known = 0.0  # steps on cached features: after the first epoch, as far as they fit
    if kept and training.kind == "action":
        known = max(0.0, steps - training.clips * workers / batch_size) * min(
            1.0, calibration.kept_clips / training.clips
        )
    wall, cpu = (
        _at(getattr(calibration.start, clock), bound)
        + (steps - known) * _at(getattr(fresh, clock), bound)
        + known * (_at(getattr(kept, clock), bound) if kept else 0.0)
        for clock in ("wall", "cpu")
    )
    nbytes = _bytes_read(training, steps * batch_size // workers, workers, bound)
    gpu_s = workers * wall if calibration.machine.gpus else 0.0
    return Cost(train_gpu_s=gpu_s, train_cpu_s=workers * cpu, bytes_read=nbytes), wall


def _bytes_read(training: TrainingWork, clips: int, workers: int, bound: Bound) -> int:
    """Return the bytes that `workers` read for `clips` each: a visit of an episode fetches it unless it is in
    the worker's cache.
    """
    visits = clips / CLIPS_PER_VISIT
    if bound == "low":  # the cache holds every episode that was fetched
        missed: float = (1 - 1 / training.episodes) ** visits
        return round(workers * training.nbytes * (1 - missed))
    # POOL_VISITS demos and as many action-free episodes are open at once
    opened = min(clips, visits + 2 * (POOL_VISITS + 1))
    fetched = opened * training.nbytes / training.episodes
    return round(workers * (min(fetched, training.nbytes) if training.nbytes <= CACHE_BYTES else fetched))


def _playing(
    sweep: SweepConfig,
    work: Work,
    calibration: Calibration,
    cameras: int,
    bound: Bound,
) -> tuple[Cost, float]:
    """Return the cost of all rollouts and answers, and their seconds of wall-clock time in sequence.

    Answers of a line that is not measured cost nothing, and come as often as those of the sweep's policy.
    """
    control_steps, pick = work.control_steps[bound], min if bound == "low" else max
    costs, wall_s = [], 0.0
    for line in sweep.lines:
        rollouts = work.by_line[line.name][bound]
        looks = -(-control_steps // (sweep.sampler_of(line) or sweep.sampler).execute)
        sim_s = (
            _at(calibration.reset, bound)
            + control_steps * _at(calibration.step, bound)
            + looks * _at(calibration.look, bound)
        )
        # The server batches the waiting queries: between one simulator's and all of them.
        wall, cpu = (
            rollouts
            * looks
            * pick(
                [
                    _at(getattr(timed, clock), bound) / int(name.rpartition(" ")[2])
                    for name, timed in calibration.answers.items()
                    if name.rpartition(" ")[0] == line.name
                ]
                or [0.0]
            )
            for clock in ("wall", "cpu")
        )
        cost = Cost(infer_gpu_s=wall if calibration.machine.gpus else 0.0, infer_cpu_s=cpu)
        if sweep.suite.held_out is not None:  # what reads the recordings counts as answering, as in a run
            cost = replace(cost, infer_cpu_s=cpu + rollouts * sim_s)
        else:
            cost = replace(
                cost,
                sim_cpu_s=rollouts * sim_s,
                control_steps=rollouts * control_steps,
                frames=rollouts * looks * cameras,
                episodes=rollouts,
            )
        costs.append(cost)
        wall_s += rollouts * sim_s + wall
    return added(costs), wall_s


def _crowded(played: Cost, crowd: float, gpu: bool) -> Cost:
    """Scale CPU seconds for shared cores: simulators and policies are timed by wall-clock time, which
    includes waiting for a core.
    """
    infer_cpu_s = played.infer_cpu_s * (1 if gpu else crowd)
    return replace(played, sim_cpu_s=played.sim_cpu_s * crowd, infer_cpu_s=infer_cpu_s)


# -- in words ------------------------------------------------------------------------------------------------


def _to(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _devices(gpu_s: tuple[float, float], cpu_s: tuple[float, float]) -> str:
    gpu = [_to(*map(hours, gpu_s)) + " GPU-h"] if any(gpu_s) else []
    return ", ".join([*gpu, _to(*map(hours, cpu_s)) + " CPU-h"])


def _counts(low: int, high: int) -> str:
    return _to(f"{low:,}", f"{high:,}")


def _money(value: float) -> str:
    return f"{value:,.2f}" if value >= 0.1 else f"{value:.2g}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _clock(low: float, high: float) -> str:
    """Return a range of seconds in s, min or h, chosen by the high bound."""
    unit, digits, name = (1, 0, "s") if high < 100 else (60, 0, "min") if high < 6000 else (3600, 1, "h")
    return f"{_to(*(f'{seconds / unit:.{digits}f}' for seconds in (low, high)))} {name}"
