"""A real MLflow server that tests kill and restart."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

START_S = 240.0
"""Seconds that a server may take to answer for the first time on a busy machine."""


class MlflowServer:
    """`mlflow server` on a free port of 127.0.0.1, with its database and artifacts in `folder`; a restarted
    server has the same URL and data.

    Raises RuntimeError, with the end of its log, if it exits or does not answer in time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()
        self.wait()

    def start(self) -> None:
        """Start the process; it accepts requests some seconds later (see `wait`)."""
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1", "--allowed-hosts", "*"]
        options += ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        options += ["--artifacts-destination", str(self._folder / "artifacts")]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options],
                env=environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until the server answers."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"MLflow's server did not start:\n{(self._folder / 'log').read_text()[-2000:]}"
                    ) from None
                time.sleep(0.2)

    def kill(self) -> None:
        """Kill the server with its worker processes; its data remain."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
