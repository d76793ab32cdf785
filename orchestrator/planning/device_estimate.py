"""GPU-hours and bytes of checkpoints of a sweep by arithmetic: operations of its networks over a GPU's stated
speed. Nothing is measured, so a sweep can be planned on a machine without its GPUs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.cluster.placement import ResourcePlan
from orchestrator.config.lines import Line
from orchestrator.config.pinned_data import PinnedData
from orchestrator.config.schema import Device
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.cost import hours, size
from orchestrator.planning.cost_estimate import BOUNDS, Bound, work_of
from orchestrator.planning.plan import planned_arms, planned_videos
from policy.config import Objective

CORES_PER_GPU = 16.0
"""Cores per declared GPU, enough for training workers and simulators to be placed."""


@dataclass(frozen=True)
class Card:
    """Peak speed of a GPU as its maker states it, dense, in TFLOPS."""

    half: float
    """Of fp16 and bf16 on tensor cores with fp32 accumulation."""
    full: float
    """Of fp32 outside tensor cores."""
    source: str


CARDS = {
    "A100": Card(312.0, 19.5, "NVIDIA A100 datasheet, 2021"),
    "H100": Card(989.0, 67.0, "NVIDIA H100 datasheet, SXM, half of the figure with sparsity"),
    "H200": Card(989.0, 67.0, "NVIDIA H200 datasheet, half of the figure with sparsity"),
    "L4": Card(121.0, 30.3, "NVIDIA L4 datasheet, half of the figure with sparsity"),
    "L40S": Card(362.0, 91.6, "NVIDIA L40S datasheet"),
    "RTX 4090": Card(165.2, 82.6, "NVIDIA Ada GPU architecture whitepaper, appendix A"),
}
"""GPUs by the name that a sweep file gives them."""


@dataclass(frozen=True)
class DeviceEstimate:
    """What a sweep takes on its declared GPUs."""

    device: str
    """The speeds that were reckoned with, in words."""
    train_s: float
    """GPU-seconds of training to the last step of every run."""
    answer_s: dict[Bound, float]
    """GPU-seconds of the policies' answers. Low: whole blocks, and episodes as short as the quickest
    demonstrations. High: one observation at a time, and no episode ends before its horizon.
    """
    score_s: dict[Bound, float]
    """GPU-seconds of one score of the sweep's own policy. Low: whole blocks; high: one observation at a time;
    both to the horizon.
    """
    checkpoint_bytes: int
    """Bytes of the checkpoints that stay (`train.keep`), those of video models included; weights that a run
    does not train count once per run.
    """
    state_bytes: int
    """Bytes of a training worker's memory before activations, of the run that takes most."""
    sharded: bool
    """Whether its workers hold a part of that state each."""
    placed: str
    """Who gets the declared GPUs while it trains; empty if their number is not declared."""
    left_out: tuple[str, ...] = ()
    """Lines that are not counted."""

    def __str__(self) -> str:
        lines = [
            ("device", self.device),
            ("to train", f"{hours(self.train_s)} GPU-h"),
            (
                "to answer",
                f"{_range(self.answer_s)} GPU-h, one score of the whole suite {_range(self.score_s)}",
            ),
            ("checkpoints", size(self.checkpoint_bytes)),
            (
                "memory",
                f"{size(self.state_bytes)} per training worker for weights, gradients and optimiser"
                + (", a part of the model each" if self.sharded else "")
                + "; activations come on top",
            ),
        ]
        if self.placed:
            lines.append(("GPUs", self.placed))
        if self.left_out:
            lines.append(("not counted", ", ".join(self.left_out)))
        return "\n".join(f"{name:<14} {value}" for name, value in lines)


def device_estimate(sweep: SweepConfig, device: Device) -> DeviceEstimate:
    """Reckon the sweep on the declared GPUs. Raises SweepError if they are too few for one arm."""
    from policy.model_cost import ROWS_PER_BLOCK, ModelCost, model_cost

    placed = _placed(sweep, device)
    pinned = PinnedData.read(sweep)
    manifest = pinned.manifest(sweep)
    quarantined, evaluation = pinned.quarantined.keys(), pinned.evaluation(sweep, manifest)
    work = work_of(sweep, manifest, quarantined, evaluation)
    contract = sweep.suite.contract_of(manifest.contract)
    half, full = _speeds(device)
    costs: dict[str, ModelCost] = {
        line.name: model_cost(sweep.config_of(line), contract) for line in _counted(sweep)
    }
    train_s, nbytes, state, shards = 0.0, 0, 0, sweep.train.shards
    runs: list[tuple[str, Objective, int, int]] = [
        (arm.kind, sweep.train_of(arm).objective, sweep.train_of(arm).steps, len(sweep.checkpoint_steps(arm)))
        for arm in planned_arms(sweep)
    ]
    for video in planned_videos(sweep, manifest, quarantined, evaluation):
        every = sweep.line_train(sweep.line_named(video.line)).checkpoint_every
        runs.append((video.line, "video", video.steps, -(-video.steps // every)))
    for name, objective, steps, checkpoints in runs:
        if name not in costs:
            continue
        line = sweep.line_named(name)
        recipe, draws = sweep.line_train(line), sweep.config_of(line).diffusion.action_draws
        speed = full if recipe.precision == "fp32" else half
        train_s += recipe.seconds or 0  # a budget of time, in which there are no steps
        train_s += steps * recipe.batch_size * costs[name].clip(objective, recipe, draws) / speed
        shared = costs[name].shared_bytes(objective)
        own = costs[name].checkpoint_bytes(objective, recipe) - shared
        nbytes += recipe.kept_of(checkpoints, objective == "video") * own + shared
        workers = recipe.workers if shards else 1
        state = max(state, costs[name].state_bytes(objective, recipe, workers))
    answer_s, score_s = dict.fromkeys(BOUNDS, 0.0), dict.fromkeys(BOUNDS, 0.0)
    horizon_steps = work.control_steps["high"] * (len(evaluation) or sweep.suite.listed)
    for bound in BOUNDS:
        rows = 1 if bound == "low" else ROWS_PER_BLOCK
        for line in _counted(sweep):
            sampler = sweep.sampler_of(line)
            assert sampler
            each = rows * costs[line.name].answer(sampler) / (full if sampler.precision == "fp32" else half)
            asked = -(-work.control_steps[bound] // sampler.execute)
            answer_s[bound] += work.by_line[line.name][bound] * asked * each
            score_s[bound] = max(score_s[bound], horizon_steps / sampler.execute * each)
    return DeviceEstimate(
        _named(device, half, full),
        train_s,
        answer_s,
        score_s,
        nbytes,
        state,
        shards,
        placed,
        tuple(line.name for line in sweep.lines if line.name not in costs),
    )


def _counted(sweep: SweepConfig) -> Iterator[Line]:
    """Yield the lines whose networks are counted: those with a video model."""
    return (line for line in sweep.lines if line.imagines)


def _speeds(device: Device) -> tuple[float, float]:
    """Return the operations per second in half and in full precision that the sweep is reckoned with."""
    card = CARDS.get(device.card or "", Card(0.0, 0.0, ""))
    half, full = device.tflops or card.half, device.tflops_fp32 or card.full
    return half * 1e12 * device.utilisation, full * 1e12 * device.utilisation


def _named(device: Device, half: float, full: float) -> str:
    share = device.utilisation
    return (
        f"{device.card or 'a GPU'} at {100 * share:g} % of {half / share / 1e12:g} TFLOPS in half and"
        f" {full / share / 1e12:g} in full precision"
    )


def _placed(sweep: SweepConfig, device: Device) -> str:
    if not device.gpus:
        return ""
    arms, workers = len(planned_arms(sweep)), sweep.train.workers
    cluster = {"CPU": CORES_PER_GPU * device.gpus, "GPU": float(device.gpus)}
    plan = ResourcePlan.fit(cluster, workers, sweep.scoring_processes, arms, decode=sweep.data.decode)
    trained = plan.concurrent_arms * workers
    return (
        f"{plan.concurrent_arms} {'arm' if plan.concurrent_arms == 1 else 'arms'} at once on {trained} of"
        f" {device.gpus}; policy servers beside them, and {plan.servers} when nothing trains"
    )


def _range(seconds: dict[Bound, float]) -> str:
    low, high = hours(seconds["low"]), hours(seconds["high"])
    return low if low == high else f"{low} to {high}"
