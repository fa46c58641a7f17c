"""How a process is started inside an image.

    in_image(image, command)    one of this project's programs, in an image of its own: it sees what it is given, its
                                GPUs and the network, and ends with this process (keeper.py)
    sealed(image)               a trusted question to a task's image, which sees nothing else

Commands that aren't trusted run in sandboxes/.
"""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from coderepairrl.errors import EngineError
from coderepairrl.processes import keeper
from coderepairrl.processes.starting import has_gpu

PYTHON = "/opt/venv/bin/python"  # in the images of slurm/images
# Variables that name programs, libraries and files of the node, which the image has elsewhere or not at all. Apptainer
# sees to PATH, LD_LIBRARY_PATH and HOME itself. All others go in, so that a site's NCCL_*, VLLM_*, *_proxy ... need no
# list here.
NODE_ONLY = (
    "LD_PRELOAD",
    "PYTHONHOME",
    "PYTHONUSERBASE",
    "PYTHONSTARTUP",
    "VIRTUAL_ENV",
    "CC",
    "CXX",
    "CFLAGS",
    "CXXFLAGS",
    "LDFLAGS",
    "CPATH",
    "C_INCLUDE_PATH",
    "CPLUS_INCLUDE_PATH",
    "LIBRARY_PATH",
    "CUDA_HOME",
    "CUDA_PATH",
    "TRITON_PTXAS_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
)


def in_image(
    image: str | None, command: list[str], *, binds: Iterable[str | Path] = (), options: Iterable[str] = ()
) -> list[str]:
    """argv that runs `command` in the image, or as it is without one. This interpreter becomes the image's, wherever
    the command names it.

    binds: folders of the node, which have the same path inside, or "node:inside": code, run, models, $TMPDIR, and a
    folder of its own for "/dev/shm", so that what is left there can be removed. The node's /tmp, /dev and home are
    there anyway. Variables are those of the process, but NODE_ONLY. What is inside lives in a pid namespace and ends
    with the returned process. SIGUSR2 is ignored, as in starting.ends_with_parent: Apptainer does not hand on that it
    is.
    """
    if image is None:
        return command
    if not Path(image).exists():
        raise EngineError(f"the image {image} does not exist: build it with slurm/images/build.sh, or correct its path")
    if not shutil.which("apptainer"):
        raise EngineError(
            "apptainer is not on this node's PATH: load its module in the site's set-up, or leave out the images"
        )
    folders = [word for bind in dict.fromkeys(map(str, binds)) for word in ("--bind", bind)]
    gpus = ["--nv"] if has_gpu() else []
    unset = [word for name in NODE_ONLY for word in ("-u", name)]
    inside = [PYTHON if word == sys.executable else word for word in command]
    return [
        sys.executable,
        "-I",
        "-S",
        keeper.__file__,
        "apptainer",
        "-q",
        "exec",
        "--pid",
        "--no-eval",
        *gpus,
        *folders,
        *options,
        image,
        "env",
        "--ignore-signal=USR2",
        *unset,
        *inside,
    ]


def sealed(image: str | None) -> list[str]:
    """argv before a trusted command that runs in a task's image: read-only, without network, with nothing of this
    machine; empty without an image."""
    if image is None:
        return []
    if shutil.which("apptainer"):
        alone = ["--containall", "--no-home", "--no-eval", "--net", "--network", "none"]
        return ["apptainer", "-s", "exec", *alone, image]
    system = ["--ro-bind", image, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    return ["bwrap", "--die-with-parent", "--unshare-all", *system, "--"]
