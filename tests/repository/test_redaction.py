"""Addresses and messages are printed without credentials."""

import pytest

from orchestrator.redaction import credentials_in, redact, strip_credentials
from orchestrator.tracking.tracking_errors import redacted as in_one_line


@pytest.mark.parametrize(
    ("uri", "without"),
    [
        ("https://me:hunter2@mlflow.example.org/path", "https://mlflow.example.org/path"),
        ("postgresql://me:p%40ss@db:5432/mlflow?password=hunter2", "postgresql://db:5432/mlflow"),
        ("https://token@host", "https://host"),
        ("postgresql://me:hunter/2@db/mlflow", "postgresql://db/mlflow"),
        ("sqlite:////data/a@b/mlflow.db", "sqlite:////data/a@b/mlflow.db"),
        ("http://localhost:5000", "http://localhost:5000"),
        ("", ""),
    ],
)
def test_strip_credentials_removes_them_from_a_uri(uri: str, without: str) -> None:
    assert strip_credentials(uri) == without


@pytest.mark.parametrize(
    "uri",
    [
        "https://mlflow.example.org:5000",
        "s3://results/a",
        "sqlite:////shared/a@b.db",
        "a:b",
        "http://head:8265/@me",
    ],
)
def test_redact_leaves_a_uri_without_credentials_unchanged(uri: str) -> None:
    assert not credentials_in(uri)
    assert redact(uri) == uri


def test_redact_hides_a_user_name_without_password() -> None:
    assert not credentials_in("postgresql://me@db/mlflow")
    assert redact("postgresql://me@db/mlflow") == "postgresql://***@db/mlflow"


@pytest.mark.parametrize(
    ("said", "without"),
    [
        ("mlflow: https://me:hunter2@host/path, and more", "mlflow: https://***@host/path, and more"),
        ("http://me:hunter@2@host", "http://***@host"),
        ("az://store/a?sv=1&sig=hunter2", "az://store/a?sv=1&sig=***"),
        ("https://hunter2@host and postgresql://me:hunter2@db", "https://***@host and postgresql://***@db"),
        (
            "GET https://host/?user=me&X-Amz-Signature=hunter2&day=1 failed",
            "GET https://host/?user=me&X-Amz-Signature=***&day=1 failed",
        ),
    ],
)
def test_redact_hides_credentials_within_a_text(said: str, without: str) -> None:
    assert credentials_in(said)
    assert redact(said) == in_one_line(said) == without


def test_in_one_line_hides_credentials_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    assert (
        in_one_line("with hunter2:\n  Basic bWU6aHVudGVyMg== was refused")
        == "with ***: Basic *** was refused"
    )
