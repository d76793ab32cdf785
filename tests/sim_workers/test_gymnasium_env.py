"""The gymnasium environments: gymnasium's checker passes, and the physics is that of rollouts."""

import json

import pytest
from conftest import run

# One environment per process: each script is a process of its own.
CHECK = """
import warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", module="(?!gymnasium).*")
warnings.filterwarnings("ignore", message=".*(minimum|maximum) value is -?infinity")  # metres have no bounds
import gymnasium, numpy as np
from gymnasium.utils.env_checker import check_env
import sim_workers.envs.gymnasium_env
env = gymnasium.make("demoscale/Lift-v0", image_size=(48, 64), render_mode="rgb_array", CHUNK)
check_env(env.unwrapped, skip_render_check=True, skip_close_check=True)  # these would make a second environment
env.reset(seed=1)
assert env.render().shape == (256, 256, 3)
other = gymnasium.make("demoscale/Stack-v0")
try:
    other.reset()
except RuntimeError as error:
    print(error)
env.close()
env.close()
other.reset()
other.close()
"""

PLAY = """
import hashlib, json, sys
import numpy as np
from sim_workers.envs.gymnasium_env import RolloutEnv
chunk = json.loads(sys.argv[1])
env = RolloutEnv("Lift", image_size=(48, 64), chunk=chunk, horizon=24)
told = {"seeds": [], "starts": []}
for seed in (7, None, None, 7, None):
    seen, info = env.reset(seed=seed)
    told["seeds"].append(info["seed"])
    told["starts"].append(hashlib.sha256(b"".join(seen[name].tobytes() for name in sorted(seen))).hexdigest())
env.reset(seed=7)
sim, renders = env._env, 0
picture = sim.picture
def counted(*args):
    global renders
    renders += 1
    return picture(*args)
sim.picture = counted
actions = np.random.default_rng(0).uniform(-1, 1, (24, 7)).astype(np.float32)
for action in actions if chunk is None else actions.reshape(-1, chunk, 7):
    seen, reward, terminated, truncated, info = env.step(action)
told |= {"renders": renders, "physics": sim.physics.tolist(), "end": [reward, terminated, truncated], "info": info}
told["seen"] = {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in seen.items()}
print(json.dumps(told))
"""

# The scripted expert succeeds, so that an episode can be seen to end in the middle of a chunk.
SUCCEED = """
import json
import numpy as np
from sim_workers.demos.experts import expert_for
from sim_workers.envs.gymnasium_env import RolloutEnv
env = RolloutEnv("Lift", cameras=(), horizon=150)
seen, info = env.reset(seed=0)
expert, actions, rewards, ended = expert_for("Lift"), [], [], False
while not ended:
    actions.append(expert.act(env._env.state))
    seen, reward, ended, truncated, info = env.step(actions[-1])
    rewards.append(reward)
env.close()
assert rewards == [0.0] * (len(rewards) - 1) + [1.0] and not truncated
assert info == {"success": True, "first_success": len(actions), "instruction": "lift the red cube", "seed": 0}, info
chunked = RolloutEnv("Lift", cameras=(), chunk=len(actions) + 9)
chunked.reset(seed=0)
again, reward, ended, truncated, info = chunked.step(np.concatenate([actions, np.zeros((9, 7))]))
assert (reward, ended, truncated, info["first_success"]) == (1.0, True, False, len(actions))
assert np.array_equal(again["proprio"], seen["proprio"])
"""


def play(chunk: int | None) -> dict[str, object]:
    done = run("-W", "ignore", "-c", PLAY, json.dumps(chunk))
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.full
@pytest.mark.sim
@pytest.mark.parametrize("chunk", ["", "chunk=4"])
def test_gymnasium_checker_passes_and_a_second_simulator_is_refused(chunk: str) -> None:
    done = run("-c", CHECK.replace("CHUNK", chunk))
    assert done.returncode == 0, done.stderr
    assert "this process already has a simulator, of Lift; close it first" in done.stdout


@pytest.mark.full
@pytest.mark.sim
def test_gymnasium_seeds_determine_scenes_and_chunks_equal_single_steps() -> None:
    single, chunked = play(None), play(8)
    first, drawn, other, again, drawn_again = single["starts"]  # type: ignore[misc]
    assert first == again
    assert drawn == drawn_again, "a scene drawn after reset(seed) is a function of that seed"
    assert len({first, drawn, other}) == 3
    assert single["seeds"] == chunked["seeds"]
    for told in ("starts", "physics", "seen", "info", "end"):
        assert single[told] == chunked[told], told
    assert single["end"] == [0.0, False, True]
    assert (single["renders"], chunked["renders"]) == (24 * 2, 3 * 2), "two cameras, drawn once per step"


@pytest.mark.full
@pytest.mark.sim
def test_gymnasium_first_success_is_rewarded_and_ends_the_episode() -> None:
    done = run("-W", "ignore", "-c", SUCCEED)
    assert done.returncode == 0, done.stderr


def test_gymnasium_registers_every_task() -> None:
    import gymnasium

    from sim_workers.envs.gymnasium_env import RolloutEnv
    from sim_workers.envs.tasks import TASKS

    for task in TASKS:
        env = gymnasium.make(f"demoscale/{task}-v0", disable_env_checker=True)  # makes no simulator yet
        assert env.action_space.shape == (len(env.unwrapped.contract.action),)
        env.close()
    with pytest.raises(ValueError, match="there is no task Juggle; there are Lift, Stack"):
        RolloutEnv("Juggle")
