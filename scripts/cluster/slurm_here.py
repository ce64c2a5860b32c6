"""A private Slurm on this machine: munged, slurmctld and two slurmd, n1 and n2, on loopback only; needs no root.

`python scripts/cluster/slurm_here.py start DIR` starts it with its files in DIR and prints the line that makes
`sbatch`, `srun`, `squeue` find it; `... stop DIR` ends its jobs and takes it down. No systemd, no cgroups, no
accounting. Programs: `apt-get install --no-install-recommends slurmctld slurmd slurm-client munge`.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
INSTALL = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
NODES = ("n1", "n2")
PATIENCE = 240.0  # seconds for any one thing
PARTITIONS = """
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1 GraceTime=30
PartitionName=high Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF
"""
# KillWait: how long after SIGTERM comes SIGKILL. cred_expire: how long a job waits that is queued again.
CONF = """
ClusterName=check
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
KillWait=15
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-2] NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[1]},{ports[2]} CPUs={cpus}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=("start", "stop"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--cpus", type=int, default=2, help="cores that each node says it has")
    options = parser.parse_args()
    problem = absent()
    if problem:
        sys.exit(f"error: {problem}")
    root = options.directory.resolve()
    if options.action == "start":
        root.mkdir(parents=True, exist_ok=True)
        PrivateSlurm(root).start(cpus=options.cpus)
        print(f"export SLURM_CONF={root / 'slurm.conf'}")
    else:
        PrivateSlurm(root).stop()


def absent() -> str | None:
    """What is missing to start one, in a line; None = nothing. The daemons are where a user's PATH does not lead."""
    if "/usr/sbin" not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] += os.pathsep + "/usr/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"not found: {', '.join(missing)}; {INSTALL}" if missing else None


@contextlib.contextmanager
def running_slurm(root: Path, *, cpus: int = 8, partitions: str = PARTITIONS) -> Iterator[PrivateSlurm]:
    """A private Slurm below `root`, found through the environment; ends when the queue is empty."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SUBMITIT_"))]:
        del os.environ[name]  # this may itself run in a job of another Slurm
    cluster = PrivateSlurm(root)
    try:
        cluster.start(cpus=cpus, partitions=partitions)
        yield cluster
    finally:
        cluster.stop()


class PrivateSlurm:
    """Starts and stops the daemons; their process ids are in a file, so that another process can stop them.

    Args:
        root: directory of its files.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.conf, self._file = root, root / "slurm.conf", root / "daemons.json"
        os.environ["SLURM_CONF"] = str(self.conf)

    def start(self, *, cpus: int, partitions: str = PARTITIONS) -> None:
        """Start all daemons and wait until both nodes are idle."""
        root = self.root
        host = socket.gethostname().partition(".")[0]
        self.conf.write_text(
            CONF.format(ports=free_ports(3), host=host, user=getpass.getuser(), root=root, cpus=cpus)
            + partitions
        )
        (root / "state").mkdir(exist_ok=True)
        key = root / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        files = {
            "key-file": key.name,
            "socket": "munge.socket",
            "pid-file": "munged.pid",
            "seed-file": "munge.seed",
        }
        options = [f"--{option}={root / name}" for option, name in files.items()]
        self._launch("munged", ["munged", "--foreground", "--force", *options])
        wait_for((root / "munge.socket").exists, "munged")
        self._launch("slurmctld", ["slurmctld", "-D", "-f", str(self.conf)])
        wait_for(lambda: bool(slurm("sinfo", "-h")), f"slurmctld (see {root})")
        for node in NODES:
            self.start_node(node)
        wait_for(
            lambda: slurm("sinfo", "-h", "-p", "low", "-o", "%T").split() == ["idle"], f"Slurm (see {root})"
        )

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        self._launch(node, ["slurmd", "-D", "-N", node, "-f", str(self.conf)])

    def kill_node(self, node: str) -> None:
        """Pull the plug: SIGKILL to its daemon, to those of its jobs' steps and to the jobs' processes."""
        jobs = slurm("squeue", "-h", "-w", node, "-t", "running", "-o", "%A").split()
        doomed = [self._pids()[node]]
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (path / "cmdline").read_bytes().decode(errors="replace")
                settings = (path / "environ").read_bytes().split(b"\0")
                of_node = f"SLURMD_NODENAME={node}".encode() in settings
                ours = f"SLURM_CONF={self.conf}".encode() in settings
                if (of_node and ours) or any(command.startswith(f"slurmstepd: [{job}.") for job in jobs):
                    doomed.append(int(path.name))
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=power")

    def stop(self) -> None:
        """End all jobs, then the daemons: one that ends before its jobs leaves processes behind."""
        if "slurmctld" in self._pids():
            slurm("scancel", f"--user={getpass.getuser()}")
            wait_for(lambda: not slurm("squeue", "-h"), "an empty queue")
        for pid in reversed(self._pids().values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not any(alive(pid) for pid in self._pids().values()), "the daemons' end")
        self._file.unlink(missing_ok=True)

    def _launch(self, name: str, command: list[str]) -> None:
        with open(self.root / "daemons.log", "a") as log:
            daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self._file.write_text(json.dumps({**self._pids(), name: daemon.pid}))

    def _pids(self) -> dict[str, int]:
        return json.loads(self._file.read_text()) if self._file.exists() else {}


def alive(pid: int) -> bool:
    """Whether a process runs; ends the zombie of one that we started."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_for(happened: Callable[[], bool], what: str) -> None:
    """Wait, but not for ever."""
    end = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > end:
            sys.exit(f"error: waited {PATIENCE:.0f} s for {what}")
        time.sleep(0.1)


def slurm(*command: str) -> str:
    """What a command of Slurm's prints; nothing where it fails."""
    return subprocess.run(command, capture_output=True, text=True).stdout


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


if __name__ == "__main__":
    main()
