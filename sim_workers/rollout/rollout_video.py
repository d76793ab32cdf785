"""Films of episodes: the scene and, for a policy that imagines, the camera pictures next to the imagined
ones.

Shapes: H W pixels; F frames of one imagination.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from policy.interface import Imagination
from sim_workers.rollout.episode import Env, Outcome
from sim_workers.rollout.prediction_error import Picture, PredictionError

FPS = 10
SCENE = 256  # pixels, both sides of the scene's picture
# pixels: labels above the pictures, space between columns, frame around the scene
STRIP, GAP, BORDER = 18, 4, 4
GROUND, INK, DONE = (24, 24, 24), (220, 220, 220), (60, 200, 90)


def mp4(frames: Sequence[Picture], fps: float) -> bytes:
    """Return an H.264 film that any browser plays, from (H, W, 3) pictures with even sides."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "20"}
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@dataclass(frozen=True)
class RecordedVideo:
    """Film and foresight of one episode."""

    mp4: bytes
    foresight: bytes | None = None
    """`PredictionError.to_json` as encoded JSON; None if the policy imagined nothing."""


class RolloutRecorder:
    """Recorder of one episode's film. The rendering thread reports every observation and control step;
    recording has no effect on the episode.

    A column shows the scene, framed in green while the task is done. If the policy imagines, a second column
    shows the pictures of its cameras at that moment, and a third the imagined pictures of its last
    observation that are nearest to that moment, with their lead in seconds.
    """

    def __init__(self, env: Env) -> None:
        self._env = env
        self._every = max(1, round(env.contract.control_hz / FPS))
        self._frames: list[Picture] = []
        self._steps, self._looked_at = 0, 0
        self._imagined: Imagination | None = None
        self._foresight = PredictionError()

    def observed(self, imagined: Imagination | None) -> None:
        """Record a policy observation after the last reported control step, with the policy's imagination.
        The first one starts the film.
        """
        self._looked_at, self._imagined = self._steps, imagined
        if imagined:
            self._foresight.observed(self._steps, imagined, self._seen())
        if not self._frames:
            self._record(self._env.succeeded)

    def stepped(self, steps: int, succeeded: bool) -> None:
        """Record the state after `steps` control steps, and whether the task is done in it."""
        self._steps = steps
        if self._foresight.expects(steps):
            self._foresight.saw(steps, self._seen())
        if steps % self._every == 0:
            self._record(succeeded)

    def mp4(self) -> bytes:
        """Return the film so far; for an episode that ended before the first observation, its current
        state.
        """
        if not self._frames:
            self._record(self._env.succeeded)
        return mp4(self._frames, self._env.contract.control_hz / self._every)

    def done(self, outcome: Outcome) -> RecordedVideo:
        """Return the film and the foresight of the episode, which ended with `outcome`."""
        told = self._foresight.to_json(outcome)
        return RecordedVideo(self.mp4(), json.dumps(told, indent=1).encode() if told else None)

    def _seen(self) -> dict[str, Picture]:
        """Return the current picture of each of the policy's cameras."""
        return {
            camera: self._env.picture(camera, self._env.contract.image_size)
            for camera in self._env.contract.cameras
        }

    def _record(self, succeeded: bool) -> None:
        env, hz = self._env, self._env.contract.control_hz
        scene = framed(env.picture(env.film_camera, (SCENE, SCENE)), DONE if succeeded else GROUND)
        columns = [(f"{self._steps / hz:.1f} s" + ("   done" if succeeded else ""), [scene])]
        if self._imagined:
            future, ahead = nearest(self._imagined, self._steps - self._looked_at)
            side = SCENE if len(env.contract.cameras) == 1 else SCENE // 2
            columns.append(("seen", [sized(picture, side) for picture in self._seen().values()]))
            columns.append(
                (
                    f"imagined, {ahead / hz:+.1f} s" if ahead else "imagined",
                    [sized(future[c], side) for c in env.contract.cameras],
                )
            )
        self._frames.append(side_by_side(columns))


def nearest(imagined: Imagination, steps: int) -> tuple[dict[str, Picture], int]:
    """Return, per camera, the imagined frame nearest to `steps` control steps after the observation, and that
    frame's lead in control steps.
    """
    count = len(next(iter(imagined.frames.values())))
    frame = min(range(count), key=lambda f: abs((f + 1) * imagined.stride - steps))
    return {camera: frames[frame] for camera, frames in imagined.frames.items()}, (
        frame + 1
    ) * imagined.stride - steps


def sized(picture: Picture, height: int) -> Picture:
    """Return the picture scaled to `height` pixels: enlarged by nearest neighbour, which invents no detail,
    reduced by averaging.
    """
    shown = Image.fromarray(picture)
    width = round(height * shown.width / shown.height)
    return np.asarray(
        shown.resize(
            (width, height), Image.Resampling.NEAREST if height >= shown.height else Image.Resampling.BOX
        )
    )


def framed(picture: Picture, colour: tuple[int, int, int]) -> Picture:
    """Return the picture with its outermost BORDER pixels in one colour."""
    copy = np.full_like(picture, colour)
    copy[BORDER:-BORDER, BORDER:-BORDER] = picture[BORDER:-BORDER, BORDER:-BORDER]
    return copy


def side_by_side(columns: Sequence[tuple[str, Sequence[Picture]]]) -> Picture:
    """Return one picture with even sides: each column is a label above its pictures."""
    widths = [max(picture.shape[1] for picture in pictures) for _, pictures in columns]
    height = STRIP + max(sum(len(picture) + GAP for picture in pictures) - GAP for _, pictures in columns)
    width = sum(widths) + GAP * (len(columns) - 1)
    sheet = Image.new("RGB", (width + width % 2, height + height % 2), GROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    x = 0
    for (label, pictures), column in zip(columns, widths, strict=True):
        draw.text((x + BORDER, 1), label, fill=INK, font=font)
        y = STRIP
        for picture in pictures:
            sheet.paste(Image.fromarray(picture), (x, y))
            y += len(picture) + GAP
        x += column + GAP
    return np.asarray(sheet)
