"""A checkpoint of an external policy as a `Policy`: its own serve command, asked over HTTP on this node."""

import json
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from orchestrator.checkpoints.external_card import PROGRAMS, WEIGHTS, ExternalCard
from orchestrator.config.policy_manifest import load
from orchestrator.external.command import Command, CommandRefusedError
from orchestrator.external.environment import prepare
from orchestrator.external.fit import PROTOCOL, TOUCH_S
from orchestrator.storage.base import open_storage
from policy.checkpoint_files import CheckpointError
from policy.http_policy import RemotePolicy
from policy.http_protocol import RemoteError
from policy.interface import ActionChunk, Contract, Observation, needs_of

SERVE_VARIABLE = "DEMOSCALE_SERVE"
"""Environment variable of a serve command: path of the JSON file that describes what it is to serve."""
HOST = "127.0.0.1"
POLL_S = 0.1
"""Seconds between attempts to connect to a server that starts."""
PORTS = 3
"""Ports that are tried: another process may take one between its choice and the server's start."""


class ServedCheckpoint:
    """The policy of one checkpoint, served by one process until it is closed or this process ends."""

    imagines = False

    def __init__(self, folder: Path, device: str, threads: int = 1) -> None:
        """Start the server and wait until it answers.

        folder: the checkpoint, which stays in place. device: cpu or cuda. Raises CheckpointError if its card
        is damaged, and CommandError, in one sentence with the last lines of the server's log, if it does not
        start, is not ready in time, or states another contract than the card.
        """
        card = ExternalCard.read(open_storage(str(folder)))
        policy = load(folder / PROGRAMS, copied=True)
        self._limits, self._card = policy.manifest.limits, card
        self._folder, self._touched = folder, time.monotonic()
        environment = prepare(policy, card.lock)
        with ExitStack() as opened:
            work = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="demoscale-serve-")))
            for attempt in range(1, PORTS + 1):
                port = _free_port()
                described = {
                    "version": PROTOCOL,
                    "policy": str(folder / PROGRAMS),
                    "checkpoint": str(folder / WEIGHTS),
                    "contract": card.contract.to_json(),
                    "host": HOST,
                    "port": port,
                    "device": device,
                    "threads": threads,
                    "options": dict(card.options),
                }
                (work / "serve.json").write_text(json.dumps(described, indent=1))
                variables = {
                    SERVE_VARIABLE: str(work / "serve.json"),
                    "OMP_NUM_THREADS": str(threads),
                    "PYTHONDONTWRITEBYTECODE": "1",  # the checkpoint's folder is shared and hashed
                }
                launch = environment.launch(
                    policy.manifest.serve,
                    folder / PROGRAMS,
                    work,
                    variables,
                    [folder],
                    device.startswith("cuda"),
                )
                command = opened.enter_context(
                    Command(launch, f"{policy.name}: its server", work / f"server-{attempt}.log")
                )
                if self._listens(command, port):
                    break
                said = command.failure(f"ended with exit code {command.poll()} before it answered")
                if attempt == PORTS or "in use" not in str(said).lower():
                    raise said
            self._command = command
            self._remote = RemotePolicy(
                f"http://{HOST}:{port}", timeout_s=self._limits.start_s, patience_s=2.0, token=""
            )
            self._check()
            # the first answer may have waited for weights; the others must be as quick as the manifest says
            self._remote = RemotePolicy(self._remote.url, self._limits.answer_s, patience_s=2.0, token="")
            self._opened = opened.pop_all()

    def _listens(self, command: Command, port: int) -> bool:
        """Wait until the port accepts connections; False if the command ended before. Raises CommandError if
        it takes longer than `limits.start_s`.
        """
        deadline = time.monotonic() + self._limits.start_s
        while command.poll(POLL_S) is None:
            try:
                socket.create_connection((HOST, port), timeout=POLL_S).close()
                return True
            except OSError:
                pass
            if time.monotonic() > deadline:
                command.kill()
                raise command.failure(f"did not listen on its port within {self._limits.start_s:g} s")
        return False

    def _check(self) -> None:
        try:
            stated, needs = self._remote.contract, needs_of(self._remote)
        except RemoteError as error:
            raise self._command.failure(f"is no policy server: {error}") from None
        if different := self._card.contract.mismatches(stated):
            raise CommandRefusedError(
                f"{self._command.what} states another contract than its checkpoint has"
                f" ({'; '.join(different)[:200]}); it must answer /contract with the one that it was given"
            )
        if (wanted := self._card.needs) != needs:
            raise CommandRefusedError(
                f"{self._command.what} states memory {needs.memory} and observation_steps"
                f" {needs.observation_steps}, its policy.yaml {wanted.memory} and {wanted.observation_steps};"
                " correct one of the two"
            )
        self.memory, self.observation_steps = needs.memory, needs.observation_steps

    @property
    def contract(self) -> Contract:
        """Conventions that the policy was trained with."""
        return self._card.contract

    @property
    def alive(self) -> bool:
        """Whether the server's process still runs."""
        return self._command.poll() is None

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return the server's chunks. Raises CommandError, with the last lines of its log, if it fails to
        answer, answers late or with something that is not valid; LostSessionError as any policy with memory.
        """
        if time.monotonic() - self._touched > TOUCH_S:
            self._touched = time.monotonic()
            os.utime(self._folder)  # the node keeps a checkpoint that is in use
        try:
            return self._remote.act(observations)
        except RemoteError as error:
            ended = self._command.poll(POLL_S)
            said = str(error) if ended is None else f"it ended with exit code {ended}"
            raise self._command.failure(f"failed to answer: {said}") from None

    def close(self) -> None:
        """End the server."""
        self._opened.close()


def served(folder: Path, fingerprint: str, device: str, threads: int = 1) -> Any:
    """Return the policy of a checkpoint whose fingerprint was compared with `fingerprint`.

    Raises CheckpointError if that is empty: programs of a checkpoint of unknown origin are not run; and
    the errors of `ServedCheckpoint`.
    """
    if not fingerprint:
        raise CheckpointError(
            f"{folder}: this checkpoint is served by programs of its own, which are run only for a checkpoint"
            " whose fingerprint is known"
        )
    return ServedCheckpoint(folder, device, threads)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind((HOST, 0))
        port: int = listening.getsockname()[1]
        return port
