"""How processes are started: with the life of their parent, as ranks of torchrun, at which address, port and network
interface."""

import os
import signal
import socket
import sys

import psutil

from coderepairrl.errors import ConfigError, EngineError

# Without these glibc gives the memory of every large tensor back to the kernel, and gets it again page by page:
# training on
# CPU is five times slower.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "100000000",
}


def ends_with_parent(sent: signal.Signals) -> list[str]:
    """A prefix of argv: the kernel sends the signal when the program that started this one ends, however it ends.

    SIGUSR2 is the driver's: Slurm sends it to every process of a job, and what doesn't know it would die of it.
    """
    return ["setpriv", "--pdeathsig", sent.name.removeprefix("SIG"), "env", "--ignore-signal=USR2"]


def has_gpu() -> bool:
    return os.path.exists("/dev/nvidia0")


def held_port(host: str, wanted: int) -> socket.socket:
    """Bound to the wanted port, 0: any; until it is closed no other program of this machine is given that port, while a
    server that we start there, and that sets SO_REUSEADDR as vLLM does, may listen on it: it does so many seconds
    later,
    and of two servers that were told the same port the one would answer for the other. EngineError when it is in
    use."""
    held = socket.socket()
    try:
        held.bind((host, wanted))
    except OSError as error:
        held.close()
        raise EngineError(
            f"port {wanted} of {host} is in use, or not ours to have ({error.strerror}): "
            "set another (server.port), or 0 for any free one"
        ) from error
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return held


def free_port(host: str) -> int:
    """For a server that says so itself where another has taken the port meanwhile, as torch's rendezvous does."""
    with held_port(host, 0) as held:
        return held.getsockname()[1]


def address_towards(host: str) -> str:
    """The address under which `host` reaches this machine; the machine's own name may well resolve to 127.0.1.1.
    EngineError when there is no way there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # sends nothing
        except OSError as error:
            raise EngineError(
                f"{socket.gethostname()}: the node name {host} does not resolve, or no network leads there ({error}): "
                "the nodes of a job must find each other by Slurm's names"
            ) from error
        return probe.getsockname()[0]


def interface_of(address: str) -> str:
    """Name of the network interface that has this address: what NCCL and gloo want to be told on a node with
    several."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return name
    raise EngineError(
        f"no network interface of this node has the address {address}: see `ip address`, and what the node's name "
        "resolves to"
    )


def ranks_command(ranks: int, arguments: list[str], nodes: int = 1, node: int = 0, endpoint: str = "") -> list[str]:
    """argv that runs this interpreter on `arguments`: `ranks` ranks in all, spread evenly over `nodes`, which meet at
    `endpoint` (address:port)."""
    if ranks % nodes:
        raise ConfigError(f"training.ranks={ranks} can't be spread evenly over {nodes} training nodes: take a multiple")
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    if nodes > 1:
        address, _, port = endpoint.rpartition(":")
        meet = [
            "--nnodes",
            str(nodes),
            "--node-rank",
            str(node),
            "--rdzv-backend",
            "static",
            "--master-addr",
            address,
            "--master-port",
            port,
        ]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks // nodes), *meet, *arguments]


def ranks_environment(threads: int, devices: str | None = None) -> dict[str, str]:
    """The variables of such a process, on top of this one's. `devices`: its GPUs as in CUDA_VISIBLE_DEVICES; None: all
    that this process sees."""
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }
    if not has_gpu():
        variables |= ALLOCATOR | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if devices is not None:
        variables["CUDA_VISIBLE_DEVICES"] = devices
    return os.environ | variables


def become_ranks(ranks: int, threads: int) -> None:
    """Replaces this process by its ranks, unless it is one of them already."""
    if "RANK" not in os.environ:
        sys.stdout.flush()
        os.execve(sys.executable, ranks_command(ranks, sys.argv), ranks_environment(threads))
