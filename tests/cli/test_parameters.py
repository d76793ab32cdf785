"""Arguments of jobs that run on a cluster are refused before submission if they lead nowhere there."""

import os
import typing

import click
import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.main import main
from orchestrator.cli.parameters import InputPath, OutputPath, StorePath, check_arguments
from orchestrator.cli.score_command import score
from orchestrator.cli.submit_commands import JOBS
from orchestrator.config.schema import SuiteConfig

SECRET = "hunter2"
HERE = os.path.relpath(__file__)


def problems(job: str, arguments: str) -> list[str]:
    return check_arguments(JOBS[job], f"demoscale submit --job {job} --", arguments.split())


@pytest.mark.parametrize(
    ("job", "arguments", "sentence"),
    [
        ("collect", "--episodes 5 --store data/lift", "--store: data/lift is a place on this machine"),
        ("collect", "--episodes 5 --store=data/lift", "--store: data/lift is a place on this machine"),
        ("collect", "--episodes 5 --store file:data", "--store: file:data is a place on this machine"),
        ("import", f"{HERE} s3://robot-data/square", f"SRC: {HERE} is a place"),
        ("ingest", f"{HERE} s3://robot-data/square", f"SRC: {HERE} is a place"),
        ("import", "/shared/a.hdf5 data/square", "DST: data/square is a place"),
        ("import", "/shared/a.hdf5 s3://b/c --dry-run --sheet a.png", "--sheet: a.png would be lost"),
        ("score", "./mine --storage s3://results/lift", "CHECKPOINT: ./mine is a place"),
        ("score", f"http://h:80 --suite {HERE} --storage s3://results/lift", f"--suite: {HERE} is a place"),
        (
            "score",
            "examples.waypoints:make --storage s3://results/lift --save out.parquet",
            "--save: out.parquet would be lost with the job",
        ),
        (
            "score",
            f"http://me:{SECRET}@host:8000 --storage s3://results/lift",
            "CHECKPOINT: it holds credentials",
        ),
        (
            "import",
            f"/shared/a.hdf5 s3://b/c --cameras front=https://me:{SECRET}@host",
            "--cameras: it holds credentials",
        ),
        (
            "import",
            f"/shared/a.hdf5 s3://b/c --cameras front=https://me:{SECRET},{SECRET}@host",
            "the arguments: it holds credentials",
        ),
        ("score", "examples.waypoints:make --task Lift", "--storage: missing"),
        ("pretrain", "s3://robot-data/kitchen --out /shared/w", "--storage: missing"),
        ("pretrain", "s3://a/b --out s3://w/w --storage s3://a/b", "--out: s3://w/w would be lost"),
        ("encode", "s3://a/b --weights ./svd", "--weights: ./svd is a place"),
        ("encode", "s3://a/b --weights s3://w/w --downloads svd", "--downloads: svd would be lost"),
        ("export", "data/lift /shared/lift", "STORE: data/lift is a place"),
        ("export", "s3://a/b lift.hdf5 --format robomimic", "DST: lift.hdf5 would be lost"),
    ],
)
def test_check_arguments_refuses_places_of_this_machine_and_secrets(
    job: str, arguments: str, sentence: str
) -> None:
    (problem,) = problems(job, arguments)
    assert problem.startswith(sentence)
    assert SECRET not in problem


@pytest.mark.parametrize(
    ("job", "arguments"),
    [
        ("collect", "--task Lift --episodes 5 --store s3://robot-data/lift"),
        ("import", "/shared/a.hdf5 s3://robot-data/lift --task policy --label tests"),
        (
            "score",
            "examples.waypoints:make --storage s3://results/lift --task Lift --save /shared/out.parquet",
        ),
        ("score", "http://host:8000 --suite jobs/quickstart.yaml --storage s3://results/lift"),
        ("encode", "s3://robot-data/kitchen --weights stabilityai/stable-video-diffusion-img2vid-xt"),
        ("pretrain", "/shared/kitchen --out /shared/w --storage s3://results/kitchen"),
        ("export", "s3://robot-data/lift /shared/lift"),
    ],
)
def test_check_arguments_accepts_places_that_all_nodes_reach(job: str, arguments: str) -> None:
    assert problems(job, arguments) == []


def submitted(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["submit", "--address", "http://head:8265", *arguments])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--episodes", "5"], "Missing option '--store'"),
        (["--episodes", "none", "--store", "s3://a/b"], "Invalid value for '--episodes'"),
        (["--api-key", SECRET, "--episodes", "5", "--store", "s3://a/b"], "No such option '--api-key'"),
    ],
)
def test_submit_of_a_job_with_wrong_options_exits_two(arguments: list[str], sentence: str) -> None:
    done = submitted("--job", "collect", "--", *arguments)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert "demoscale submit --job collect -- [OPTIONS]" in done.stderr
    assert SECRET not in done.output


def test_submit_of_a_job_lists_all_its_problems() -> None:
    done = submitted("--job", "pretrain", "--", "data/lift", "--out", "weights")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[0].endswith("submit: 3 mistakes")


def test_submit_of_a_job_with_help_prints_that_of_its_command() -> None:
    done = submitted("--job", "collect", "--", "--help")
    assert done.exit_code == 0
    assert "demoscale collect --task Lift" in done.stdout


def test_job_parameters_that_name_places_have_a_place_type() -> None:
    """A folder of this machine does not travel because its option has no type."""
    places = ("store", "storage", "src", "dst", "checkpoint", "suite_file", "weights", "text", "mlflow")
    written = ("out", "save", "downloads", "sheet")
    for job, command in JOBS.items():
        for parameter in command.params:
            if parameter.name in (*places, *written):
                assert isinstance(parameter.type, StorePath | InputPath | OutputPath), (job, parameter.name)
            else:
                assert not isinstance(parameter.type, click.Path | click.File), (job, parameter.name)


def test_score_defaults_and_choices_equal_the_schema() -> None:
    fields, options = SuiteConfig.model_fields, {option.name: option for option in score.params}
    context = click.Context(score, **score.context_settings)
    for name in ("settle", "success", "rung"):
        assert options[name].get_default(context) == fields[name].default
    success = options["success"].type
    assert isinstance(success, click.Choice)
    assert tuple(success.choices) == typing.get_args(fields["success"].annotation)
    assert "[default: 10; x>=0]" in CliRunner().invoke(score, ["--help"]).stdout
