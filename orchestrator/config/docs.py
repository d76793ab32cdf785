"""jobs/README.md, written from the sweep file's schema: `python -m orchestrator.config.docs >
jobs/README.md`. A test keeps it true.
"""

import typing
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from orchestrator.config.sweep_config import SweepConfig, sections_in

HEAD = """# Sweep files, and what a Ray job runs

| file | what it is |
| --- | --- |
| `quickstart.yaml` | the first command, `make demo`, runs it |
| `lift_demo_efficiency.yaml` | demo count x action-free ratio on Lift in two stages, three seeds, with the baseline |
| `lift_next_arm.yaml` | the arms of a grid on Lift that say most about the demos for 90 %, for their cost ([docs/forecast.md](../docs/forecast.md#a-sweep-that-chooses-its-arms)) |
| `lift_exchange.yaml` | a demonstration of Lift is worth how many videos of the same task, another task, another robot, another camera, or failed rollouts ([docs/worth.md](../docs/worth.md#exchange-rates)) |
| `claims/fewer_demos.yaml`, `claims/fewer_demos_equal_compute.yaml` | does the video-action policy need fewer demonstrations of Lift than behaviour cloning without video, after equal steps, and with equal compute? ([docs/results/fewer_demos.md](../docs/results/fewer_demos.md)) |
| `claims/videos_replace_demos.yaml` | do videos of the same task replace demonstrations of Lift? 0, 1 and 3 per demonstration, five seeds ([docs/results/videos_replace_demos.md](../docs/results/videos_replace_demos.md)) |
| `claims/unlabelled_tasks.yaml` | do videos without actions help on tasks that are never demonstrated? Four of eight tasks around a cube are labelled; with a control and a ceiling ([docs/results/unlabelled_tasks.md](../docs/results/unlabelled_tasks.md)) |
| `claims/success_follows_video.yaml` | does success go with the generated video? 24 checkpoints on Lift, two kinds of weights that the video model starts from, three seeds ([docs/results/success_follows_video.md](../docs/results/success_follows_video.md)) |
| `lines_lift.yaml` | five policies side by side on Lift, three of them of other libraries; `make lines` runs it ([docs/lines_lift.md](../docs/lines_lift.md)) |
| `held_out.yaml` | recordings without a simulator; action error on held-out episodes |
| `libero10.yaml`, `robocasa24.yaml` | the paper's experiments on LIBERO-10 and RoboCasa-24, at its size; each says what it needs |
| `paper_modes.yaml`, `paper_video_horizon.yaml`, `paper_demo_counts.yaml`, `paper_unlabelled_tasks.yaml`, `paper_sampler.yaml`, `paper_execute.yaml` | the paper's ablations on RoboCasa-24 and their extensions ([docs/paper.md](../docs/paper.md)) |
| `quickstart.py` | `python -m jobs.quickstart [FILE]`: collect demonstrations of Lift, run `quickstart.yaml` or another sweep file, print the curve |
| other modules | entry points of Ray jobs (`demoscale submit`): each is one of the commands below under another name, `python -m jobs.collect` for example |

| command | module | what it does |
| --- | --- | --- |
| `demoscale run FILE` | `sweep.py` | runs a sweep |
| `demoscale collect --episodes N --store STORE` | `collect.py` | scripted demonstrations of a task into an episode store |
| `demoscale collect --policy P --episodes N --store STORE` | `collect.py` | rollouts of any policy, without actions, into an episode store |
| `demoscale import SRC STORE` | `ingest.py` | other formats (robomimic, LIBERO, RoboCasa, LeRobot, RLDS, MCAP, zarr, films) into a store |
| `demoscale export STORE PATH` | `export.py` | an episode store as a LeRobot v3 data set or a robomimic file |
| `demoscale replay SRC STORE` | `replay.py` | recordings with states or actions, played again in the installed simulator and drawn by this machine |
| `demoscale encode STORE --weights W` | `encode.py` | latents of all pictures and tokens of all sentences, stored with an episode store for `svd-256` without colour jitter |
| `demoscale pretrain STORE --out FOLDER` | `pretrain.py` | a video model of the `tiny` preset pretrained on a store's videos |
| `demoscale score P` | `score.py` | the score of any policy, without a sweep |
| `demoscale serve --policy P` | `serve.py` | a policy over HTTP |
| `demoscale sheet --task TASK --save FILE` | `sheet.py` | the shifted scenes of a task, in one picture |

All take `--help`. `demoscale submit --job collect --address http://head:8265 -- --episodes N --store STORE` runs one on a cluster.

## The sweep file, field by field

Choices only: no computation, no class paths. Unknown fields are refused, and all mistakes are reported at once. `--set train.steps=200` overrides
a field with the same validation. A field without a default must be there. The defaults of `train` are those of `preset: tiny`; `svd-256` has a
recipe of its own, the paper's ([docs/paper.md](../docs/paper.md)).

| field | default | meaning |
| --- | --- | --- |
"""


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """One table row per field, sections followed by their own."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        optional = field.default is None and next(sections_in(kind), None)
        section = optional or (kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None)
        default = "" if field.default is PydanticUndefined or section else f"`{_plain(field.default)}`"
        choices = (
            f" One of: {', '.join(f'`{c}`' for c in typing.get_args(kind))}."
            if typing.get_origin(kind) is typing.Literal
            else ""
        )
        if field.default_factory:
            default = "`{}`"
        meaning = " ".join((field.description or "").split())
        yield f"| `{prefix}{name}` | {default} | {meaning}{choices} |"
        if listed := next(_listed_in(kind), None):
            yield from rows(listed, f"{prefix}{name}[].")
        elif section:
            yield from rows(section, f"{prefix}{name}.")


def _listed_in(annotation: typing.Any) -> Iterator[type[BaseModel]]:
    """Yield the sections of which a field may hold a list."""
    forms = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple:
        yield from (form for form in forms if isinstance(form, type) and issubclass(form, BaseModel))
    else:
        for form in forms:
            yield from _listed_in(form)


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_plain(part) for part in value)}]"
    return (
        f"{value:g}" if isinstance(value, float) else "(empty)" if value is None else str(value) or "(empty)"
    )


def page() -> str:
    """Return the text of jobs/README.md."""
    return HEAD + "\n".join(rows(SweepConfig)) + "\n"


if __name__ == "__main__":
    print(page(), end="")
