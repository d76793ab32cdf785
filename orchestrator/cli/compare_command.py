"""`demoscale compare`: several sweeps on one curve, or one sweep beside published results."""

import json
from pathlib import Path

import click

from orchestrator.cli.curve_output import print_curve
from orchestrator.cli.mistakes import argument_error, report_user_errors
from orchestrator.cli.options import JSON
from orchestrator.cli.parameters import InputPath, OutputPath
from orchestrator.cli.tracked_sweep import tracked_at


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--storage",
    "storages",
    multiple=True,
    help="Folder or s3:// URI that a sweep keeps its results in, `runs` by default; given once it holds for"
    " all, else once per NAME.",
)
@click.option(
    "--mlflow",
    "servers",
    multiple=True,
    help="MLflow tracking URI, the database in the storage by default; given once it holds for all, else"
    " once per NAME.",
)
@click.option(
    "--published",
    type=InputPath(),
    help="YAML file of published results, which are shown beside the sweep; examples/published/ has some.",
)
@click.option(
    "--across-versions",
    is_flag=True,
    help="Also compare sweeps that were played on other versions of the simulator's packages, and on nothing"
    " else that differs.",
)
@click.option(
    "--save",
    type=OutputPath(path_type=Path),
    help="Also write the curve to a .png, .svg, .pdf or .json file.",
)
@click.option(
    "--html",
    type=OutputPath(path_type=Path),
    help="Also write a self-contained HTML page with all results and films.",
)
@JSON
@report_user_errors
def compare(
    names: tuple[str, ...],
    storages: tuple[str, ...],
    servers: tuple[str, ...],
    published: str | None,
    across_versions: bool,
    save: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Compare sweeps that were scored by the same protocol, read from MLflow alone: one curve, and
    comparisons on the scenes that they share. Sweeps of different protocols are refused with the field that
    differs, versions of the simulator included.

    Exit codes: 0 compared, 1 a sweep cannot be read, 2 the protocols differ or a mistake in what was asked.

    \b
    demoscale compare lift-video lift-no-noise
    demoscale compare lift lift --storage runs/tiny --storage s3://robot/runs --save both.png
    demoscale compare lift-video lift-no-noise --html both.html
    demoscale compare kitchen --published examples/published/robocasa-24.yaml
    """
    from orchestrator.cluster.ray_runtime import quiet
    from orchestrator.report.compared_sweeps import Beside, NamedSweep, compared, differences, labels
    from orchestrator.report.published import read_published, warnings_for
    from orchestrator.report.sample_efficiency_curve import curve_of_tracked
    from orchestrator.tracking.mlflow_reader import read_sweep
    from orchestrator.tracking.rollout_videos import films

    if len(names) == 1 and not published:
        raise argument_error("one sweep has nothing to be compared with; name another, or give --published")
    places = _each(storages or ("runs",), names, "--storage")
    uris = _each(servers or ("",), names, "--mlflow")
    results = read_published(published) if published else ()
    quiet()
    tracked = [tracked_at(name, place, uri) for name, place, uri in zip(names, places, uris, strict=True)]
    sweeps = [
        NamedSweep(label, read_sweep(*at)) for label, at in zip(labels(names, places), tracked, strict=True)
    ]
    for sweep in sweeps:
        single = curve_of_tracked(sweep.label, sweep.tracked)  # refuses one without scores
    curve = compared(sweeps, across_versions) if len(sweeps) > 1 else single
    differing, warnings = differences(sweeps), warnings_for(curve, results) if results else []
    found = curve.to_json() | {
        "differences": [{"field": one.field, "values": list(one.values)} for one in differing],
        "published": [result.to_json() for result in results],
        "warnings": warnings,
    }
    if save and save.suffix == ".json":
        save.write_text(json.dumps(found, indent=1))
    elif save:
        from orchestrator.report.matplotlib_plot import draw

        save.write_bytes(draw(curve, save.suffix.removeprefix("."), results))
    if html:
        videos = []
        for at, sweep in zip(tracked, sweeps, strict=True):
            own = {arm.run_id for arm in sweep.tracked.arms}
            videos += films(at.tracking_uri, [arm for arm in curve.arms if arm.run_id in own])
        named = tuple(sweep.label for sweep in sweeps)
        beside = Beside(named, tuple(differing), tuple(results), tuple(warnings))
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(curve.page(videos, beside), encoding="utf-8")
    if as_json:
        return click.echo(json.dumps(found, indent=1))
    print_curve(curve)
    for result in results:
        click.echo(str(result))
    for sentence in warnings:
        click.echo(f"note: {sentence}")
    if differing:
        click.echo(f"sweep files differ in ({' / '.join(sweep.label for sweep in sweeps)}):")
        for one in differing:
            click.echo(f"  {one}")


def _each(given: tuple[str, ...], names: tuple[str, ...], option: str) -> tuple[str, ...]:
    """Return one value per sweep."""
    if len(given) not in (1, len(names)):
        raise argument_error(
            f"{option} is given {len(given)} times for {len(names)} sweeps; give it once, or once per NAME"
        )
    return given * len(names) if len(given) == 1 else given
