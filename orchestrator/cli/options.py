"""Options that several commands share, of one name and meaning."""

import click

HELP = {"help_option_names": ["-h", "--help"]}
"""Settings of commands that are also programs of their own, `python -m jobs.*`; others have the group's."""
STORAGE = click.option(
    "--storage", default="runs", show_default=True, help="Folder or s3:// URI the sweep keeps its results in."
)
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Override a field, e.g. --set train.steps=200. Repeatable.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
