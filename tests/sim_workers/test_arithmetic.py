"""Arithmetic of a process: what is recorded of a processor, and when results of several ones are mixed."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sim_workers import arithmetic
from sim_workers.arithmetic import Arithmetic, different_arithmetic

EPYC = Arithmetic(
    vendor="AuthenticAMD", processor="AMD EPYC", model="25/17", instruction_set="AVX512", threads=2
)
OLDER_EPYC = replace(EPYC, model="25/1", instruction_set="AVX2")
H200 = replace(EPYC, device="NVIDIA H200")
CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C
flags\t\t: fpu fma avx2 avx512f avx512bw avx512dq {last}

processor\t: 1
model name\t: another
"""


@pytest.mark.parametrize(("last", "instructions"), [("avx512vl", "AVX512"), ("", "AVX2")])
def test_arithmetic_without_torch_names_processor_instructions_and_limits(
    last: str, instructions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(CPUINFO.format(last=last))
    monkeypatch.setattr(arithmetic, "CPUINFO", file)
    monkeypatch.setattr(arithmetic, "_cpuinfo", arithmetic._cpuinfo.__wrapped__)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    here = Arithmetic.here()
    assert (here.vendor, here.model, here.threads, here.device) == ("GenuineIntel", "6/143", 1, "cpu")
    assert here.kind == (
        f"Intel(R) Xeon(R) Platinum 8481C (family 6 model 143), {instructions}, OPENBLAS_CORETYPE=Haswell"
    )
    assert Arithmetic.from_json(here.to_json() | {"a later field": 1}) == here


def test_arithmetic_with_torch_has_its_instructions_and_threads() -> None:
    import torch

    here = Arithmetic.here()
    assert here.instruction_set == torch.backends.cpu.get_cpu_capability()
    assert here.threads == torch.get_num_threads()
    assert here.processor
    assert str(os.environ.get("ATEN_CPU_CAPABILITY", "")) in str(here)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ([[EPYC], [EPYC], []], ""),
        ([[], []], ""),
        (
            [[EPYC], [EPYC, OLDER_EPYC], []],
            "2 kinds of processor, which round differently, so a difference between arms may be one between"
            " these (number of arms: AMD EPYC (family 25 model 17), AVX512: 1; AMD EPYC (family 25 model 17),"
            " AVX512 and then AMD EPYC (family 25 model 1), AVX2: 1; not recorded: 1).",
        ),
        ([[EPYC], [H200]], "2 kinds of processor"),
        ([[EPYC], [replace(EPYC, threads=1)]], "2 numbers of threads"),
    ],
)
def test_different_arithmetic_names_kinds_and_arms(made: Sequence[Sequence[Arithmetic]], told: str) -> None:
    sentence = different_arithmetic(made)
    assert sentence.startswith(f"Arms were trained on {told}") if told else not sentence
