"""Policies with memory and frame history in episodes: what they are shown, and that a lost session is played
again from its start without another outcome.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import CHECKOUT

from orchestrator.testing.episodes import CAMERA, CONTRACT
from policy.interface import PRESENT_ONLY, ActionChunk, LostSessionError, Observation, PolicyNeeds
from sim_workers.envs.render_check import RenderFingerprint
from sim_workers.rollout import worker as worker_module
from sim_workers.rollout.episode import Outcome, run_episode
from sim_workers.rollout.policy_clients import RemoteServer
from sim_workers.rollout.suite import EpisodeRules, EpisodeSpec, Suite
from sim_workers.rollout.worker import PLAYINGS, Played, RolloutJob, RolloutWorker, Unanswered
from wandering_policies import LOG, REMEMBERS, playings, start_wanderer

SPEC = EpisodeSpec("Lift", 1_000_000, 1_000_000)


class Counter:
    """An environment whose state is the number of control steps."""

    contract = CONTRACT
    film_camera = "agentview"
    succeeds_at = 10**6

    def __init__(self) -> None:
        self.at, self.rendered = -1, list[int]()

    def reset(self, seed: int) -> None:
        self.at, self.rendered = 0, []

    def step(self, action: npt.NDArray[np.floating[Any]]) -> None:
        self.at += 1

    def observe(self, noise_seed: int) -> Observation:
        self.rendered.append(self.at)
        return Observation({}, np.full(1, self.at, np.float32), "count", noise_seed)

    @property
    def succeeded(self) -> bool:
        return self.at >= self.succeeds_at

    @property
    def physics(self) -> npt.NDArray[np.float64]:
        return np.array([float(self.at)])

    def picture(self, camera: str, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        return np.zeros((*size, 3), np.uint8)

    def close(self) -> None:
        pass


def chunk(execute: int) -> ActionChunk:
    return ActionChunk(np.zeros((16, 7), np.float32), execute)


def shown(execute: int, steps: int, horizon: int = 20, env: Counter | None = None) -> list[Observation]:
    """Return the observations of an episode whose policy executes `execute` actions per chunk."""
    looks: list[Observation] = []

    def act(observation: Observation) -> ActionChunk:
        looks.append(observation)
        return chunk(execute)

    needs = PolicyNeeds(observation_steps=steps)
    run_episode(env or Counter(), SPEC, EpisodeRules(horizon, 0), act, needs)
    return looks


# -- what a policy is shown ----------------------------------------------------------------------------------


@pytest.mark.parametrize("execute", [1, 2, 3, 8])
@pytest.mark.parametrize("steps", [1, 2, 4, 6])
def test_history_is_of_consecutive_control_steps(execute: int, steps: int) -> None:
    looks = shown(execute, steps)
    assert [look.step for look in looks] == [*range(0, 20, execute)]
    for look in looks:
        wanted = [max(0, look.step - k) for k in range(steps - 1, 0, -1)]
        assert [seen.step for seen in look.history] == wanted
        assert [seen.proprio.tolist() for seen in look.history] == [[at] for at in wanted]
        for seen in look.history:
            assert (seen.episode, seen.noise_seed, seen.history) == (look.episode, look.noise_seed, ())


def test_each_state_is_rendered_once_and_only_where_it_is_shown() -> None:
    for execute, steps, rendered in (
        (8, 1, [0, 8, 16]),
        (8, 3, [0, 6, 7, 8, 14, 15, 16]),
        (1, 3, [*range(20)]),
        (4, 9, [*range(17)]),
    ):
        env = Counter()
        shown(execute, steps, env=env)
        assert env.rendered == rendered


def test_nothing_is_rendered_for_an_observation_after_the_end() -> None:
    env = Counter()
    env.succeeds_at = 5
    shown(8, 8, env=env)
    assert env.rendered == [0, 1, 2, 3, 4]


def test_every_playing_is_a_session_of_its_own() -> None:
    first, second = shown(4, 1), shown(4, 1)
    (one,), (other,) = ({look.episode for look in looks} for looks in (first, second))
    assert one != other
    assert one.startswith(f"{SPEC.episode_id}-")
    assert len(one) <= 256


# -- a lost session ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forgetful:
    """A source of a policy with memory that loses its first `losses` sessions at their third observation."""

    losses: int

    def connect(self) -> "ForgetfulClient":
        return ForgetfulClient(self.losses)


class ForgetfulClient:
    memory = True

    def __init__(self, losses: int) -> None:
        self._losses, self.sessions = losses, list[str]()

    def act(self, observation: Observation) -> ActionChunk:
        if observation.step == 0:
            self.sessions.append(observation.episode)
        assert observation.episode == self.sessions[-1]
        if observation.step == 8 and len(self.sessions) <= self._losses:
            raise LostSessionError("the server was restarted")
        return chunk(4)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[RolloutWorker]:
    monkeypatch.setattr(worker_module, "make_env", lambda *_: Counter())
    fingerprint = RenderFingerprint("", "", "", "", "")
    monkeypatch.setattr(worker_module, "render_fingerprint", lambda _: fingerprint)
    made = RolloutWorker()
    yield made
    made._asking.shutdown()


def play(worker: RolloutWorker, losses: int) -> Any:
    job = RolloutJob(SPEC, EpisodeRules(20), CONTRACT, Forgetful(losses), film=True)
    return [*worker.play(job)][-1]


def test_worker_plays_an_episode_with_a_lost_session_again(worker: RolloutWorker) -> None:
    undisturbed, disturbed = play(worker, 0), play(worker, PLAYINGS - 1)
    assert isinstance(undisturbed, Played)
    assert isinstance(disturbed, Played)
    assert disturbed.outcome.played == undisturbed.outcome.played
    assert disturbed.film is not None
    assert undisturbed.film is not None
    assert worker._asker is not None
    sessions = worker._asker[1].sessions  # type: ignore[attr-defined]
    assert len(set(sessions)) == len(sessions) == PLAYINGS


def test_worker_gives_up_when_sessions_are_always_lost(worker: RolloutWorker) -> None:
    said = play(worker, 99)
    assert said == Unanswered("the server was restarted (in 6 playings of the episode)")


# -- with simulators, servers and processes ------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.sim
def test_history_changes_no_trajectory() -> None:
    """Rendering more states leaves physics, pictures and outcome as they are."""
    from sim_workers.envs.robosuite import SimEnv

    env = SimEnv("Lift", CONTRACT)
    played: dict[int, tuple[list[int], Outcome]] = {}
    for steps in (1, 4):
        pictures: list[int] = []

        def act(observation: Observation, pictures: list[int] = pictures) -> ActionChunk:
            pictures.append(int(observation.images[CAMERA].astype(int).sum()))
            rng = np.random.default_rng([observation.noise_seed, pictures[-1]])
            return ActionChunk(rng.uniform(-1, 1, (8, 7)).astype(np.float32), 6)

        needs = PolicyNeeds(observation_steps=steps) if steps > 1 else PRESENT_ONLY
        outcome = run_episode(env, SPEC, EpisodeRules(40), act, needs)
        played[steps] = pictures, replace(outcome, sim_s=0.0, policy_s=0.0)
    env.close()
    assert played[1] == played[4]


SUITE = Suite(("Lift",), 4, EpisodeRules(40))
Scored = tuple[dict[str, Any], dict[str, list[tuple[str, str]]], int]
"""Outcomes, the answers in each episode's last playing, and the number of other playings."""


def scored(workers: int, source: Any, log: Path, disturb: Callable[[], None] | None = None) -> Scored:
    """Play the suite with a policy that logs; `disturb` is called after the first outcome."""
    from sim_workers.rollout.pool import RolloutPool

    log.write_text("")
    pool = RolloutPool(workers, num_cpus=0.1)
    for spec in SUITE.episode_list():
        pool.submit(RolloutJob(spec, SUITE.rules, CONTRACT, source))
    outcomes: dict[str, Any] = {}
    for _, outcome, _ in pool.results():
        outcomes[outcome.spec.episode_id] = outcome.played
        if disturb and len(outcomes) == 1:
            time.sleep(0.5)  # the next episode is under way, of about ten observations of 0.1 s each
            disturb()
    pool.close()
    assert all(outcome["result"] != "error" for outcome in outcomes.values()), outcomes
    assert len(outcomes) == SUITE.episodes
    played = playings(log)
    last = {episode: sessions[-1] for episode, sessions in played.items()}
    return outcomes, last, sum(len(sessions) - 1 for sessions in played.values())


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.sim
def test_killed_policy_server_with_memory_changes_no_outcome(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    from sim_workers.rollout.ray_policy_client import RayServedPolicy

    log = tmp_path / "log"
    environment = {"env_vars": {LOG: str(log)}}
    server = start_wanderer(num_cpus=0, max_restarts=-1, max_task_retries=-1, runtime_env=environment)
    source = RayServedPolicy((server,), "remembers", needs=REMEMBERS)

    def kill() -> None:
        os.kill(ray.get(server.process_id.remote()), signal.SIGKILL)

    one = scored(1, source, log)
    assert one[2] == 0
    assert scored(2, source, log) == one
    outcomes, answers, again = scored(1, source, log, kill)
    assert (outcomes, answers) == one[:2]
    assert again == 1
    ray.kill(server)


SERVING = """
import sys
from orchestrator.testing.episodes import CONTRACT
from policy.http_server import make_server
from wandering_policies import REMEMBERS, Remember

class Remembering:
    contract, memory, observation_steps = CONTRACT, REMEMBERS.memory, REMEMBERS.observation_steps
    def __init__(self):
        self._act = Remember()
    def act(self, observations):
        return [self._act(one) for one in observations]

make_server(Remembering(), port=int(sys.argv[1])).serve_forever()
"""


class Serving:
    """A policy server in a process of its own."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self._log = f"http://127.0.0.1:{self.port}", log
        self.start()

    def start(self) -> None:
        path = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests" / "helpers")])
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVING, str(self.port)],
            env={**os.environ, "PYTHONPATH": path, LOG: str(self._log)},
        )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.sim
def test_killed_http_servers_with_memory_change_no_outcome(ray_cluster: None, tmp_path: Path) -> None:
    """A restarted server has lost its sessions; of two, the other one takes over."""
    log = tmp_path / "log"
    servers = [Serving(log), Serving(log)]

    def restart() -> None:
        servers[0].kill()
        servers[0].start()

    try:
        one = scored(1, RemoteServer(servers[0].url), log)
        assert one[2] == 0
        outcomes, answers, again = scored(1, RemoteServer(servers[0].url), log, restart)
        assert (outcomes, answers, again) == (*one[:2], 1)
        both = ",".join(server.url for server in servers)
        assert scored(2, RemoteServer(both), log, servers[0].kill)[:2] == one[:2]
    finally:
        for server in servers:
            server.kill()
