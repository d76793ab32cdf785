"""What Ray's worker processes print: redacted, whatever prints it."""

import io
import logging
from pathlib import Path

import pytest

from orchestrator.cluster.worker_logs import RedactingStream

SECRET = "s3cr3t-of-the-bucket-91af"


def test_redacting_stream_removes_secrets_and_keeps_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    inner = io.StringIO()
    stream = RedactingStream(inner)
    print("step 3", f"token {SECRET}", "postgresql://ann:hunter22@db/mlflow", file=stream)
    stream.writelines(["a\n", f"{SECRET}\n"])
    assert inner.getvalue() == "step 3 token *** postgresql://***@db/mlflow\na\n***\n"
    assert not stream.closed


def test_redacting_stream_knows_a_secret_by_what_was_printed_before_it() -> None:
    inner = io.StringIO()
    stream = RedactingStream(inner)
    print("login with password:", "hunter2x", file=stream)
    print("the rest", end="", file=stream)
    assert inner.getvalue() == "login with password: ***\n"
    stream.flush()
    stream.write("x" * 70_000)
    assert inner.getvalue().endswith("***\nthe rest" + "x" * 70_000)


@pytest.mark.full
@pytest.mark.ray
def test_logs_of_ray_workers_hold_no_secret(ray_cluster: None) -> None:
    import ray

    @ray.remote(num_cpus=0)
    def leak(secret: str) -> str:
        import os
        import sys

        os.environ["AWS_SECRET_ACCESS_KEY"] = secret
        print(f"printed {secret}")
        print(f"also printed {secret}", file=sys.stderr)
        logging.getLogger("botocore").error("logged %s", secret)
        sys.stdout.flush()
        sys.stderr.flush()
        return ray.get_runtime_context().get_worker_id()

    worker = ray.get(leak.remote(SECRET))
    logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    texts = {file.name: file.read_text() for file in logs.glob(f"worker-{worker}-*")}
    assert sum(text.count("printed ***") for text in texts.values()) == 2, texts
    assert "logged ***" in "".join(texts.values())
    assert SECRET not in "".join(texts.values())
