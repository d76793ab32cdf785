"""What do training, acting, rendering and a whole sweep cost on this machine's GPU, and do they work there?

    python -m bench.gpu                        within a quarter of an hour, on the first GPU
    python -m bench.gpu --quick                a few minutes; without a GPU a miniature on the CPU
    python -m bench.gpu --device cpu --quick   the miniature, on any machine

`svd-256` with random weights: time depends on no value of them. Every part runs in processes of its own and
ends with its share of the time, which parts that end earlier pass on. What fails or is not reached in time
has a row that says so, and the others go on. Without a GPU the command ends with exit code 69.
"""

import gc
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from bench import harness
from bench.replan import CAMERAS, SVD_WIDTHS, observations, policy_of
from bench.results import NOT_HERE
from bench.train_step import SENTENCE, svd_clips
from policy.config import Objective, PolicyConfig, Recipe
from policy.inference import TrainedPolicy
from policy.interface import Contract
from policy.model import VideoActionModel
from policy.presets import PRESETS
from policy.trainer import Trainer
from sim_workers.envs.robosuite import contract

CHECKOUT = Path(__file__).resolve().parent.parent
BUDGET_S = 900.0
GRACE_S = 3 * harness.GRACE_S
"""Seconds that a part may take to end its processes."""
ROW = "ROW "
"""Beginning of the lines with which a part's process reports rows; all others are other libraries'."""
CLIPS = 4
"""Clips per optimiser step: the paper's 32 on 8 GPUs."""
ASKED = (1, 8, 32)
"""Observations that a policy answers at once."""

Value = float | bool | str | None


@dataclass(frozen=True)
class Setting:
    """Where is measured, and how long."""

    device: str
    """`cuda` or `cpu`."""
    quick: bool

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def config(self) -> PolicyConfig:
        """Return `svd-256` on a GPU, its miniature on a CPU."""
        return PRESETS["svd-256"] if self.on_gpu else miniature()

    @property
    def cameras(self) -> Contract:
        """Return the paper's three cameras of 256 pixels, or one of 64."""
        return contract(
            CAMERAS if self.on_gpu else CAMERAS[:1], (256, 256) if self.on_gpu else (64, 64), "fast"
        )

    @property
    def backend(self) -> str:
        """Return the backend of `torch.compile`: on a CPU the one that generates no code, since that takes
        minutes.
        """
        return "inductor" if self.on_gpu else "eager"

    @property
    def simulators(self) -> tuple[int, int]:
        """Return the fewer and the more simulator processes."""
        return (8, 16) if self.on_gpu else (1, 2)


@dataclass(frozen=True)
class Measure:
    """One row: values that are measured together."""

    what: str
    keys: tuple[str, ...]
    """Keys of the values in the last line."""
    run: Callable[[], Sequence[Value]]
    """Measures the values, in the order of the keys."""


@dataclass(frozen=True)
class Row:
    """Result of a measure."""

    keys: tuple[str, ...]
    values: tuple[Value, ...] = ()
    """Empty if it failed."""
    why: str = ""
    """Why it failed, in one line."""


@dataclass(frozen=True)
class Part:
    """Measures of one process."""

    share_s: float
    """Seconds; unused ones go to the parts that follow."""
    measures: Callable[[Setting], list[Measure]]
    """Lists the measures, and prepares nothing yet."""


def miniature() -> PolicyConfig:
    """Return `svd-256` with few channels, frames and passes: the same levels, feature maps and rungs."""
    full = PRESETS["svd-256"]
    lite = PRESETS["svd-128-lite"]
    assert full.video
    assert lite.adaptor
    video = full.video.model_copy(
        update={
            "block_out_channels": (32, 32, 64, 64),
            "num_attention_heads": (2, 2, 4, 4),
            "cross_attention_dim": 32,
            "time_id_dim": 8,
        }
    )
    narrow = {"channels": 32, "groups": 8, "blocks": 1, "expansion": 2}
    adaptor = lite.adaptor.model_copy(
        update={
            "branch": tuple(
                stage.model_copy(update=narrow | ({"joins": 32} if stage.joins else {}))
                for stage in lite.adaptor.branch
            ),
            "trunk": tuple(stage.model_copy(update=narrow) for stage in lite.adaptor.trunk),
            "out_dim": 64,
        }
    )
    ladder = {
        name: rung.model_copy(
            update={"video_passes": min(2, rung.video_passes), "action_steps": min(2, rung.action_steps)}
        )
        for name, rung in full.ladder.items()
    }
    return full.model_copy(
        update={
            "clip": full.clip.model_copy(update={"frames_per_view": 2, "horizon": 16}),
            "video": video,
            "adaptor": adaptor,
            "action": full.action.model_copy(update={"down_dims": (32, 64), "time_dim": 32}),
            "ladder": ladder,
        }
    )


# -- training ------------------------------------------------------------------------------------------------


@cache
def _model(setting: Setting) -> VideoActionModel:
    assert setting.config.video
    sentences = {SENTENCE: torch.randn(setting.config.video.cross_attention_dim)}
    model = VideoActionModel(setting.config, setting.cameras, known_sentences=sentences)
    return model.to(setting.device)


def _synchronize(setting: Setting) -> None:
    if setting.on_gpu:
        torch.cuda.synchronize()


def _peak_gib(setting: Setting) -> float:
    """Return the peak of the GPU's memory since it was reset last; without a GPU, of the process's."""
    if setting.on_gpu:
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _release(setting: Setting) -> None:
    gc.collect()
    if setting.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _step(setting: Setting, objective: Objective, compiled: bool, checkpointing: bool) -> tuple[Value, ...]:
    """Return the seconds of a first step, clips per second afterwards, and the peak of memory in GiB."""
    model = _model(setting)
    unet: Any = model.video.unet
    model.learn(objective)
    model.zero_grad()
    unet.disable_gradient_checkpointing()
    unet._compiled_call_impl = None  # of an earlier measure; `Module.compile` has no opposite
    if compiled:
        torch._dynamo.reset()
        unet.compile(backend=setting.backend)
    _release(setting)
    batch = svd_clips(setting.config, setting.cameras, CLIPS if setting.on_gpu else 2, setting.device)
    trainer = Trainer(model, Recipe(precision="bf16", gradient_checkpointing=checkpointing), 100)
    generator, steps, times = torch.Generator(), 2 if setting.quick else 6, list[float]()
    for step in range(2 + steps):  # the second one may compile again
        began = time.perf_counter()
        trainer.step(batch, step, generator)
        _synchronize(setting)
        times.append(time.perf_counter() - began)
    trainer.check()
    return times[0], steps * len(batch.seeds) / sum(times[2:]), _peak_gib(setting)


def training(setting: Setting) -> list[Measure]:
    """List both stages of training, without and with gradient checkpointing and `torch.compile`, which comes
    last: it may take minutes.
    """
    objectives: tuple[Objective, ...] = "video", "action"
    return [
        Measure(
            f"{setting.config.preset}, stage {1 + (objective == 'action')}, bf16"
            + (f", torch.compile ({setting.backend})" if compiled else "")
            + (", gradient checkpointing" if checkpointing else ""),
            tuple(
                "_".join(
                    ["train", objective, *["compiled"] * compiled, *["checkpointing"] * checkpointing, value]
                )
                for value in ("first_step_s", "clips_per_s", "peak_gib")
            ),
            partial(_step, setting, objective, compiled, checkpointing),
        )
        for compiled, checkpointing, objective in itertools.product((False, True), (False, True), objectives)
    ]


# -- acting --------------------------------------------------------------------------------------------------


@cache
def _policy(setting: Setting) -> TrainedPolicy:
    widths = SVD_WIDTHS if setting.on_gpu else (32, 32, 32, 32)
    return policy_of(setting.config, setting.cameras, setting.device, widths=widths)


def _latency(setting: Setting, rung: str, number: int) -> tuple[Value, ...]:
    """Return milliseconds per answer in bf16, and the peak of memory in GiB."""
    policy, slice_s = _policy(setting), 0.0 if setting.quick else 2.0
    policy.sampler = setting.config.ladder[rung].model_copy(update={"precision": "bf16"})
    asked = observations(policy.contract, number)
    _release(setting)
    if setting.config.ladder[rung].video_passes == 1:
        policy.act(asked)  # a first one chooses kernels; the rungs that follow find them chosen
    answers, began = 0, time.perf_counter()
    while not answers or time.perf_counter() - began < slice_s:
        policy.act(asked)  # its answer lies in the CPU's memory: a GPU is done with it, too
        answers += 1
    return 1000 * (time.perf_counter() - began) / answers, _peak_gib(setting)


def _independence(setting: Setting, precision: str, number: int) -> tuple[Value, ...]:
    """Return whether answers are those of single observations bit for bit, and the largest difference of an
    action.
    """
    policy = _policy(setting)
    policy.sampler = setting.config.ladder["one_pass"].model_copy(update={"precision": precision})
    asked = observations(policy.contract, number)
    together = np.stack([chunk.actions for chunk in policy.act(asked)])
    alone = np.stack([policy.act([one])[0].actions for one in asked[:8]])
    apart = np.abs(together[: len(alone)].astype(float) - alone)
    return bool((apart == 0).all()), float(apart.max())


def acting(setting: Setting) -> list[Measure]:
    """List every rung with every number of observations, the cheap ones first, and after the first of them
    whether an answer depends on its batch.
    """
    ladder = setting.config.ladder

    def passes(cell: tuple[str, int]) -> float:
        """Return the passes of the video network, times observations."""
        rung = ladder[cell[0]]
        return cell[1] * rung.video_passes * (1 if rung.guidance == 1 else 2)

    latencies = [
        Measure(
            f"{setting.config.preset}, {rung}, bf16, {number} at once",
            (f"replan_{rung}_{number}_ms", f"replan_{rung}_{number}_peak_gib"),
            partial(_latency, setting, rung, number),
        )
        for rung, number in sorted(itertools.product(ladder, ASKED), key=passes)
    ]
    independence = [
        Measure(
            f"{number} at once against one by one, one_pass, {precision}",
            tuple(f"{value}_{precision}_{number}" for value in ("answers_equal", "answers_differ_by")),
            partial(_independence, setting, precision, number),
        )
        for precision in ("fp32", "bf16")
        for number in ASKED[1:]
    ]
    return [latencies[0], *independence, *latencies[1:]]


# -- rendering -----------------------------------------------------------------------------------------------


def _pictures(setting: Setting, profile: str) -> tuple[Value, ...]:
    """Return the share of pixels that differ between Mesa's rasteriser and this machine's EGL, the largest
    difference in levels, the share of episodes that end otherwise, and what draws.
    """
    from experiments.drivers import DRIVERS, drawn

    software, *_, machine = DRIVERS
    episodes = 1 if setting.quick else 5
    reference, own = (drawn(name, profile, episodes) for name in (software, machine))
    if reference is None or own is None:
        missing = software if reference is None else machine
        raise RuntimeError(f"the driver {missing} does not render here")
    apart = np.abs(own["pictures"].astype(int) - reference["pictures"].astype(int))
    otherwise = (own["ends"] != reference["ends"]).any(-1).mean()
    return float((apart.max(-1) > 0).mean()), float(apart.max()), float(otherwise), str(own["driver"])


def _episodes_per_s(setting: Setting, simulators: int) -> tuple[Value, ...]:
    """Return the number of simulators and the episodes per second of a pool of them."""
    from bench.rollout import FIRST, Pool
    from orchestrator.cluster.ray_runtime import connect, quiet

    quiet()
    connect()
    pool = Pool("fast", simulators)
    try:
        pool.play(range(FIRST - simulators, FIRST))  # every process has its simulator then
        episodes = simulators * (1 if setting.quick else 8)
        began = time.perf_counter()
        pool.play(range(FIRST, FIRST + episodes))
        return simulators, episodes / (time.perf_counter() - began)
    finally:
        pool.close()


def rendering(setting: Setting) -> list[Measure]:
    """List pictures of two drivers, and simulators that render at once."""
    keys = ("pixels_differ", "levels_differ_by", "ends_otherwise", "driver")
    pictures = [
        Measure(
            f"pictures by EGL against Mesa's, profile {profile}",
            tuple(f"{key}_{profile}" for key in keys),
            partial(_pictures, setting, profile),
        )
        for profile in ("fast", "default")
    ]
    fewer, more = setting.simulators
    return pictures + [
        Measure(
            f"{number} simulators: Lift, wrist camera of 128 pixels",
            (f"simulators_{name}", f"episodes_per_s_{name}"),
            partial(_episodes_per_s, setting, number),
        )
        for name, number in (("few", fewer), ("many", more))
    ]


# -- placement -----------------------------------------------------------------------------------------------


def _shared_gpu(setting: Setting) -> tuple[Value, ...]:
    """Return the device class, whether a training worker and a policy server got one GPU together, and
    whether each of them computes there.
    """
    import ray

    from orchestrator.cluster import ray_runtime
    from orchestrator.cluster.placement import SHARED_GPU, ResourcePlan

    ray_runtime.quiet()
    ray_runtime.connect()
    plan = ResourcePlan.fit(ray_runtime.resources(), workers=1, rollout_actors=1, arms=1)
    trainer_gpus = plan.trainer.get("GPU", 0.0)
    if setting.on_gpu and not trainer_gpus:
        raise RuntimeError(f"Ray sees no GPU here: {ray_runtime.resources()}")

    def where(device: str) -> tuple[str, bool]:
        import torch

        ones = torch.ones(8, 8, device=device)
        return os.environ.get("CUDA_VISIBLE_DEVICES", ""), bool((ones @ ones == 8).all())

    class Holder:
        """Actor that keeps its claim while the other one is asked."""

        def where(self, device: str) -> tuple[str, bool]:
            return where(device)

    shared = SHARED_GPU if trainer_gpus else 0.0
    actors = [
        ray.remote(Holder).options(num_cpus=0, num_gpus=gpus).remote() for gpus in (trainer_gpus, shared)
    ]
    (trains, fit), (serves, acts) = ray.get([actor.where.remote(setting.device) for actor in actors])
    for actor in actors:
        ray.kill(actor)
    return ray_runtime.acting_device(shared), trains == serves, fit and acts


def placement(setting: Setting) -> list[Measure]:
    """List what Ray gives a training worker and the policy server beside it."""
    keys = ("device_class", "trainer_and_server_share", "both_compute")
    return [
        Measure("a training worker and a policy server on one device", keys, partial(_shared_gpu, setting))
    ]


# -- a sweep -------------------------------------------------------------------------------------------------


def _sweep(setting: Setting) -> tuple[Value, ...]:
    """Return the seconds of collecting, those of the sweep, the episodes scored and the training device."""
    from policy.checkpoint import load_card
    from policy.checkpoint_files import CARD

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        length, episodes = (2, 2) if setting.quick else (300, 20)
        (folder / "sweep.yaml").write_text(
            f"name: gpu\ndata: {{episodes: {folder / 'lift'}, demo_count: [2]}}\n"
            f"train: {{steps: {length}, batch_size: 4, checkpoint_every: {length}, warmup_steps: 1,"
            " precision: bf16}\n"
            f"suite: {{tasks: [Lift], episodes: {episodes}, horizon: {16 if setting.quick else 100},"
            " video_clips: 0}\n"
            f"rollout_actors: {setting.simulators[0]}\nstorage: {folder / 'runs'}\n"
        )
        commands = (
            ["collect", "--task", "Lift", "--episodes", "2", "--store", str(folder / "lift")],
            ["run", str(folder / "sweep.yaml")],
            ["curve", "gpu", "--storage", str(folder / "runs"), "--json"],
        )
        took, printed = [], ""
        for command in commands:
            began = time.perf_counter()
            printed = _printed([sys.executable, "-m", "orchestrator", *command])
            took.append(time.perf_counter() - began)
        (point,) = json.loads(printed)["points"]
        (card,) = (folder / "runs").glob(f"arms/*/step_*/{CARD}")
        device = str(load_card(card.parent).provenance["device"])
        return took[0], took[1], point["episodes"], device


def _printed(command: list[str]) -> str:
    """Return what a command prints. Raises RuntimeError with its last line if it fails."""
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or [""]
        raise RuntimeError(f"{' '.join(command[1:4])} ended with exit code {done.returncode}: {said[-1]}")
    return done.stdout


def sweep(setting: Setting) -> list[Measure]:
    """List a sweep of `tiny` from recording to curve."""
    keys = ("collect_s", "sweep_s", "sweep_episodes", "sweep_device")
    return [Measure("a sweep of tiny on Lift, from recording to curve", keys, partial(_sweep, setting))]


# -- tests ---------------------------------------------------------------------------------------------------


def gpu_tests() -> list[str]:
    """Return the test files with tests that need a GPU, relative to the checkout."""
    return sorted(
        str(path.relative_to(CHECKOUT))
        for path in (CHECKOUT / "tests").rglob("test_*.py")
        if re.search(r"^@pytest\.mark\.gpu\b", path.read_text(), re.MULTILINE)
    )


def _tests() -> tuple[Value, ...]:
    """Return the numbers of tests that passed, failed and were skipped."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *gpu_tests()]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last)}
    if not counts or done.returncode not in (0, 1):
        raise RuntimeError(
            f"pytest ended with exit code {done.returncode}: {last or done.stderr.strip()[-200:]}"
        )
    sys.stderr.write(done.stdout if done.returncode else "")
    return counts.get("passed", 0), counts.get("failed", 0) + counts.get("error", 0), counts.get("skipped", 0)


def tests(_: Setting) -> list[Measure]:
    """List the project's tests with the marker `gpu`."""
    return [Measure("tests with the marker gpu", ("tests_passed", "tests_failed", "tests_skipped"), _tests)]


# -- running the parts ---------------------------------------------------------------------------------------

PARTS = {
    "placement": Part(90, placement),
    "tests": Part(90, tests),
    "rendering": Part(130, rendering),
    "sweep": Part(150, sweep),
    "acting": Part(200, acting),
    "training": Part(240, training),
}
"""Parts in the order in which they run: those that take long come last and get what others left."""


def one_line(error: BaseException) -> str:
    """Return an error as a row says it."""
    if isinstance(error, torch.OutOfMemoryError):
        return "does not fit the GPU's memory"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]


def measured(measures: Sequence[Measure], setting: Setting) -> Iterator[Row]:
    """Run the measures one after the other; a failure is a row of its own."""
    for measure in measures:
        try:
            yield Row(measure.keys, tuple(measure.run()))
        except Exception as error:
            yield Row(measure.keys, why=one_line(error))
        _release(setting)


def rows_of(command: Sequence[str], seconds: float) -> tuple[list[Row], str]:
    """Run a part's process; return its rows, and why it ended before its time, empty if it did not.

    seconds: time after which it is ended.
    """
    rows: list[Row] = []
    process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)

    def read() -> None:
        assert process.stdout
        for line in process.stdout:
            if line.startswith(ROW):
                told = json.loads(line.removeprefix(ROW))
                rows.append(Row(tuple(told["keys"]), tuple(told["values"]), told["why"]))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # its guards end what it started
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return rows, f"not reached: its part had {seconds:.0f} s"
    reader.join(GRACE_S)
    code = process.returncode
    return rows, f"its process ended with exit code {code}" if code else ""


def show(what: str, row: Row) -> None:
    """Print a row of the table."""
    if row.why:
        return print(f"{what:<72} {row.why}", flush=True)

    def shown(value: Value) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    cells = (f"{key} {shown(value)}" for key, value in zip(row.keys, row.values, strict=True))
    print(f"{what:<72} " + ", ".join(cells), flush=True)


def run_parts(
    setting: Setting, command_of: Callable[[str], list[str]], budget_s: float = BUDGET_S
) -> dict[str, Value]:
    """Run every part within its share of the budget and print its rows; return the values of the last line.

    command_of: returns the command of a part's process.
    """
    answers: dict[str, Value] = {}
    failed, began, deadline = 0, time.monotonic(), time.monotonic()
    scale = budget_s / sum(part.share_s for part in PARTS.values())
    for name, part in PARTS.items():
        deadline += scale * part.share_s
        left = deadline - GRACE_S - time.monotonic()
        measures = part.measures(setting)
        rows, ended = rows_of(command_of(name), left) if left > 0 else ([], "not reached: no time was left")
        by_keys = {row.keys: row for row in rows}
        print(f"\n{name}")
        for measure in measures:
            row = by_keys.get(measure.keys) or Row(measure.keys, why=ended or "not measured")
            show(f"  {measure.what}", row)
            failed += bool(row.why)
            answers |= dict(zip(row.keys, row.values or [None] * len(row.keys), strict=True))
    total = len([measure for part in PARTS.values() for measure in part.measures(setting)])
    print(f"\n{total - failed} of {total} rows measured in {time.monotonic() - began:.0f} s\n")
    return answers | {"rows_failed": failed}


def card(setting: Setting) -> str:
    """Return the name of the device."""
    return torch.cuda.get_device_name() if setting.on_gpu else "cpu"


@click.command(help="Print tables and, last, one line of JSON.")
@click.option("--quick", is_flag=True, help="A short run; without a GPU on the CPU.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="Device; by default the first GPU.")
@click.option("--part", type=click.Choice([*PARTS]), hidden=True)
def main(quick: bool, device: str | None, part: str | None) -> None:
    """Run the parts, or one of them in this process."""
    if device is None:
        device = "cpu" if quick and not torch.cuda.is_available() else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        click.echo(
            "torch sees no GPU on this machine; run it where there is one, or a miniature of it on the CPU"
            " with `python -m bench.gpu --device cpu --quick`",
            err=True,
        )
        sys.exit(NOT_HERE)
    setting = Setting(device, quick)
    if not setting.on_gpu:
        torch.set_num_threads(1)
    if part:
        for row in measured(PARTS[part].measures(setting), setting):
            print(ROW + json.dumps(asdict(row)), flush=True)
        return
    shape = "" if setting.on_gpu else " in miniature"
    print(f"{card(setting)}: svd-256{shape}, {len(setting.cameras.cameras)} cameras, random weights")
    own = [sys.executable, "-m", "bench.gpu", "--device", device, *["--quick"] * quick]
    answers = run_parts(setting, lambda name: [*own, "--part", name])
    harness.print_answer("gpu", {"card": card(setting), **answers}, quick, digits=4)


if __name__ == "__main__":
    harness.run(main)
