"""Arithmetic of a process: processor, instruction set, threads and linear algebra, by which sums are rounded.

Two machines with the same packages and seeds may round differently, so results carry a description of the
arithmetic that made them. It is never part of a key: work goes on on another machine.
"""

import os
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
LIMITS = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NPY_DISABLE_CPU_FEATURES",
    "NUMBA_CPU_FEATURES",
    "NUMBA_CPU_NAME",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
)
"""Environment variables with which libraries choose other instructions than the processor's best."""
KERNELS = "Haswell"
"""Kernels of OpenBLAS in processes that simulate, by its names. By default it chooses them by processor, and
those for AVX512 round the controllers' matrices differently from those for AVX2 (`sim_workers.envs.golden
--vary`).
"""
BETWEEN_KINDS = "; "
"""Text between several arithmetics in words."""
NOT_RECORDED = "not recorded"
"""Kind of a result of an earlier version, or of a policy on a machine that is unknown."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Processor, instructions, device and threads of a process. Empty text: unknown."""

    vendor: str = ""
    """Such as AuthenticAMD."""
    processor: str = ""
    """Model name. Virtual machines may all have the same one."""
    model: str = ""
    """Numbers of the processor's family and model, such as 25/17."""
    instruction_set: str = ""
    """As torch names the one that it uses: DEFAULT, AVX2, AVX512; without torch, the processor's best."""
    limits: tuple[str, ...] = ()
    """LIMITS that are set, as NAME=VALUE."""
    device: str = "cpu"
    """`cpu`, or torch's name of the GPU."""
    threads: int = 1
    """Threads of one operation on a CPU."""
    blas: str = ""
    """Linear algebra of numpy with its version and kernel, such as openblas 0.3.23 Zen."""

    @classmethod
    def here(cls, device: str = "cpu") -> "Arithmetic":
        """Return the arithmetic of this process; of the libraries only what it has imported. device: as torch
        takes it.
        """
        info, torch = _cpuinfo(), sys.modules.get("torch")
        model = "/".join(filter(None, (info.get("cpu family", ""), info.get("model", ""))))
        return cls(
            vendor=info.get("vendor_id", ""),
            processor=info.get("model name", "") or platform.machine(),
            model=model,
            instruction_set=(torch.backends.cpu.get_cpu_capability() if torch else _best_instructions(info)),
            limits=tuple(f"{name}={os.environ[name]}" for name in LIMITS if os.environ.get(name)),
            device=torch.cuda.get_device_name(device) if torch and device.startswith("cuda") else device,
            threads=torch.get_num_threads() if torch else _threads_without_torch(),
            blas=_blas(),
        )

    @property
    def kind(self) -> str:
        """Kind of processor in words: model, instructions, limits, and the device unless it is the CPU."""
        if self.device != "cpu":
            return self.device
        name = self.processor or "an unknown processor"
        numbers = f" (family {self.model.replace('/', ' model ')})" if self.model else ""
        return ", ".join(filter(None, (f"{name}{numbers}", self.instruction_set, *self.limits)))

    def __str__(self) -> str:
        """Return the kind, the host of a GPU, threads and linear algebra on one line."""
        on = "" if self.device == "cpu" else f"on {self.processor}"
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        return ", ".join(filter(None, (self.kind, on, threads, self.blas)))

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-safe."""
        return asdict(self) | {"limits": list(self.limits)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Arithmetic":
        """Return what `to_json` wrote; fields of other versions are left out."""
        known = {one.name: data[one.name] for one in fields(cls) if one.name in data}
        return cls(**known | {"limits": tuple(known.get("limits", ()))})


def different_arithmetic(made: Iterable[Sequence[Arithmetic]]) -> str:
    """Return the sentence that arms were trained with different arithmetic; empty if they were not.

    made: per arm the arithmetics with which it was trained, one after the other; none if not recorded.
    """
    arms = [*made]
    for what, words in (("kinds of processor", _kind), ("numbers of threads", _threads)):
        counted = Counter(" and then ".join(dict.fromkeys(map(words, arm))) or NOT_RECORDED for arm in arms)
        several = {words(one) for arm in arms for one in arm}
        if len(several) > 1:
            told = "; ".join(f"{name}: {number}" for name, number in sorted(counted.items()))
            return (
                f"Arms were trained on {len(several)} {what}, which round differently, so a difference"
                f" between arms may be one between these (number of arms: {told})."
            )
    return ""


def _kind(arithmetic: Arithmetic) -> str:
    return arithmetic.kind


def _threads(arithmetic: Arithmetic) -> str:
    return f"{arithmetic.threads}"


def pinned_kernels() -> dict[str, str]:
    """Return the environment variables of a process that simulates, with which all x86 processors since 2013
    round alike; empty on others. A choice in this process's environment is kept.

    They take effect if they are set before numpy is imported.
    """
    chosen = os.environ.get("OPENBLAS_CORETYPE", "")
    if chosen or _best_instructions(_cpuinfo()) in ("AVX2", "AVX512"):
        return {"OPENBLAS_CORETYPE": chosen or KERNELS}
    return {}


@cache
def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entries of /proc/cpuinfo."""
    lines = CPUINFO.read_text().split("\n\n")[0].splitlines() if CPUINFO.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _best_instructions(info: Mapping[str, str]) -> str:
    flags = {*info.get("flags", "").split()}
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
        return "AVX512"
    return "AVX2" if {"avx2", "fma"} <= flags else "DEFAULT" if flags else ""


def _threads_without_torch() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def _blas() -> str:
    """Return numpy's BLAS with version and kernel; empty if it is not loaded, or without threadpoolctl."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return ""
    loaded = [one for one in threadpool_info() if one["user_api"] == "blas"]
    # scipy, torch and OpenCV may bring others
    of_numpy = [one for one in loaded if "numpy" in one["filepath"]] or loaded
    names = ("internal_api", "version", "architecture")
    return " and ".join(
        sorted({" ".join(str(one[name]) for name in names if one.get(name)) for one in of_numpy})
    )
