"""Run benches, store their results in bench/results/ and render bench/README.md from all that is stored.

python -m bench                      every bench
python -m bench data rollout         those named
python -m bench --quick              a short run of each; stores nothing unless --save is given
python -m bench --page               render the page only, e.g. after a change of bench/notes/
"""

import subprocess
import sys

import click

from bench import harness
from bench.results import PAGE, Result, benches, render


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--quick", "short", is_flag=True, help="Make a short run of each bench and store nothing.")
@click.option("--save", is_flag=True, help="Store the results of short runs as well.")
@click.option("--page", is_flag=True, help="Measure nothing: render bench/README.md from what is stored.")
def main(names: tuple[str, ...], short: bool, save: bool, page: bool) -> None:
    """Run the benches NAME, by default all. Stops at the first that fails; what was measured before it stays
    stored.
    """
    if unknown := set(names) - set(benches()):
        raise click.BadParameter(
            f"no such bench: {', '.join(sorted(unknown))}; there are {', '.join(benches())}"
        )
    for name in () if page else names or benches():
        done = subprocess.run(
            [sys.executable, "-m", f"bench.{name}", *["--quick"] * short], stdout=subprocess.PIPE, text=True
        )
        click.echo(done.stdout, nl=False)
        if done.returncode:
            sys.exit(done.returncode)
        if save or not short:
            Result.of(done.stdout, short).save(name)
            PAGE.write_text(render())
    if page:
        PAGE.write_text(render())


if __name__ == "__main__":
    harness.run(main)
