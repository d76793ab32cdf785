"""Half of the tasks labelled, in miniature: Lift demonstrated, Stack with videos or without, from recording to
curve.
"""

import json
from pathlib import Path

import pytest

from command_session import outputs

pytestmark = [pytest.mark.stress, pytest.mark.e2e, pytest.mark.ray, pytest.mark.sim]


def test_sweep_with_an_unlabelled_task_and_a_control_shows_both_groups_of_tasks(tmp_path: Path) -> None:
    store, file = tmp_path / "store", tmp_path / "sweep.yaml"
    file.write_text(f"""
name: halves
data: {{episodes: {store}, demo_count: [1], labelled_tasks: [Lift], unlabelled_videos: 2}}
policy:
  lines:
    - {{name: videos, policy: video_action}}
    - {{name: no_videos, policy: video_action, data: {{unlabelled_videos: 0}}}}
train: {{steps: 2, batch_size: 2, checkpoint_every: 2, warmup_steps: 1}}
suite: {{tasks: [Lift, Stack], episodes: 2, horizon: 8, video_clips: 0}}
rollout_actors: 1
storage: {tmp_path / "runs"}
""")
    recording = ("--episodes", "2", "--workers", "1", "--store", str(store))
    commands = [
        *(("collect", "--task", task, *recording) for task in ("Lift", "Stack")),
        ("run", str(file)),
        ("curve", "halves", "--storage", str(tmp_path / "runs"), "--json"),
    ]
    *_, curve = outputs(commands)
    told = json.loads(curve)["labels"]
    found = {
        (point["policy"], line["group"]): (point["tasks"], point["episodes"], point["unlabelled_videos"])
        for line in told["lines"]
        for point in line["points"]
    }
    assert found == {
        ("videos", "labelled"): (["Lift"], 2, 2),
        ("videos", "unlabelled"): (["Stack"], 2, 2),
        ("no_videos", "labelled"): (["Lift"], 2, 0),
        ("no_videos", "unlabelled"): (["Stack"], 2, 0),
    }
    assert [(one["group"], one["differ_in"]) for one in told["comparisons"]] == [
        ("labelled", "videos"),
        ("unlabelled", "videos"),
    ]
