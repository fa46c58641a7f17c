"""Where a run comes from: revision, installed packages and the lock that they fit, hardware, command.

python -m coderepairrl.run.provenance       what is installed in this interpreter's environment: how an image is asked
"""

import csv
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

from coderepairrl.errors import EngineError
from coderepairrl.files import ROOT, read_json
from coderepairrl.processes import cause
from coderepairrl.processes.containers import in_image
from coderepairrl.processes.starting import has_gpu
from coderepairrl.run.attempt import Place

LOCKS = ("requirements/cpu.lock", "requirements/gpu.lock")
NAMED = ("torch", "deepspeed", "transformers", "vllm")
ASK_S = 120.0


def provenance(arguments: list[str]) -> dict:
    def git(*words: str) -> str | None:
        result = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
        return result.stdout.strip() if result.returncode == 0 else None

    # the frozen code of a launched grid has no .git, but says where it was taken from
    revision = read_json(ROOT / "revision.json") or {
        "revision": git("rev-parse", "HEAD"),
        "uncommitted": bool(git("status", "--porcelain")),
    }
    return {
        "command": [sys.argv[0], *arguments],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **revision,
        **environment(),
        "images": {name: _inside(image) for name, image in Place.here().images.items() if name != "agents"},
        "hardware": hardware(),
    }


# ---- software


def environment() -> dict:
    """Of this interpreter: {"python", "packages": {name: version}, "cuda": torch's or null, "lock"}."""
    installed = _installed()
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name, installed) for name in NAMED},
        "cuda": _cuda(),
        "lock": lock(installed),
    }


def lock(installed: dict[str, str]) -> dict:
    """The lock that fits best: {"lock": its path, "sha256", "differences": {package: "2.1 instead of 2.0", "missing" or
    "without metadata"}}, no differences when all of it is installed."""
    found = []
    for name in LOCKS:
        if (path := ROOT / name).exists():
            pins = dict(re.findall(r"^([\w.-]+)==([^\s;\\]+)", path.read_text(), re.MULTILINE))
            differences = {
                package: said for package, pin in pins.items() if (said := _difference(package, pin, installed))
            }
            found.append(
                {"lock": name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "differences": differences}
            )
    return min(
        found, key=lambda one: len(one["differences"]), default={"lock": None, "sha256": None, "differences": {}}
    )


def _difference(package: str, pin: str, installed: dict[str, str]) -> str:
    has = installed.get(_normal(package))
    if has is None:
        return _version(package, installed) or "missing"
    return (
        "" if has == pin or has.partition("+")[0] == pin else f"{has} instead of {pin}"
    )  # "+cpu" is a build of the same version


def _installed() -> dict[str, str]:
    """The first that the interpreter would import, where a name is there twice."""
    found: dict[str, str] = {}
    for one in distributions():
        if one.metadata["Name"]:  # a folder that was left of a package that is gone has none
            found.setdefault(_normal(one.metadata["Name"]), one.version)
    return found


def _version(package: str, installed: dict[str, str]) -> str | None:
    """Also of what was only copied here. null: it isn't there."""
    try:
        copied = find_spec(package.replace("-", "_")) is not None
    except (ImportError, ValueError):
        copied = False
    return installed.get(_normal(package)) or ("without metadata" if copied else None)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _cuda() -> str | None:
    """As torch.version.cuda, without importing torch."""
    spec = find_spec("torch")
    file = Path(spec.origin).parent / "version.py" if spec and spec.origin else None
    said = (
        re.search(r"^cuda\b[^=]*= *['\"]([\d.]+)", file.read_text(), re.MULTILINE) if file and file.exists() else None
    )
    return said[1] if said else None


def _inside(image: str) -> dict:
    """What is installed in an image, or "error": why it can't be told, which ends the run where the image is needed."""
    try:
        command = in_image(
            image,
            [sys.executable, "-m", "coderepairrl.run.provenance"],
            binds=[ROOT],
            options=Place.here().container_options,
        )
        asked = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=ASK_S,
            stdin=subprocess.DEVNULL,
        )
        said = json.loads(asked.stdout) if asked.returncode == 0 else {"error": cause.of_text(asked.stderr)}
    except (EngineError, OSError, subprocess.TimeoutExpired) as error:
        said = {"error": str(error)}
    return {"file": os.path.realpath(image)} | said  # its name holds the hash of all that went in


# ---- hardware


def hardware() -> dict:
    """{"cpu", "cores", "memory_gib", "gpus": [{"name", "memory_gib"}]} of this node, and where it has GPUs "driver":
    its version, or "gpus_unknown": why they can't be told."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    memory_gib = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": memory_gib, **gpus()}


def gpus() -> dict:
    if not has_gpu():
        return {"gpus": []}
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"gpus": [], "gpus_unknown": f"there are GPUs, but nvidia-smi does not answer: {error}"}
    if asked.returncode:
        return {
            "gpus": [],
            "gpus_unknown": f"there are GPUs, but nvidia-smi fails: {cause.of_text(asked.stdout + asked.stderr)}",
        }
    rows = list(csv.reader(asked.stdout.splitlines(), skipinitialspace=True))
    return {
        "gpus": [
            {"name": name, "memory_gib": round(int(mib) / 1024, 1) if mib.isdigit() else None} for name, mib, _ in rows
        ],
        "driver": rows[0][2] if rows else None,
    }


if __name__ == "__main__":
    print(json.dumps(environment()))
