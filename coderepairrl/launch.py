"""How a program becomes several ranks: the command and the variables of torchrun on this machine."""
import os
import signal
import sys

# Without these glibc gives the memory of every large tensor back to the kernel, and gets it again page by page: training on
# CPU is five times slower.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_TOP_PAD_": "100000000"}


def ends_with_parent(sent: signal.Signals) -> list[str]:
    """A prefix of argv: the kernel sends the signal when the program that started this one ends, however it ends."""
    return ["setpriv", "--pdeathsig", sent.name.removeprefix("SIG")]


def has_gpu() -> bool:
    return os.path.exists("/dev/nvidia0")


def ranks_command(ranks: int, arguments: list[str]) -> list[str]:
    """argv that runs this interpreter `ranks` times on `arguments`."""
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *arguments]


def ranks_environment(threads: int, devices: str | None = None) -> dict[str, str]:
    """The variables of such a process, on top of this one's. `devices`: its GPUs as in CUDA_VISIBLE_DEVICES; None: all that this process sees."""
    variables = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore::FutureWarning"}
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
