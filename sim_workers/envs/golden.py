"""Golden trajectories and pictures of five tasks, by kind of processor, and how this machine compares.

    python -m sim_workers.envs.golden            compare with the golden ones
    python -m sim_workers.envs.golden --write    add those of this machine, or replace them
    python -m sim_workers.envs.golden --vary     which choices of kernels and instructions change them here?

A machine of a kind that is among the golden ones, with the same versions, must have the same bits. Another
kind may round differently: its physics are compared within TOLERANCE, and its pictures are not.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim_workers.arithmetic import Arithmetic, pinned_kernels
from sim_workers.envs.robosuite import SimEnv, contract

FILE = Path(__file__).with_suffix(".json")
TASKS = ("Lift", "Stack", "Door", "NutAssemblySquare", "PickPlaceCan")
CAMERA, SIZE, PROFILE = "robot0_eye_in_hand", (64, 64), "fast"
"""Pictures as those of the quickstart."""
SEED, STEPS = 3, 60
"""Scene, also the seed of the actions, and the number of control steps, three seconds."""
HASHED, DRAWN = (0, 1, 5, 20, STEPS), (0, STEPS)
"""Steps after which the physics are hashed, and after which a picture is."""
KEPT = (20, STEPS)
"""Steps after which the state itself is kept."""
TOLERANCE = {20: 1e-6, STEPS: 1e-3}
"""Largest difference of a position (m, rad) or velocity between processors, after a number of steps."""
PACKAGES = ("mujoco", "numpy", "robosuite", "numba", "llvmlite")
VARIATIONS: Mapping[str, Mapping[str, str]] = {
    "as in the pool": {},
    "OpenBLAS as it chooses": {"OPENBLAS_CORETYPE": ""},
    "OpenBLAS for Zen": {"OPENBLAS_CORETYPE": "Zen"},
    "OpenBLAS for SkylakeX": {"OPENBLAS_CORETYPE": "SkylakeX"},
    "OpenBLAS for Sandybridge": {"OPENBLAS_CORETYPE": "Sandybridge"},
    "OpenBLAS for Prescott": {"OPENBLAS_CORETYPE": "Prescott"},
    "OpenBLAS, two threads": {"OPENBLAS_NUM_THREADS": "2"},
    "numba for x86-64": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
    "numba for Haswell": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"},
    "numba not compiled": {"NUMBA_DISABLE_JIT": "1"},
    "numpy without AVX512": {
        "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"
    },
    "numpy without AVX2": {
        "NPY_DISABLE_CPU_FEATURES": ("AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL")
    },
    "glibc without AVX2": {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2_Usable,-AVX2,-FMA,-FMA_Usable,-AVX512F"},
    "torch's variables": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "Mesa with 128 bits": {"LP_NATIVE_VECTOR_WIDTH": "128"},
}
"""Environment variables by what they change, for `--vary`."""


@dataclass(frozen=True)
class Trace:
    """Trajectory and pictures of one task's fixed scene under the fixed actions."""

    physics: Mapping[int, str]
    """Hash of all positions and velocities by number of control steps."""
    pictures: Mapping[int, str]
    """Hash of the camera's picture by number of control steps."""
    states: Mapping[int, tuple[float, ...]]
    """Positions and velocities by number of control steps."""

    @classmethod
    def of(cls, env: SimEnv) -> "Trace":
        """Play the fixed actions in an environment that renders with PROFILE."""
        physics, pictures, states = dict[int, str](), dict[int, str](), dict[int, tuple[float, ...]]()
        rng = np.random.default_rng(SEED)
        env.reset(SEED)
        for step in range(STEPS + 1):
            if step:
                env.step(rng.uniform(-1, 1, len(env.contract.action)))
            if step in HASHED:
                physics[step] = _hash(env.physics)
            if step in KEPT:
                states[step] = tuple(env.physics.tolist())
            if step in DRAWN:
                pictures[step] = _hash(env.picture(CAMERA, SIZE))
        return cls(physics, pictures, states)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Trace":
        """Invert `dataclasses.asdict` after JSON."""
        physics, pictures = (
            {int(step): str(told) for step, told in data[name].items()} for name in ("physics", "pictures")
        )
        return cls(physics, pictures, {int(step): tuple(state) for step, state in data["states"].items()})

    def apart(self, other: "Trace") -> dict[int, float]:
        """Return the largest difference of the states by number of control steps."""
        return {
            step: float(np.abs(np.subtract(state, other.states[step])).max())
            for step, state in self.states.items()
        }


@dataclass(frozen=True)
class Golden:
    """Traces of one machine, with all that may explain a difference from another machine's."""

    arithmetic: Arithmetic
    versions: Mapping[str, str]
    """Of PACKAGES."""
    driver: str
    """GL backend, renderer and version (`sim_workers.envs.render.driver`)."""
    traces: Mapping[str, Trace] = field(default_factory=dict)
    """By task."""

    @classmethod
    def here(cls) -> "Golden":
        """Return this process's machine without traces. Call it after the first picture."""
        from sim_workers.envs.render import driver

        return cls(Arithmetic.here(), {name: version(name) for name in PACKAGES}, driver())

    def is_like(self, other: "Golden") -> bool:
        """Return whether the other machine must have the same physics."""
        mine, theirs = (
            (one.arithmetic.kind, one.arithmetic.blas, dict(one.versions)) for one in (self, other)
        )
        return mine == theirs

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-safe."""
        return {
            "arithmetic": self.arithmetic.to_json(),
            "versions": dict(self.versions),
            "driver": self.driver,
            "traces": {task: asdict(trace) for task, trace in self.traces.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Golden":
        """Invert `to_json`."""
        return cls(
            Arithmetic.from_json(data["arithmetic"]),
            data["versions"],
            data["driver"],
            {task: Trace.from_json(trace) for task, trace in data["traces"].items()},
        )


def read(file: Path = FILE) -> list[Golden]:
    """Return the golden machines; none if the file is missing."""
    return [Golden.from_json(one) for one in json.loads(file.read_text())] if file.exists() else []


@dataclass(frozen=True)
class Verdict:
    """How one task of this machine compares with the golden ones."""

    task: str
    reference: Arithmetic
    """Machine of the golden trace."""
    alike: bool
    """Whether that machine is of the same kind, so that every bit must be the same."""
    same_physics: bool
    same_pictures: bool | None
    """None: another driver drew the golden ones."""
    apart: Mapping[int, float]
    """`Trace.apart`."""

    @property
    def ok(self) -> bool:
        """Whether all bits are equal that must be, or the states are within TOLERANCE."""
        if self.alike:
            return self.same_physics and self.same_pictures is not False
        return all(self.apart[step] <= TOLERANCE[step] for step in TOLERANCE)

    def __str__(self) -> str:
        pictures = {None: "another driver's", True: "equal", False: "different"}[self.same_pictures]
        states = "equal" if self.same_physics else f"{max(self.apart.values()):.1e} apart at most"
        kind = "this kind of processor" if self.alike else "another processor or other versions"
        return f"{self.task}: physics {states}, pictures {pictures}; golden of {kind}, {self.reference.kind}"


def compare(task: str, trace: Trace, here: Golden, known: Sequence[Golden]) -> Verdict | None:
    """Return how a task's trace compares with that of a golden machine like this one, or else the first one;
    None if there is none.
    """
    having = sorted(
        (one for one in known if task in one.traces),
        key=lambda one: (not one.is_like(here), one.driver != here.driver),
    )
    if not having:
        return None
    golden = having[0]
    other = golden.traces[task]
    return Verdict(
        task,
        golden.arithmetic,
        golden.is_like(here),
        trace.physics == other.physics,
        trace.pictures == other.pictures if golden.driver == here.driver else None,
        trace.apart(other),
    )


def traced_here(task: str, env: SimEnv) -> Golden:
    """Return this machine with the trace of one task, made in an environment of this process that renders
    with PROFILE.
    """
    trace = Trace.of(env)
    return replace(Golden.here(), traces={task: trace})


def as_in_the_pool() -> dict[str, str]:
    """Return the environment variables with which the rollout pool simulates."""
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
    return threads | pinned_kernels()


def traced(task: str, variables: Mapping[str, str]) -> Golden:
    """Return this machine with the trace of one task, made in a fresh process with environment variables.

    Raises RuntimeError with the process's last line if it fails.
    """
    command = [sys.executable, "-W", "ignore", "-m", "sim_workers.envs.golden", "--trace", task]
    done = subprocess.run(
        command, env={**os.environ, **as_in_the_pool(), **variables}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{task}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return Golden.from_json(json.loads(done.stdout.splitlines()[-1]))


def _hash(values: npt.NDArray[Any]) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


def _vary(tasks: Sequence[str]) -> None:
    """Print per variation how the traces differ from those of this machine with the pool's variables."""
    base: dict[str, Golden] = {}
    print(f"{'variation':<26}{'task':<19}{'physics':>24}  pictures   BLAS")
    for name, variables in VARIATIONS.items():
        for task in tasks:
            try:
                own = traced(task, variables)
            except RuntimeError as error:
                print(f"{name:<26}{task:<19}  {error}", flush=True)
                continue
            first, trace = base.setdefault(task, own).traces[task], own.traces[task]
            moved = [step for step in HASHED if trace.physics[step] != first.physics[step]]
            apart = max(trace.apart(first).values())
            physics = f"from step {moved[0]}, {apart:.1e}" if moved else "equal"
            pictures = "equal" if trace.pictures == first.pictures else "different"
            print(f"{name:<26}{task:<19}{physics:>24}  {pictures:<10} {own.arithmetic.blas}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    if "--trace" in arguments:
        task = arguments[-1]
        env = SimEnv(task, contract((CAMERA,), SIZE, PROFILE))
        print(json.dumps(traced_here(task, env).to_json()))
        env.close()
        return 0
    if "--vary" in arguments:
        _vary([one for one in arguments if one in TASKS] or TASKS)
        return 0
    machines = {task: traced(task, {}) for task in TASKS}
    here, known = machines[TASKS[0]], read()
    traces = {task: machine.traces[task] for task, machine in machines.items()}
    if "--write" in arguments:
        others = [one for one in known if not (one.is_like(here) and one.driver == here.driver)]
        lines = [json.dumps(one.to_json()) for one in [*others, replace(here, traces=traces)]]
        FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n")
        print(f"{FILE}: {len(lines)} machines, this one is {here.arithmetic}")
        return 0
    verdicts = [compare(task, trace, here, known) for task, trace in traces.items()]
    print(f"this machine: {here.arithmetic}; {here.driver}")
    for verdict in verdicts:
        print(verdict or "no golden trace")
    return 0 if all(verdict and verdict.ok for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
