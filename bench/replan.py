"""What does a look cost on each rung of the ladder, from 30 guided joint steps down to one video pass?

    python -m bench.replan               about five minutes
    python -m bench.replan --quick       half a minute: one round

Through `policy.inference.TrainedPolicy.act`, as rollouts ask it, for 1 and 16 observations at once, the rungs
by turns. Random weights: time does not depend on them. On a CPU the times are CPU time of the one thread.
Where there is a GPU: `svd-256` on it, too, by the wall clock.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder

from bench import harness
from policy.checkpoint import Card, save
from policy.config import PolicyConfig, SamplerConfig
from policy.feature_stats import Stats
from policy.inference import TrainedPolicy
from policy.interface import Contract, Observation
from policy.latent_codec import VaeLatents
from policy.model import VideoActionModel
from policy.presets import PRESETS
from sim_workers.envs.robosuite import contract

ASKED = (1, 16)
SLICE_S = 1.0  # of answers of one rung, one after another
INSTRUCTION = "lift the cube"
CAMERAS = ("agentview", "sideview", "robot0_eye_in_hand")

Seconds = dict[tuple[str, int], float]
"""Per rung and number of observations."""


def policy_of(
    config: PolicyConfig, cameras: Contract, device: str = "cpu", keep: Path | None = None
) -> TrainedPolicy:
    """An untrained one, from a checkpoint of its own; `keep`: the folder to leave that in."""
    assert config.video
    model = VideoActionModel(
        config, cameras, known_sentences={INSTRUCTION: torch.randn(config.video.cross_attention_dim)}
    )
    if config.video.latents == "vae":  # at Stable Video Diffusion's widths
        kinds, widths = ("DownEncoderBlock2D",) * 4, (128, 256, 512, 512)
        vae = AutoencoderKLTemporalDecoder(
            down_block_types=kinds, block_out_channels=widths, layers_per_block=2, latent_channels=4
        )
        model.codec = VaeLatents(vae, config.video.condition_noise)
    rng = np.random.default_rng(0)
    action, proprio = (
        Stats.of(rng.uniform(-1, 1, (100, len(names))).astype(np.float32))
        for names in (cameras.action, cameras.proprio)
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        save(folder, Card(config, cameras, action, proprio, {}), model, model.state_dict(), {})
        return TrainedPolicy(folder, device)


def observations(cameras: Contract, number: int) -> list[Observation]:
    rng = np.random.default_rng(number)
    height, width = cameras.image_size
    return [
        Observation(
            {camera: rng.integers(0, 256, (height, width, 3), np.uint8) for camera in cameras.cameras},
            rng.uniform(-1, 1, len(cameras.proprio)).astype(np.float32),
            INSTRUCTION,
            seed,
        )
        for seed in range(number)
    ]


def measured(
    policy: TrainedPolicy,
    ladder: dict[str, SamplerConfig],
    rounds: int,
    answered: Callable[[str, int], None],
    clock: Callable[[], float],
) -> tuple[Seconds, Seconds]:
    """Medians over rounds of the seconds per answer and of their ratio to the rung `faithful` of the same
    round.

    A first answer is not counted. `answered` is called after every one that is. A rung repeats its answer for
    SLICE_S at least.
    """
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    asked = {number: observations(policy.contract, number) for number in ASKED}
    policy.sampler = ladder["one_pass"]
    policy.act(asked[ASKED[0]])
    for _ in range(rounds):
        for rung, policy.sampler in ladder.items():
            for number, seen in asked.items():
                answers, began = 0, clock()
                while not answers or clock() - began < SLICE_S:
                    policy.act(seen)  # its answer lies in the CPU's memory: a GPU is done with it, too
                    answers += 1
                    answered(rung, number)
                times[rung, number].append((clock() - began) / answers)
    ratios = {
        (rung, number): harness.median_ratio(values, times["faithful", number])
        for (rung, number), values in times.items()
    }
    return {key: median(values) for key, values in times.items()}, ratios


def show(title: str, seconds: Seconds, ratios: Seconds) -> None:
    """Milliseconds per answer, and what part of the first rung's."""
    print(f"{title:<30}" + "    ".join(f"{f'ms for {number}':>11}  to faithful" for number in ASKED))
    for rung in dict.fromkeys(rung for rung, _ in seconds):
        cells = (f"{1000 * seconds[rung, n]:11.1f}  {ratios[rung, n]:11.3f}" for n in ASKED)
        print(f"{rung:<30}" + "    ".join(cells))
    print()


def on_gpu(config: PolicyConfig, cameras: Contract, rounds: int, device: str = "cuda") -> dict[str, float]:
    """The same on the GPU, with the peak of its memory."""
    gib: dict[tuple[str, int], float] = {}

    def peaks(rung: str, number: int) -> None:
        gib[rung, number] = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()

    try:
        policy = policy_of(config, cameras, device)
        seconds, ratios = measured(policy, config.ladder, rounds, peaks, time.perf_counter)
    except torch.OutOfMemoryError:
        print(f"{torch.cuda.get_device_name()}: {config.preset} does not fit\n")
        return {}
    show(f"{torch.cuda.get_device_name()}: {config.preset}", seconds, ratios)
    print(
        "peak GiB: "
        + ", ".join(f"{rung} for {number} {peak:.1f}" for (rung, number), peak in gib.items())
        + "\n"
    )
    answers = {f"svd_{rung}_{number}_ms": 1000 * value for (rung, number), value in seconds.items()}
    return answers | {"svd_ratio_to_faithful": ratios["one_pass", 1], "svd_peak_gib": max(gib.values())}


@harness.command("replan", digits=4)
def main(quick: bool) -> Mapping[str, object]:
    """Print the tables; return the values of the last line."""
    torch.set_num_threads(1)
    tiny, rounds = PRESETS["tiny"], 1 if quick else 10
    one_camera = contract(CAMERAS[-1:], (64, 64), "fast")
    seconds, to_faithful = measured(
        policy_of(tiny, one_camera), tiny.ladder, rounds, lambda *_: None, time.process_time
    )
    print(
        f"one camera of 64x64, {len(one_camera.proprio)} proprioceptive values, 1 torch thread; {rounds}"
        " rounds by turns, medians\n"
    )
    show("tiny, CPU", seconds, to_faithful)
    answers = {f"{rung}_{number}_ms": 1000 * value for (rung, number), value in seconds.items()}
    if torch.cuda.is_available():
        answers |= on_gpu(PRESETS["svd-256"], contract(CAMERAS, (256, 256), "fast"), 1 if quick else 3)
    ratios = {f"ratio_to_faithful{'' if n == 1 else f'_{n}'}": to_faithful["one_pass", n] for n in ASKED}
    return ratios | answers


if __name__ == "__main__":
    harness.run(main)
