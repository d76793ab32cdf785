"""A curve as the commands `run`, `curve` and `compare` print it."""

from typing import TYPE_CHECKING

import click

from orchestrator.cli.terminal import print_wide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.report.held_out_curve import HeldOutCurve
    from orchestrator.report.sample_efficiency_curve import Curve


def print_curve(answer: "Curve | HeldOutCurve") -> None:
    """Print the points with their denominators, then the conclusions."""
    from orchestrator.report.held_out_curve import HeldOutCurve
    from orchestrator.report.reference_lines import reference_lines
    from orchestrator.report.shift_differences import shift_differences
    from orchestrator.report.simulator_versions import simulator_of

    print_columns(answer.table())
    nominal = None if isinstance(answer, HeldOutCurve) else answer
    if nominal and (played_on := simulator_of(nominal.tags)):
        click.echo(f"played on {played_on}")
    for line in reference_lines(nominal) if nominal else ():
        low, high = line.interval
        click.echo(f"for scale: {line.text} = {line.score.success_rate:.2f} [{low:.2f}, {high:.2f}]")
    if exchange := answer.exchange:
        click.echo("\nA demonstration is worth how many videos?")
        print_columns(exchange.table())
        click.echo(f"{exchange.note}\n")
    shifted = shift_differences(nominal) if nominal else ()
    where = nominal.where.text if nominal else ()
    which = [nominal.demonstrations.text] if nominal and nominal.demonstrations else []
    video = [nominal.video.text] if nominal and nominal.video else []
    for sentence in (*answer.answer(), *answer.comparisons, *shifted, *video, *where, *which):
        click.echo(str(sentence))


def print_columns(columns: "Sequence[tuple[str, list[str]]]") -> None:
    """Print a table, given as title and cells of every column."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title, _ in columns:
        left = title in ("policy", "videos of", "what videos do")
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    for row in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*row)
    print_wide(table)
