"""Clips: their frames, their actions, and their padding past an episode's end."""

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.data.clips import ClipBatch, cut_clip, shown_frames
from orchestrator.data.episode_format import decode, encode
from orchestrator.testing.episodes import CONTRACT, make_episode
from policy.config import ClipShape

SHAPE = ClipShape(frames_per_view=3, frame_stride=2, horizon=5)


def test_clip_past_the_end_repeats_frame_and_action_and_masks_them() -> None:
    whole = make_episode(length=10)
    clip = cut_clip(whole, 7, SHAPE, CONTRACT)
    assert whole.action is not None
    assert whole.proprio is not None
    assert clip.frame_mask.tolist() == [1, 1, 0]
    assert np.array_equal(clip.frames[0, 2], whole.frames[CONTRACT.cameras[0]][9])
    assert clip.action_mask.tolist() == [1, 1, 1, 0, 0]
    assert np.array_equal(clip.actions, whole.action[[7, 8, 9, 9, 9]])
    assert np.array_equal(clip.proprio, whole.proprio[7])


@pytest.mark.parametrize(
    ("start", "rows", "frames"),
    [(7, [4, 5, 6, 7], [4, 5, 6, 7, 9, 9]), (1, [0, 0, 0, 1], [0, 0, 0, 1, 3, 5])],
)
def test_clip_with_history_starts_earlier_and_keeps_its_actions(
    start: int, rows: list[int], frames: list[int]
) -> None:
    whole = make_episode(length=10)
    shape = SHAPE.model_copy(update={"history": 3})
    clip, plain = cut_clip(whole, start, shape, CONTRACT), cut_clip(whole, start, SHAPE, CONTRACT)
    assert whole.proprio is not None
    assert np.array_equal(clip.proprio, whole.proprio[rows])
    assert np.array_equal(clip.frames[0], whole.frames[CONTRACT.cameras[0]][frames])
    assert shown_frames([start], 10, shape).tolist() == [frames]
    assert clip.frame_mask.tolist() == [1, 1, 1, *plain.frame_mask]
    assert np.array_equal(clip.actions, plain.actions)
    assert clip.seed == plain.seed
    batch = ClipBatch.stack([clip, clip])
    assert (batch.frames.shape[:3], batch.proprio.shape[:2]) == ((2, 1, 6), (2, 4))


def test_history_is_absent_from_dumps_of_shapes_without_one() -> None:
    assert "history" not in SHAPE.model_dump()
    longer = SHAPE.model_copy(update={"history": 3})
    assert ClipShape.model_validate(longer.model_dump()) == longer


def test_clip_with_paper_padding_has_zero_actions_and_full_masks() -> None:
    whole = make_episode(length=10)
    clip = cut_clip(whole, 7, SHAPE.model_copy(update={"padding": "paper"}), CONTRACT)
    assert whole.action is not None
    assert clip.frame_mask.tolist() == [1, 1, 1]
    assert clip.action_mask.tolist() == [1] * 5
    assert np.array_equal(clip.actions[:3], whole.action[7:])
    assert not clip.actions[3:].any()


def test_clip_of_an_action_free_episode_has_an_empty_action_mask() -> None:
    for shape in (SHAPE, SHAPE.model_copy(update={"padding": "paper"})):
        clip = cut_clip(make_episode(labelled=False), 11, shape, CONTRACT)
        assert not clip.action_mask.any()
        assert clip.actions.shape == (5, 7)


def test_clip_without_proprioception_has_zeros() -> None:
    clip = cut_clip(replace(make_episode(labelled=False), proprio=None), 0, SHAPE, CONTRACT)
    assert clip.proprio.tolist() == [0] * len(CONTRACT.proprio)


@pytest.mark.parametrize("starts", [(0,), (9, 3), (11, 0, 5, 7)])
def test_clips_of_a_partly_decoded_episode_equal_those_of_the_whole(starts: tuple[int, ...]) -> None:
    data = encode(make_episode(length=12), 20.0)
    whole = decode(data, CONTRACT.cameras, with_actions=True)
    part = decode(
        data, CONTRACT.cameras, with_actions=True, wanted=shown_frames(starts, 12, SHAPE).ravel().tolist()
    )
    assert len(part.frames[CONTRACT.cameras[0]]) < 12 or len(starts) > 3
    ours, theirs = (
        ClipBatch.stack([cut_clip(e, start, SHAPE, CONTRACT) for start in starts]) for e in (part, whole)
    )
    assert ours.instructions == theirs.instructions
    for name in ("frames", "proprio", "actions", "action_mask", "frame_mask"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name))


def test_stack_keeps_views_apart_and_pictures_bytes() -> None:
    two = replace(
        make_episode(),
        frames={
            "left": make_episode(1).frames[CONTRACT.cameras[0]],
            "right": make_episode(2).frames[CONTRACT.cameras[0]],
        },
    )
    batch = ClipBatch.stack([cut_clip(two, start, SHAPE, CONTRACT) for start in (0, 4)])
    assert batch.frames.shape == (2, 2, 3, 64, 64, 3)
    assert batch.frames.dtype == np.uint8
    assert np.array_equal(batch.frames[1, 1, 0], two.frames["right"][4])
