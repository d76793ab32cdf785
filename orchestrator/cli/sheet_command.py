"""`demoscale sheet`: what a policy would see in the shifted worlds of a task: one row per shift and camera,
one column per variant.
"""

from pathlib import Path

import click

from orchestrator.cli.mistakes import argument_error, report_user_errors
from orchestrator.cli.options import HELP

LABEL = 16  # pixels high


@click.command(context_settings=HELP)
@click.option("--task", default="Lift", show_default=True, help="A robosuite task.")
@click.option(
    "--shift", "shifts", multiple=True, help="Which shifts; by default every one that the task has."
)
@click.option(
    "--cameras",
    default="agentview,robot0_eye_in_hand",
    show_default=True,
    help="Comma-separated robosuite cameras.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=1_000_000,
    show_default=True,
    help="Seed of the scene, the same in every world.",
)
@click.option(
    "--image-size", type=click.IntRange(16, 1024), default=160, show_default=True, help="Pixels, square."
)
@click.option("--render-profile", default="fast", show_default=True, help="Rendering quality.")
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The .png or .jpg to write.",
)
@report_user_errors
def sheet(
    task: str,
    shifts: tuple[str, ...],
    cameras: str,
    seed: int,
    image_size: int,
    render_profile: str,
    save: Path,
) -> None:
    """Write a picture of the first moment of one scene in every variant of the shifted worlds of TASK, beside
    the nominal one.

    \b
    demoscale sheet --task Lift --shift lighting --save lighting.jpg
    demoscale sheet --task Stack --cameras agentview --save stack.jpg
    """
    from PIL import Image, ImageDraw

    from sim_workers.envs.registry import contract_of, make_env, refusal, unknown_views
    from sim_workers.envs.tasks import TASKS
    from sim_workers.rollout.suite import SHIFTS, VARIANTS

    if task not in TASKS:
        raise argument_error(f"--task: unknown task {task}; known are {', '.join(TASKS)}")
    mistakes = [f"--shift: {mistake}" for shift in shifts if (mistake := refusal(task, shift))]
    views = tuple(cameras.split(","))
    mistakes += unknown_views(task, views, render_profile)
    if save.suffix not in (".png", ".jpg"):
        mistakes.append(f"--save: {save}: the sheet is a picture; give it a name that ends in .png or .jpg")
    if mistakes:
        raise argument_error(*mistakes)

    contract = contract_of(task, views, (image_size, image_size), render_profile)
    drawn = shifts or tuple(shift for shift in SHIFTS if shift != "nominal" and not refusal(task, shift))
    worlds = [("nominal", 0), *((shift, variant) for shift in drawn for variant in range(VARIANTS))]
    pictures = {}
    for shift, variant in worlds:
        env = make_env(task, contract, shift, variant)
        env.reset(seed)
        pictures[shift, variant] = env.observe(0).images
        env.close()  # before the next is made: two in one process spoil each other's pictures

    cell = image_size + LABEL
    picture = Image.new("RGB", ((VARIANTS + 1) * image_size, len(drawn) * len(views) * cell), "white")
    pen = ImageDraw.Draw(picture)
    for row, (shift, view) in enumerate((shift, view) for shift in drawn for view in views):
        for column, (name, variant) in enumerate(
            [("nominal", 0), *((shift, variant) for variant in range(VARIANTS))]
        ):
            label = view if column == 0 else f"{name} {variant}"
            pen.text((column * image_size + 2, row * cell + 2), label, fill="black")
            picture.paste(
                Image.fromarray(pictures[name, variant][view]), (column * image_size, row * cell + LABEL)
            )
    picture.save(save, quality=85)
    click.echo(f"drew {len(worlds)} worlds of {task}: {save}")
