"""A real Slurm on this machine: slurmctld, and a slurmd for every node, each with its own network namespace, address
and host name.

    with Cluster(folder, nodes=3) as cluster: ...        SLURM_CONF is set for this process and what it starts

Root only (network namespaces, several slurmd). Its files lie in `folder`. Nothing outlives it: what a cluster consists
of can be told by its number (interfaces, network namespaces) and by its SLURM_CONF (processes: daemons, jobs and all
that they started, which inherit it); a record in RECORDS says which numbers are taken and by whom, and the next cluster
takes down what a program that was killed left.
"""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coderepairrl.files import read_json, write_json
from coderepairrl.processes import proc

# NUMBER.json: {"base", "spool", "owner": [pid, start time]}
RECORDS = Path(tempfile.gettempdir()) / "coderepairrl-test-clusters"
NUMBERS = 200

PORT = 27_017
KILL_WAIT_S = 5
AFTER_REQUEUE_S = 10.0
PATIENCE_S = 300.0  # for the nodes to come up
SLURMD_TIMEOUT_S = 10  # a node that is silent for so long is down

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}({net}.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/run/munge.sock
StateSaveLocation={base}/state
SlurmdSpoolDir={spool}/%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd-%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SlurmdTimeout={slurmd_timeout}
ReturnToService=2
KillWait={kill_wait}
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
AccountingStorageType=accounting_storage/none
NodeName=node[1-{nodes}] NodeAddr={net}.[11-{last}] Port={node_port} \
CPUs={cpus} RealMemory={memory} Gres=gpu:{gpu_type}:{gpus} {features} State=UNKNOWN
PartitionName={partition} Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=90
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Why there can be no cluster on this machine; None: there can."""
    if os.geteuid():
        return "a Slurm with several nodes on one machine needs root"
    for command, package in (("slurmctld", "slurm-wlm"), ("munged", "munge"), ("ip", "iproute2")):
        if shutil.which(command, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None:
            return f"{command} is not installed (Debian: apt-get install {package})"
    return None


class Cluster:
    def __init__(
        self,
        base: Path,
        nodes: int,
        gpus: int = 4,
        gpu_type: str = "h100",
        partition: str = "main",
        features: str = "",
        cpus: int = 128,
        memory_mb: int = 2_000_000,
    ):
        """What the nodes are said to have is not what the machine has: Slurm only counts it."""
        self.base, self.nodes, self.gpus = base, nodes, gpus
        self.partition, self._said = (
            partition,
            {
                "gpu_type": gpu_type,
                "partition": partition,
                "cpus": cpus,
                "memory": memory_mb,
                "features": f"Feature={features}" if features else "",
            },
        )
        self._number, self._spool = -1, ""
        self._before: dict[str, str | None] = {}

    @property
    def net(self) -> str:
        return f"10.77.{self._number}"

    @property
    def bridge(self) -> str:
        return f"slurm{self._number}br"

    def _netns(self, node: int) -> str:
        return f"slurm{self._number}n{node}"

    def __enter__(self) -> "Cluster":
        with _records():
            for left in RECORDS.glob("*.json"):
                if (said := read_json(left)) and proc.start_of(said["owner"][0]) != said["owner"][1]:
                    take_down(int(left.stem), Path(said["base"]))
                    shutil.rmtree(said["base"], ignore_errors=True)
            taken = lambda n: (RECORDS / f"{n}.json").exists() or any(_network_of(n))  # noqa: E731
            self._number = next(n for n in range(NUMBERS) if not taken(n))
            owner = [os.getpid(), proc.start_of(os.getpid())]
            # sockets lie in there, whose paths must be short
            self._spool = tempfile.mkdtemp(prefix=f"slurm{self._number}-")
            record = {"base": str(self.base), "spool": self._spool, "owner": owner}
            write_json(RECORDS / f"{self._number}.json", record)
        self._before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PATH")}
        os.environ |= {"SLURM_CONF": str(self.base / "slurm.conf"), "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        try:
            self._configure()
            self._network()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        take_down(self._number, self.base)
        for name, value in self._before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})

    def _configure(self) -> None:
        for folder in ("state", "dev", "log", "munge", "run"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        for path in (self.base, *self.base.parents):  # munged runs as its own user, and must get here
            path.chmod(path.stat().st_mode | 0o011)
        host = socket.gethostname().split(".")[0]
        for gpu in range(self.gpus):
            # Slurm wants a device; /dev/null's number is one
            os.mknod(self.base / "dev" / f"gpu{gpu}", 0o020666, os.makedev(1, 3))
        (self.base / "slurm.conf").write_text(
            CONFIGURATION.format(
                base=self.base,
                spool=self._spool,
                host=host,
                net=self.net,
                port=PORT + 10 * self._number,
                node_port=PORT + 10 * self._number + 1,
                nodes=self.nodes,
                last=10 + self.nodes,
                gpus=self.gpus,
                kill_wait=KILL_WAIT_S,
                slurmd_timeout=SLURMD_TIMEOUT_S,
                **self._said,
            )
        )
        (self.base / "gres.conf").write_text(
            f"NodeName=node[1-{self.nodes}] Name=gpu Type={self._said['gpu_type']} "
            f"File={self.base}/dev/gpu[0-{self.gpus - 1}]\n"
        )
        names = [f"{self.net}.{10 + n} node{n}" for n in range(1, self.nodes + 1)]
        (self.base / "hosts").write_text("\n".join(["127.0.0.1 localhost", f"{self.net}.1 {host}", *names]) + "\n")
        key = self.base / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for path in (self.base / "munge", key, self.base / "run"):
            shutil.chown(path, "munge", "munge")
        (self.base / "munge").chmod(0o755)
        (self.base / "run").chmod(0o755)

    def _network(self) -> None:
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{self.net}.1/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        for node in range(1, self.nodes + 1):
            netns, outside = self._netns(node), self.link(node)
            ip("netns", "add", netns)
            ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", netns)
            ip("link", "set", outside, "master", self.bridge, "up")
            ip("-n", netns, "addr", "add", f"{self.net}.{10 + node}/24", "dev", "eth0")
            ip("-n", netns, "link", "set", "eth0", "up")
            ip("-n", netns, "link", "set", "lo", "up")

    def _start(self) -> None:
        run = self.base / "run"
        subprocess.run(
            [
                "runuser",
                "-u",
                "munge",
                "--",
                "munged",
                "--force",
                f"--key-file={self.base}/munge/key",
                f"--socket={run}/munge.sock",
                f"--pid-file={run}/munged.pid",
                f"--log-file={self.base}/munge/munged.log",
                f"--seed-file={self.base}/munge/seed",
            ],
            check=True,
            capture_output=True,
        )
        subprocess.run(["slurmctld"], check=True, capture_output=True)
        for node in range(1, self.nodes + 1):
            # `ip netns exec` would mount another /sys; a node's names are those of the hosts file
            inside = f"mount --bind {self.base}/hosts /etc/hosts; hostname node{node}; exec slurmd -N node{node}"
            subprocess.run(
                ["nsenter", f"--net=/run/netns/{self._netns(node)}", "unshare", "--uts", "--mount", "sh", "-c", inside],
                check=True,
                capture_output=True,
            )
        deadline = time.monotonic() + PATIENCE_S
        while out("sinfo", "-h", "-N", "-p", self.partition, "-t", "idle", "-o", "%N").count("node") < self.nodes:
            assert time.monotonic() < deadline, f"the nodes did not come up: {out('sinfo', '-N')}; see {self.base}/log"
            time.sleep(0.1)

    def link(self, node: int) -> str:
        """The machine's end of a node's cable: `ip link set LINK down` cuts the node off."""
        return f"slurm{self._number}v{node}"


@contextmanager
def _records() -> Iterator[None]:
    """One at a time; the kernel frees it when its holder is killed."""
    RECORDS.mkdir(exist_ok=True)
    with (RECORDS / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def processes(base: Path) -> list[int]:
    """Of the cluster: its daemons, jobs, and what they started."""
    mark = f"SLURM_CONF={base}/slurm.conf"
    return [pid for pid in proc.pids() if pid != os.getpid() and mark in proc.words(pid, "environ")]


def _network_of(number: int) -> tuple[list[str], list[str]]:
    """(interfaces on the machine's side, network namespaces)."""
    links = [line.split(": ")[1].partition("@")[0] for line in out("ip", "-o", "link", "show").splitlines()]
    spaces = [line.split()[0] for line in out("ip", "netns", "list").splitlines() if line]
    links = [link for link in links if link.startswith((f"slurm{number}v", f"slurm{number}br"))]
    return links, [name for name in spaces if name.startswith(f"slurm{number}n")]


def take_down(number: int, base: Path) -> None:
    """All that there is of a cluster, however far it had come up; then its number is free."""
    # twice: what had just been started meanwhile
    for sent, patience_s in ((signal.SIGTERM, 2), (signal.SIGKILL, 10), (signal.SIGKILL, 10)):
        deadline = time.monotonic() + patience_s
        for pid in processes(base):
            try:
                os.kill(pid, sent)
            except ProcessLookupError:
                continue
        while processes(base) and time.monotonic() < deadline:
            time.sleep(0.05)
    links, spaces = _network_of(number)
    for link in links:  # not left to the namespace, which lives as long as any process in it, and a while longer
        subprocess.run(["ip", "link", "del", link], capture_output=True)
    for name in spaces:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    record = RECORDS / f"{number}.json"
    if said := read_json(record):
        shutil.rmtree(said["spool"], ignore_errors=True)
    record.unlink(missing_ok=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def out(*command: str) -> str:
    """Output of one of Slurm's programs; "" where it says that there is nothing."""
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()


def job_state(job: str) -> str:
    """RUNNING, COMPLETED ..., and the reason where it waits: "PENDING BeginTime"."""
    fields = dict(word.split("=", 1) for word in out("scontrol", "show", "job", "-o", job).split() if "=" in word)
    return fields["JobState"] + (f" {fields['Reason']}" if fields["JobState"] == "PENDING" else "")


_waiting: dict[str, float] = {}  # job -> since when it has been seen to wait


def without_delay(job: str) -> None:
    """Slurm lets a requeued job wait for two minutes. Some of it is needed: its nodes first have to forget the job's
    old credential."""
    if job_state(job) != "PENDING BeginTime":
        _waiting.pop(job, None)
    elif time.monotonic() - _waiting.setdefault(job, time.monotonic()) > AFTER_REQUEUE_S:
        subprocess.run(["scontrol", "update", f"jobid={job}", "StartTime=now"], check=True, timeout=60)
