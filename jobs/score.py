"""Score any policy on a fixed list of simulated episodes, without a sweep: `demoscale score` by another name.

python -m jobs.score --policy http://127.0.0.1:8000 --task Lift --episodes 20
"""

import click

from orchestrator.cli_score import score

POLICY = click.Option(
    ["--policy", "checkpoint"], required=True, help="A checkpoint's folder or s3:// URI, models:/ID, http(s)://HOST:PORT, or MODULE:FUNCTION."
)
main = click.Command(
    "score",
    params=[POLICY, *(param for param in score.params if param.name != "checkpoint")],
    callback=score.callback,
    context_settings=score.context_settings,
    help="""Score POLICY: successes out of the episodes of every task and shift, the same episodes for every policy.

    Everything else is as `demoscale score --help` says it.

    \b
    python -m jobs.score --policy examples.waypoints:make --episodes 50 --save waypoints.jsonl
    python -m jobs.score --policy http://127.0.0.1:8000 --task Lift --shift nominal --shift lighting
    """,
)

if __name__ == "__main__":
    main()
