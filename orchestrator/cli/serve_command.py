"""`demoscale serve`: a policy over HTTP, to be scored from another environment or another machine."""

import os
from pathlib import Path

import click

from orchestrator.cli.mistakes import argument_error, report_user_errors
from orchestrator.cli.options import HELP


@click.command(context_settings=HELP)
@click.option(
    "--policy", required=True, help="A checkpoint's folder, or MODULE:FUNCTION that returns a policy."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; see --token-env.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one."
)
@click.option("--device", default="cpu", show_default=True, help="Device of a checkpoint: cpu, cuda, cuda:1.")
@click.option("--rung", default="", help="Sampler setting of a checkpoint (suite.rung); its own by default.")
@click.option(
    "--join",
    is_flag=True,
    help="Answer requests that wait as one batch; needs a policy that rounds alike in every batch.",
)
@click.option(
    "--token-env",
    help="Variable with the token that clients must send; DEMOSCALE_POLICY_TOKEN by default, if it is set.",
)
@report_user_errors
def serve(
    policy: str, host: str, port: int, device: str, rung: str, join: bool, token_env: str | None
) -> None:
    """Answer GET /contract and POST /act with POLICY until interrupted (docs/http-policy.md).

    Clients of this project send the token that their DEMOSCALE_POLICY_TOKEN holds.

    \b
    demoscale serve --policy path/to/checkpoint --port 8000
    demoscale serve --policy examples.waypoints:make
    """
    from policy.http_limits import TOKEN
    from policy.http_protocol import RemoteError
    from policy.http_server import make_server
    from policy.interface import Policy
    from sim_workers.rollout.policy_clients import FactoryPolicy

    token = os.environ.get(token_env or TOKEN, "").strip()
    if token_env and not token:
        raise argument_error(
            "--token-env: the variable that it names is not set; set that variable to the token, and write"
            " its name here"
        )
    acting: Policy
    if Path(policy).is_dir():
        from policy.inference import TrainedPolicy

        acting = TrainedPolicy(Path(policy), device, rung)
    else:
        try:
            acting = FactoryPolicy(policy).make()
        except ValueError as error:
            raise argument_error(f"--policy: {error}") from None
    try:
        server = make_server(acting, host, port, join, token=token)
    except RemoteError as error:
        raise argument_error(f"--token-env: {error}") from None
    except OSError as error:
        raise argument_error(f"--port: cannot listen on {host}:{port} ({error.strerror})") from None
    with server:
        click.echo(
            f"{policy} answers at"
            f" http://{host}:{server.server_address[1]}{', to those who send the token' if token else ''};"
            " Ctrl-C ends it"
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("stopped")
