"""What a curve says of the processors that trained its arms and computed their actions."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.report.sample_efficiency_curve import Curve
from sim_workers.arithmetic import Arithmetic
from synthetic_curves import scored

EPYC = Arithmetic(processor="AMD EPYC", model="25/17", instruction_set="AVX512", threads=1)
XEON = replace(EPYC, processor="Intel Xeon", model="6/143")


SEARCHED = {"data": {"demo_count": {"low": 2, "high": 8}}, "search": {"optuna": {"trials": 2}}}


@pytest.mark.parametrize("sweep", [{}, SEARCHED], ids=["grid", "ranges"])
@pytest.mark.parametrize(
    ("made", "acting", "sentences"),
    [
        ((), ("not recorded",), []),
        ((EPYC,), (str(EPYC),), []),
        ((XEON,), (str(EPYC),), ["Arms were trained on 2 kinds of processor"]),
        ((EPYC,), (str(XEON), "not recorded"), ["Actions were computed by 2 kinds of processor"]),
        ((EPYC, XEON), (str(XEON),), ["Arms were trained on 2 kinds", "Actions were computed by 2 kinds"]),
    ],
)
def test_curve_of_several_processors_says_so(
    made: tuple[Arithmetic, ...], acting: tuple[str, ...], sentences: list[str], sweep: dict[str, Any]
) -> None:
    first = replace(scored(2, 0.0, 2), trained_on=(EPYC,), acted_on=(str(EPYC),))
    other = replace(scored(8, 0.0, 6), trained_on=made, acted_on=acting)
    told = Curve("c", (first, other), sweep).report()
    found = [sentence for sentence in told.answer if "kinds of processor" in sentence]
    assert len(found) == len(sentences)
    assert all(sentence.startswith(start) for sentence, start in zip(found, sentences, strict=True))
    facts = dict(told.provenance)
    assert str(EPYC) in facts["acted on"]
    assert (": 2 arms" in facts["trained on"]) == (made == (EPYC,))
