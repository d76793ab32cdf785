"""A sweep whose processes are killed at random ends as if nothing had happened. The longer look: `make chaos`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.testing.seaweedfs import NoServerError
from stress.chaos import chaos, harmless
from stress.disturbed import KINDS

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.sim, pytest.mark.weed]


@pytest.mark.timeout(1800)
def test_kills_of_every_kind_change_nothing(tmp_path: Path, lift_store: Path, s3_environment: Callable[[dict[str, str]], None]) -> None:
    try:
        answers = chaos(tmp_path, lift_store, kills=len(KINDS), seed=0, point=s3_environment)
    except NoServerError as error:
        pytest.skip(str(error))
    assert answers["kills_by_kind"] == dict.fromkeys(KINDS, 1)
    assert answers["arms"] == 6
    assert answers["episodes"] == 6 * 2 * 3
    assert harmless(answers), answers
