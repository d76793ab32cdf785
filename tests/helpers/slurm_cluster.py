"""A SLURM of two nodes on this machine, without systemd: munged, slurmctld and two slurmd, all in the
foreground, on loopback ports.

Debian's packages: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PATH = f"/usr/local/sbin:/usr/sbin:{os.environ['PATH']}"
"""PATH with the folders where Debian installs the daemons, which only root's has."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
MISSING = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
MpiDefault=none
MailProg=/bin/true
SwitchType=switch/none
SlurmdParameters=config_overrides
KillWait=10
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=500
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=500
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Return the standard output of a SLURM command, which must succeed."""
        done = subprocess.run(
            command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}\n{self.logs()}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Return the job's state, such as RUNNING."""
        return dict(
            field.partition("=")[::2]
            for field in self.run("scontrol", "--oneliner", "show", "job", job).split()
        )["JobState"]

    def logs(self) -> str:
        return "\n".join(
            f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log"))
        )


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def slurm() -> Iterator[Slurm]:
    """Yield two idle nodes; everything is stopped and removed at the end."""
    # A short path: munge's socket has a name of 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    configuration = CONFIGURATION.format(
        host=host, user=getpass.getuser(), folder=folder, ports=free_ports(3)
    )
    (folder / "slurm.conf").write_text(configuration)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    cluster = Slurm(folder, inherited | {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")})
    munged = ["munged", "--force", "--foreground"]
    munged += [
        f"--socket={folder}/munge.socket",
        f"--key-file={folder}/munge.key",
        f"--pid-file={folder}/munge.pid",
        f"--seed-file={folder}/munge.seed",
    ]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for name, command in (
            ("munged", munged),
            ("slurmctld", ["slurmctld", "-D", "-c"]),
            ("node1", ["slurmd", "-D", "-N", "node1"]),
            ("node2", ["slurmd", "-D", "-N", "node2"]),
        ):
            with (folder / f"{name}.log").open("wb") as log:
                daemons.append(
                    subprocess.Popen(
                        command, env=cluster.environment, stdout=log, stderr=log, start_new_session=True
                    )
                )
            deadline = time.monotonic() + 30
            while name == "munged" and not (folder / "munge.socket").exists():
                assert time.monotonic() < deadline, cluster.logs()
                time.sleep(0.1)
        deadline = time.monotonic() + 60
        while True:
            states = subprocess.run(
                ["sinfo", "-h", "-N", "-o", "%T"],
                env=cluster.environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if states.stdout.split() == ["idle", "idle"]:
                break
            assert time.monotonic() < deadline, states.stdout + states.stderr + cluster.logs()
            time.sleep(0.2)
        yield cluster
    finally:
        subprocess.run(
            ["scancel", "--user", getpass.getuser()],
            env=cluster.environment,
            check=False,
            capture_output=True,
            timeout=60,
        )
        # A daemon that ends first leaves the processes of its jobs behind.
        deadline = time.monotonic() + 30
        squeue = ["squeue", "--noheader", "--states=RUNNING,COMPLETING"]
        while (
            time.monotonic() < deadline
            and subprocess.run(
                squeue, env=cluster.environment, check=False, capture_output=True, timeout=60
            ).stdout
        ):
            time.sleep(0.5)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)
