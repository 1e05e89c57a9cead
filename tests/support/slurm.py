"""A real Slurm cluster of two nodes on this machine; `.ci/servers` puts Slurm on it.

Several slurmd on one host, a munge of its own, no cgroups; timers short enough for tests.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.servers import binary, free_port, note_real, wait_until

NODES = 2
_START_SECONDS = 60.0
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=10
MinJobAge=300
SlurmctldTimeout=10
SlurmdTimeout=10
MessageTimeout=10
BatchStartTimeout=10
CompleteWait=0
KillOnBadExit=1
GresTypes=gpu
TaskProlog={folder}/task-prolog
NodeName=node[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.[11-{last}] Port=[{first_port}-{last_port}] CPUs=8 RealMemory=2000 Gres=gpu:2 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=10 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Slurm:
    """The cluster: what a user of it would do by hand."""

    folder: Path

    def submit(self, *arguments: str | Path, export: str = "") -> str:
        """sbatch; returns the job's number. `export` is what its environment gets from here."""
        names = ",".join(["SLURM_CONF", *([export] if export else [])])
        said = self.run("sbatch", "--parsable", f"--export={names}", *map(str, arguments))
        return said.strip()

    def show(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        text = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def wait(self, job: str, *states: str, seconds: float = 180) -> dict[str, str]:
        """Wait until the job is in one of these states, which no other end may come before."""
        return wait_until(
            lambda: self.show(job) if self.show(job)["JobState"] in states else None,
            seconds,
            lambda: f"{self.show(job)}\n{self.logs()}",
        )

    def logs(self) -> str:
        """The end of what the daemons have logged."""
        return "\n".join(p.read_text()[-1500:] for p in (self.folder / "log").glob("*.log"))

    def run(self, program: str, *arguments: str) -> str:
        """A command of Slurm's; returns its output."""
        done = subprocess.run(
            [binary(program), *arguments], env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stderr}"
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def start_node(self, number: int) -> None:
        """Start the daemon of a node."""
        self.run("slurmd", "-f", str(self.folder / "slurm.conf"), "-N", f"node{number}")

    def kill_node(self, number: int) -> None:
        """Kill all that runs on a node, as when its power goes: the daemon and every step."""
        pid = int((self.folder / f"slurmd-node{number}.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        steps = [
            process
            for process in Path("/proc").iterdir()
            if process.name.isdecimal() and self._is_of(process, f"node{number}")
        ]
        parents = {_parent(process) for process in steps}
        for number_ in [*parents, *(int(process.name) for process in steps)]:
            if number_ > 1 and b"slurmd\0" not in _read(Path("/proc") / str(number_) / "cmdline"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number_, signal.SIGKILL)

    def _is_of(self, process: Path, node: str) -> bool:
        environment = _read(process / "environ")
        mine = f"SLURM_CONF={self.folder}/slurm.conf\0".encode() in environment
        return mine and f"SLURMD_NODENAME={node}\0".encode() in environment


@contextlib.contextmanager
def start_slurm(folder: Path) -> Iterator[Slurm]:
    """Bring the cluster up, and down again with all that runs on it."""
    note_real("slurmctld", "-V")
    for name in ("state", "log", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    ports = sorted(free_port() for _ in range(20))
    first = next(p for p in ports if p + 1 < 65000)
    (folder / "slurm.conf").write_text(
        _CONF.format(
            host=socket.gethostname().split(".")[0],
            port=free_port(),
            folder=folder,
            nodes=NODES,
            last=10 + NODES,
            first_port=first,
            last_port=first + NODES - 1,
        )
    )
    _add_devices(folder)
    _add_hosts()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    # --force: as root, and with its files in a folder below the world-writable /tmp.
    subprocess.run(
        [
            *(binary("munged"), "--force", f"--key-file={key}", f"--socket={folder}/munge.sock"),
            *(f"--pid-file={folder}/munged.pid", f"--log-file={folder}/log/munged.log"),
            f"--seed-file={folder}/munged.seed",
        ],
        check=True,
    )
    slurm = Slurm(folder)
    try:
        slurm.run("slurmctld", "-f", str(folder / "slurm.conf"))
        for number in range(1, NODES + 1):
            slurm.start_node(number)
        wait_until(lambda: _idle(slurm) == NODES, _START_SECONDS, slurm.logs)
        yield slurm
    finally:
        _stop(slurm)


def _idle(slurm: Slurm) -> int:
    done = subprocess.run(
        [binary("sinfo"), "-h", "-N", "-p", "debug", "-t", "idle", "-o", "%N"],
        env=slurm.environment,
        capture_output=True,
        text=True,
    )
    return len(done.stdout.split())


def _add_devices(folder: Path) -> None:
    """GPUs for Slurm to count, which are copies of /dev/null."""
    for number in range(2):
        os.mknod(folder / f"nvidia{number}", 0o666 | 0o020000, os.makedev(1, 3))
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/nvidia[0-1]\n")
    # They are for Slurm alone: a task that was given a GPU and finds none would refuse to start.
    prolog = folder / "task-prolog"
    prolog.write_text("#!/bin/sh\necho export CUDA_VISIBLE_DEVICES=NoDevFiles\n")
    prolog.chmod(0o755)


def _add_hosts() -> None:
    """Names of the nodes, each with a loopback address of its own."""
    hosts = Path("/etc/hosts")
    for number in range(1, NODES + 1):
        line = f"127.0.0.{10 + number} node{number}\n"
        if line not in hosts.read_text():
            with hosts.open("a") as file:
                file.write(line)


def _stop(slurm: Slurm) -> None:
    with contextlib.suppress(AssertionError):
        slurm.run("scancel", "--user=root")
        wait_until(lambda: not slurm.run("squeue", "-h"), 20, slurm.logs)
    for name in (*(f"slurmd-node{n + 1}" for n in range(NODES)), "slurmctld", "munged"):
        with contextlib.suppress(OSError, ValueError):
            pid = int((slurm.folder / f"{name}.pid").read_text())
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 20, slurm.logs)  # type: ignore[misc]
    shutil.rmtree(slurm.folder / "spool", ignore_errors=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _parent(process: Path) -> int:
    found = re.search(rb"^PPid:\s+(\d+)", _read(process / "status"), re.MULTILINE)
    return int(found[1]) if found else 0
