"""Sample efficiency of synthetic lines whose answers are known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.stats.sample_efficiency import area, data_equivalence, demos_to_reach, estimated

COUNTS = np.array([10.0, 20.0, 40.0, 80.0])
rising = st.lists(st.floats(0.01, 0.99), min_size=4, max_size=4, unique=True).map(
    lambda rates: np.array(sorted(rates))
)


def test_area_of_a_flat_line_is_its_rate_and_of_a_straight_line_its_middle() -> None:
    assert area(COUNTS, np.full(4, 0.3)) == pytest.approx(0.3)
    assert area(COUNTS, np.array([0.2, 0.4, 0.6, 0.8])) == pytest.approx(0.5)
    assert area(COUNTS[:1], np.array([0.7])) == 0.7
    assert area(COUNTS, np.array([[0.2, 0.4, 0.6, 0.8], [0.1, 0.1, 0.1, 0.1]])) == pytest.approx([0.5, 0.1])


@given(rising, st.floats(0, 1))
def test_demos_to_reach_interpolates_linearly_in_log_demos(rates: np.ndarray, rate: float) -> None:
    found = demos_to_reach(COUNTS, rates, rate)
    if rate <= rates[0]:
        assert found == 0, "with fewer than were tried"
    elif rate > rates[-1]:
        assert found == math.inf
    else:
        assert np.interp(math.log(found), np.log(COUNTS), rates) == pytest.approx(rate, abs=1e-6)


def test_demos_to_reach_pools_a_dip_into_one_rate() -> None:
    assert demos_to_reach(COUNTS, np.array([0.2, 0.6, 0.4, 0.8]), 0.5) == pytest.approx(20), (
        "the dip and the bump before it are one rate of 0.5"
    )


@given(rising, st.floats(1.05, 3))
def test_data_equivalence_of_a_line_shifted_by_a_factor_is_the_factor(
    rates: np.ndarray, times: float
) -> None:
    assert data_equivalence((COUNTS, rates), (COUNTS / times, rates)) == pytest.approx(times)
    assert data_equivalence((COUNTS / times, rates), (COUNTS, rates)) == pytest.approx(1 / times)


def test_data_equivalence_of_lines_without_a_common_rate_is_unbounded() -> None:
    low, high = np.array([0.1, 0.1, 0.2, 0.2]), np.array([0.5, 0.6, 0.7, 0.8])
    assert data_equivalence((COUNTS, low), (COUNTS, high)) == math.inf
    assert data_equivalence((COUNTS, high), (COUNTS, low)) == 0
    assert math.isnan(data_equivalence((COUNTS, np.full(4, 0.5)), (COUNTS, np.full(4, 0.5))))


def test_estimated_interval_keeps_infinities_and_drops_nan() -> None:
    told = estimated(2.0, [1.0, 2.0, math.inf, math.inf, math.nan])
    assert (told.value, told.interval) == (2.0, (1.0, math.inf))
