"""`demoscale policy`: what concerns a policy alone. Needs neither Ray nor a simulator."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.mistakes import argument_error, report_user_errors
from orchestrator.cli.options import JSON, foreign_options
from orchestrator.cli.parameters import InputPath

if TYPE_CHECKING:
    from policy.interface import Policy


@click.group()
def policy() -> None:
    """Check a policy or a policy server before it is scored, and make the environments of external policies.

    \b
    demoscale policy check http://127.0.0.1:8000
    demoscale policy check my_package.my_policy:make
    demoscale policy prepare policies/lerobot_act
    """


@policy.command(short_help="Make the environments of external policies.")
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...", type=click.Path(path_type=Path))
@report_user_errors
def prepare(folders: tuple[Path, ...]) -> None:
    """Make the environments of external policies on this machine, before a sweep needs them. FOLDER holds a
    policy.yaml. An environment that is there already is kept.

    \b
    demoscale policy prepare policies/lerobot_act policies/robomimic_bc_rnn
    """
    from orchestrator.config.policy_manifest import load
    from orchestrator.external import environment

    for one in [load(folder) for folder in folders]:
        click.echo(f"{one.name}: {'is there' if environment.is_ready(one) else 'making its environment'}")
        environment.prepare(one)


@policy.command(short_help="Try a policy or its server on random observations.")
@click.argument("policy", type=InputPath())
@click.option(
    "--instruction", default="lift the red cube", show_default=True, help="Instruction of the observations."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the observations."
)
@click.option(
    "--calls",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Observations whose latency is measured.",
)
@click.option(
    "--p95-ms",
    type=click.FloatRange(0, min_open=True),
    default=float("inf"),
    help="Fail if the 95th percentile of the latency is above this; no limit by default.",
)
@click.option("--rung", default="", help="Sampler setting of a checkpoint (suite.rung); its own by default.")
@foreign_options
@JSON
@report_user_errors
def check(
    policy: str,
    instruction: str,
    seed: int,
    calls: int,
    p95_ms: float,
    rung: str,
    contract: str,
    layout: str,
    execute: int,
    as_json: bool,
) -> None:
    """Try POLICY on random observations: shapes, finite values, determinism by seed, independence of the rest
    of a batch, sessions, latency. One line per check; a failed one comes with its fix.

    POLICY is http(s)://HOST:PORT of a policy server, openpi://, vla-eval:// or groot://HOST:PORT of a server
    of theirs, a checkpoint's folder, or MODULE:FUNCTION that returns a policy. In tests:
    `policy.check_policy.check_policy`. Exit codes: 0 all passed, 1 a check failed, 2 a mistake in what was
    asked for.

    \b
    demoscale policy check http://127.0.0.1:8000
    demoscale policy check http://127.0.0.1:8000 --p95-ms 200
    demoscale policy check path/to/checkpoint --rung one_pass
    demoscale policy check openpi://gpu-1:8000 --contract contract.json --layout libero --execute 5
    demoscale policy check my_package.my_policy:make --json
    """
    from policy.check_policy import check_policy

    checks = check_policy(
        _policy(policy, rung, contract, layout, execute), None, instruction, calls, p95_ms / 1e3, seed
    )
    if as_json:
        click.echo(json.dumps([asdict(one) for one in checks], indent=1))
    else:
        for one in checks:
            click.echo(str(one))
    sys.exit(any(not one.passed for one in checks))


def _policy(name: str, rung: str, contract: str, layout: str, execute: int) -> "Policy":
    """Return the policy with a name, in this process or behind its URL. Raises SweepError if there is
    none.
    """
    from policy.foreign import SCHEMES, foreign_policy, is_foreign, read_contract
    from policy.foreign.layout import Layout
    from policy.http_protocol import RemoteError

    if is_foreign(name):
        if not contract:
            raise argument_error(f"--contract: missing; {name} states no contract (docs/serving.md)")
        try:
            stated = read_contract(Path(contract))
            return foreign_policy(name, stated, Layout.named(layout, stated) if layout else None, execute)
        except RemoteError as error:
            raise argument_error(str(error)) from None
    if contract or layout or execute:
        raise argument_error(
            f"--contract, --layout and --execute are for {', '.join(SCHEMES)}; leave them out"
        )
    if Path(name).is_dir():
        from policy.inference import TrainedPolicy

        return TrainedPolicy(Path(name), "cpu", rung)
    if rung:
        raise argument_error(f"--rung {rung}: only a checkpoint's folder has rungs; leave it out")
    if "://" in name:
        from policy.http_policy import RemotePolicy

        return RemotePolicy(name, patience_s=3.0)
    from sim_workers.rollout.policy_clients import FactoryPolicy

    sys.path.insert(0, "")
    try:
        return FactoryPolicy(name).make()
    except ValueError as error:
        raise argument_error(f"POLICY: {error}") from None
