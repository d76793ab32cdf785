"""Contract test of an `Env`: what scores rely on, checked by playing.

`demoscale task check NAME` runs it on a task, `orchestrator.testing.check_env` in a package's own tests.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim_workers.rollout.episode import Env
from sim_workers.rollout.suite import FIRST_EVALUATION_SEED

STEPS = 8
FILM_SIZE = (48, 64)


@dataclass(frozen=True)
class EnvCheck:
    """Result of one check."""

    name: str
    problem: str = ""
    """What is wrong and how to repair it, as one sentence; empty if the check passed."""


@dataclass(frozen=True)
class _Played:
    """What a trajectory was, for comparison."""

    physics: tuple[bytes, ...]
    pictures: tuple[bytes, ...]
    proprio: tuple[bytes, ...]
    success: tuple[bool, ...]


def check_env(make_env: Callable[[], Env]) -> list[EnvCheck]:
    """Play a few steps of an environment, close it and make it again; return the result of every check.

    The actions are drawn once from [-1, 1] per dimension. An error of the environment ends the checks and is
    the last result.
    """
    checks: list[EnvCheck] = []
    try:
        _play_all(make_env, checks)
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        checks.append(EnvCheck("no error", f"after these checks it raised {type(error).__name__}: {said}"))
    return checks


def _play_all(make_env: Callable[[], Env], checks: list[EnvCheck]) -> None:
    first_seed, other_seed = FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + 1
    env = make_env()
    checks += _shapes(env, first_seed)
    one, other = _play(env, first_seed), _play(env, other_seed)
    again = _play(env, first_seed)
    env.close()
    env.close()
    checks.append(EnvCheck("a second close does nothing"))
    checks.append(_same("the same seed again, after another episode", one, again))
    checks.append(
        EnvCheck(
            "another seed is another scene",
            ""
            if one.physics[0] != other.physics[0]
            else "reset starts from the same state with two seeds: draw the scene from the seed",
        )
    )
    env = make_env()
    _play(env, other_seed)
    checks.append(_same("the same seed in an environment that is made again", one, _play(env, first_seed)))
    env.close()


def _same(name: str, one: _Played, other: _Played) -> EnvCheck:
    for what, mine, theirs in (
        ("physics", one.physics, other.physics),
        ("pictures", one.pictures, other.pictures),
        ("proprioception", one.proprio, other.proprio),
        ("success", one.success, other.success),
    ):
        at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b), None)
        if at is not None:
            when = "after the reset" if at == 0 else f"in step {at}"
            return EnvCheck(
                name,
                f"{what} differ {when}: state must depend on the seed of reset() and on the actions alone;"
                " look for a generator that is not seeded, and for state that a reset keeps",
            )
    return EnvCheck(name)


def _play(env: Env, seed: int) -> _Played:
    rng = np.random.default_rng(0)
    env.reset(seed)
    physics, pictures, proprio, success = [], [], [], []
    for step in range(STEPS + 1):
        if step:
            env.step(rng.uniform(-1, 1, len(env.contract.action)))
        seen = env.observe(noise_seed=step)
        physics.append(np.asarray(env.physics, np.float64).tobytes())
        pictures.append(b"".join(image.tobytes() for _, image in sorted(seen.images.items())))
        proprio.append(seen.proprio.tobytes())
        success.append(env.succeeded)
    return _Played(tuple(physics), tuple(pictures), tuple(proprio), tuple(success))


def _shapes(env: Env, seed: int) -> list[EnvCheck]:
    contract = env.contract
    env.reset(seed)
    seen = env.observe(noise_seed=7)
    checks = [
        EnvCheck(
            "the contract names actions and a rate",
            ""
            if contract.action and contract.control_hz > 0
            else "action is empty or control_hz not above 0",
        ),
        EnvCheck(
            "an observation has the contract's cameras",
            ""
            if tuple(seen.images) == contract.cameras
            else f"it has {', '.join(seen.images) or 'none'}, the contract {', '.join(contract.cameras)}",
        ),
        *(_picture(camera, image, contract.image_size) for camera, image in seen.images.items()),
        EnvCheck(
            "proprioception is (P,) float32, finite",
            _vector(seen.proprio, len(contract.proprio)),
        ),
        EnvCheck(
            "instruction is a sentence",
            "" if isinstance(seen.instruction, str) and seen.instruction else "it is empty or no text",
        ),
        EnvCheck(
            "the observation carries the noise seed",
            ""
            if seen.noise_seed == 7
            else f"noise_seed is {seen.noise_seed!r} in place of observe's argument",
        ),
        EnvCheck(
            "succeeded is True or False",
            "" if isinstance(env.succeeded, bool) else f"it is {type(env.succeeded).__name__}; return a bool",
        ),
        EnvCheck(
            "a fresh episode is not done",
            "" if not env.succeeded else "succeeded is True right after reset(); every episode would count",
        ),
        _picture(f"film camera {env.film_camera}", env.picture(env.film_camera, FILM_SIZE), FILM_SIZE),
    ]
    before = np.asarray(env.physics, np.float64)
    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        env.step(rng.uniform(-1, 1, len(contract.action)))
    checks.append(
        EnvCheck(
            "steps change physics",
            ""
            if not np.array_equal(before, env.physics)
            else "`physics` is the same after eight steps: return the positions of everything that moves",
        )
    )
    try:
        env.step(np.full(len(contract.action), np.nan))
    except Exception:
        checks.append(EnvCheck("an action that is not finite is refused"))
    else:
        checks.append(
            EnvCheck(
                "an action that is not finite is refused",
                "step() took nan: call sim_workers.rollout.divergence.refuse_action first",
            )
        )
    return checks


def _picture(camera: str, image: npt.NDArray[np.uint8], size: tuple[int, int]) -> EnvCheck:
    name = f"picture of {camera}"
    image = np.asarray(image)
    if image.shape != (*size, 3) or image.dtype != np.uint8:
        return EnvCheck(name, f"it is {image.dtype} {image.shape}; it must be uint8 {(*size, 3)}, RGB")
    if image.std() == 0:
        return EnvCheck(name, "it has a single colour: the renderer draws nothing")
    return EnvCheck(name)


def _vector(values: npt.NDArray[np.float32], count: int) -> str:
    if values.shape != (count,) or values.dtype != np.float32:
        return (
            f"it is {values.dtype} {values.shape}; the contract names {count} values, so float32 ({count},)"
        )
    return "" if np.isfinite(values).all() else "it holds a value that is not finite"
