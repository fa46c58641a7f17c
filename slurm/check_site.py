"""Tries what a site's YAML says, and what a run needs of the cluster; a line each: ok, or what is wrong and what to do.

    python slurm/check_site.py configs/site/mine.yaml [a.b=c ...]            from the login node; starts no job
    python slurm/check_site.py configs/site/mine.yaml --node                 and on one compute node, in a job of five
                                                                             minutes

The exit code is the number of things that are wrong, at most 100.
"""

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from coderepairrl.cluster.batch_script import batch_script
from coderepairrl.cluster.site import Nodes, Resources, SiteConfig, sbatch_parameters
from coderepairrl.cluster.slurm import ask
from coderepairrl.config import load
from coderepairrl.errors import CodeRepairError, ConfigError
from coderepairrl.files import ROOT, read_json, write_json
from coderepairrl.processes import cause
from coderepairrl.run.program import program

# file systems that belong to one machine, as stat names them
LOCAL_KINDS = {"tmpfs", "ramfs", "overlayfs", "ext2/ext3", "xfs", "btrfs"}
MAX_SKEW_S = 5.0
WAIT_FOR_NODE_S = 900.0
WRITERS, ROUNDS = 4, 50


class Wrong(CodeRepairError):
    """What is wrong, and what to do."""


def slurm_answers(site: SiteConfig) -> str:
    """ping needs no right to ask, squeue does: munge, or what the cluster has in its place."""
    answer = ask("scontrol", "ping").strip().splitlines()[0]
    return f"{answer}; {len(ask('squeue', '--me', '--noheader').splitlines())} jobs of yours in its queue"


def partition(site: SiteConfig) -> str:
    if not site.partition:
        return "the cluster's default"
    shown = ask("scontrol", "show", "partition", "--oneliner", site.partition)
    fields = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    if fields.get("State") != "UP":
        raise Wrong(f"partition {site.partition} is {fields.get('State')}: wait, or take another (`sinfo -s`)")
    limit = minutes_of(fields.get("MaxTime", "UNLIMITED"))
    if limit and (site.max_minutes or 10**9) > limit:
        raise Wrong(
            f"jobs of partition {site.partition} may last {limit} minutes: set max_minutes: {limit}; a longer run goes "
            "on in its next attempt"
        )
    return f"{site.partition}, {fields.get('TotalNodes')} nodes, longest job {fields.get('MaxTime')}"


def minutes_of(limit: str) -> int:
    """Of [days-]hours:minutes:seconds; 0: none."""
    if limit in ("UNLIMITED", "NONE"):
        return 0
    days, _, rest = limit.rpartition("-")
    hours, minutes, _ = (int(part) for part in rest.split(":"))
    return int(days or 0) * 1440 + hours * 60 + minutes


def accounting(site: SiteConfig) -> str:
    if not site.accounting:
        return "accounting: false, so account and qos are left to sbatch"
    rows = ask(
        "sacctmgr",
        "--noheader",
        "--parsable2",
        "show",
        "associations",
        f"user={os.environ.get('USER', os.getuid())}",
        "format=account,qos",
    ).splitlines()
    pairs = [row.split("|") for row in rows if "|" in row]
    if site.account and site.account not in {account for account, _ in pairs}:
        raise Wrong(
            f"you have no account {site.account}: yours are "
            f"{', '.join(sorted({account for account, _ in pairs})) or 'none'}"
        )
    allowed = {qos for account, several in pairs if account == (site.account or account) for qos in several.split(",")}
    if site.qos and site.qos not in allowed:
        raise Wrong(f"you may not use the qos {site.qos}: yours are {', '.join(sorted(allowed)) or 'none'}")
    ask("sacct", "--noheader", "--starttime=now")
    return f"account {site.account or 'default'}, qos {site.qos or 'default'}, sacct answers"


def two_nodes(site: SiteConfig) -> str:
    """What a pair of nodes would be asked with, tried by sbatch --test-only."""
    wanted = Resources(nodes=Nodes(), gpus_per_node=1 if site.gpu_type else 0, minutes=min(60, site.max_minutes or 60))
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        parameters = sbatch_parameters(site, wanted, "check_site", ROOT, ROOT)
        file.write(batch_script([os.getpid], parameters, sys.executable, ROOT))
        file.flush()
        done = subprocess.run(["sbatch", "--test-only", file.name], capture_output=True, text=True, timeout=60)
        if done.returncode:
            ask("sbatch", "--test-only", file.name)  # raises with its line and the remedy
    return (
        f"two nodes with {wanted.gpus_per_node} GPUs each: "
        f"{(done.stdout + done.stderr).strip().removeprefix('sbatch: ')}"
    )


def modules(site: SiteConfig) -> str:
    for name in site.modules:
        shell(
            f"command -v module >/dev/null || . /etc/profile; module load {name}",
            f"module {name} can't be loaded: `module avail` lists them",
        )
    return ", ".join(site.modules) or "none"


def setup(site: SiteConfig) -> str:
    shell("\n".join(["set -e", *site.setup]), "a line of setup fails: try them in a shell")
    return f"{len(site.setup)} lines"


def interpreter(site: SiteConfig) -> str:
    path = site.interpreter()
    return shell(
        f"'{path}' -c 'import sys, submitit, pydantic, coderepairrl; print(sys.executable, sys.version.split()[0])'",
        f"{path} can't import this project: make the environment (README), or name its interpreter (python:)",
        environment={"PYTHONPATH": str(ROOT)},
    ).strip()


def images(site: SiteConfig) -> Iterator[str]:
    files = site.image_files()
    if not files:
        yield "none: programs run in the environment of `python`"
        return
    before = "".join(f"module load {name}; " for name in site.modules)
    if not shell(before + "command -v apptainer || true", "").strip():
        raise Wrong("apptainer is not on the PATH: name its module in modules, or ask the cluster's support")
    options = " ".join(f"'{word}'" for word in site.options())
    for role, file in files.items():
        with open(file, "rb") as image:
            image.read(1)
        shell(
            f"{before}apptainer -q exec {options} '{file}' true",
            f"{file} does not run: see above; `apptainer exec -d` says more",
        )
        yield f"{role}: {file}"


def binds(site: SiteConfig) -> str:
    for bind in site.binds:
        source = os.path.expandvars(os.path.expanduser(bind.split(":")[0]))
        if not Path(source).exists():
            raise Wrong(f"{source} is not there: correct binds")
    return ", ".join(site.binds) or "none"


def scratch(site: SiteConfig) -> str:
    """The path may hold variables that only a job has."""
    if not site.scratch:
        return (
            f"none given, so {tempfile.gettempdir()} with "
            f"{shutil.disk_usage(tempfile.gettempdir()).free / 2**30:.0f} GiB free"
        )
    path = Path(os.path.expandvars(site.scratch))
    if "$" in str(path):
        return f"{site.scratch}: known in a job only (--node tries it)"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"x")
    except OSError as error:
        raise Wrong(f"{path} can't be written ({error.strerror}): correct scratch") from error
    return f"{path}, {shutil.disk_usage(path).free / 2**30:.0f} GiB free"


def shared_folder(site: SiteConfig) -> Iterator[str]:
    """runs/: where the nodes of a run meet."""
    folder = ROOT / "runs"
    folder.mkdir(exist_ok=True)
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True).stdout.strip()
    hint = (
        ", which belongs to one machine as a rule: compute nodes must see the same folder (--node tries it)"
        if kind in LOCAL_KINDS
        else ""
    )
    yield f"{folder} on {kind}, {shutil.disk_usage(folder).free / 2**30:.0f} GiB free{hint}"
    with tempfile.TemporaryDirectory(dir=folder, prefix="check_") as temporary:
        with ProcessPoolExecutor(WRITERS, mp_context=multiprocessing.get_context("fork")) as pool:
            made = list(pool.map(_make_folders, [temporary] * WRITERS))
            whole = list(pool.map(_rename_and_read, [temporary] * WRITERS, range(WRITERS)))
        if sum(made) != ROUNDS:
            raise Wrong(
                f"{ROUNDS} folders were made {sum(made)} times by {WRITERS} processes at once: "
                "mkdir is not atomic here, keep runs on another file system"
            )
        if not all(whole):
            raise Wrong(
                "a file that is renamed over another was seen missing or torn: keep runs on another file system"
            )
        yield "mkdir and rename are atomic"
        probe = Path(temporary) / "clock"
        before = time.time()
        probe.touch()
        skew = probe.stat().st_mtime - before
    if abs(skew) > MAX_SKEW_S:
        raise Wrong(f"the file server's clock is {skew:.0f} s off this machine's: tell the cluster's support")
    yield f"clocks of file server and this machine {abs(skew):.2f} s apart"


def _make_folders(folder: str) -> int:
    made = 0
    for i in range(ROUNDS):
        try:
            os.mkdir(f"{folder}/{i}")
            made += 1
        except FileExistsError:
            continue  # another process was faster, which is the point
    return made


def _rename_and_read(folder: str, writer: int) -> bool:
    path = Path(folder) / "shared.json"
    for i in range(ROUNDS):
        temporary = Path(folder) / f"shared.{writer}.tmp"
        temporary.write_text(json.dumps([writer] * 1000))
        temporary.rename(path)
        if len(read_json(path) or []) != 1000:
            return False
    return True


HERE = {"Slurm": slurm_answers, "partition": partition, "account": accounting, "sbatch": two_nodes}
EVERYWHERE = {
    "modules": modules,
    "setup": setup,
    "python": interpreter,
    "binds": binds,
    "images": images,
    "scratch": scratch,
    "runs": shared_folder,
}


def report(checks: dict[str, Callable], site: SiteConfig, where: str = "") -> int:
    """Prints a line a check; how many are wrong."""
    wrong = 0
    for name, check in checks.items():
        try:
            found = check(site)
            for line in [found] if isinstance(found, str) else found:
                print(f"ok     {where}{name}: {line}", flush=True)
        except (CodeRepairError, OSError, subprocess.TimeoutExpired) as error:
            wrong += 1
            print(f"WRONG  {where}{name}: {error}", flush=True)
    return wrong


def shell(text: str, remedy: str, environment: dict[str, str] | None = None, timeout_s: float = 120.0) -> str:
    done = subprocess.run(
        ["bash", "-c", text],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=os.environ | (environment or {}),
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise Wrong(f"{remedy} ({cause.of_text(done.stderr or done.stdout) or f'exit code {done.returncode}'})")
    return done.stdout


def on_a_node(site: SiteConfig, arguments: list[str]) -> int:
    """The same program on one node, through srun with the site's options; how many things are wrong there."""
    parameters = sbatch_parameters(
        site, Resources(gpus_per_node=1 if site.gpu_type else 0, minutes=5), "check_site", ROOT, ROOT
    )
    names = ("partition", "account", "qos", "constraint", "gres", "mem")
    options = [f"--{name}={parameters[name]}" for name in names if parameters.get(name) is not None]
    options += ["--exclusive"] if site.exclusive else []
    for name, value in parameters["additional_parameters"].items():
        if name not in ("chdir", "requeue", "no-requeue"):
            options.append(f"--{name}" if value is True else f"--{name}={value}")
    with tempfile.TemporaryDirectory(dir=ROOT / "runs", prefix="check_") as temporary:
        write_json(Path(temporary) / "login.json", {"host": socket.gethostname(), "time": time.time()})
        command = [
            "srun",
            "--nodes=1",
            "--ntasks=1",
            "--time=5",
            "--job-name=check_site",
            f"--immediate={WAIT_FOR_NODE_S:.0f}",
            *options,
            site.interpreter(),
            str(ROOT / "slurm" / "check_site.py"),
            *arguments,
            f"--from={temporary}",
        ]
        return min(
            1,
            subprocess.run(
                command, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=WAIT_FOR_NODE_S + 300
            ).returncode,
        )


def seen_from_node(folder: Path) -> Callable[[SiteConfig], str]:
    def check(site: SiteConfig) -> str:
        login = read_json(folder / "login.json")
        if login is None:
            raise Wrong(
                f"{folder} of the login node is not on this node: keep the project, or the grid's `runs`, on a file "
                "system that all nodes share"
            )
        return f"the login node's ({login['host']})"

    return check


@program(SiteConfig)
def main(arguments: list[str]) -> None:
    words = [word for word in arguments if not word.startswith("--")]
    flags = [word for word in arguments if word.startswith("--")]
    if not words or any(flag != "--node" and not flag.startswith("--from=") for flag in flags):
        raise ConfigError("give a site's YAML, and --node to try a compute node as well")
    site = load(SiteConfig, words[0], words[1:])
    if flags and flags[0].startswith("--from="):
        folder = Path(flags[0].removeprefix("--from="))
        sys.exit(min(100, report({"folder": seen_from_node(folder)} | EVERYWHERE, site, f"{socket.gethostname()}: ")))
    wrong = report(HERE | EVERYWHERE, site)
    if "--node" in flags:
        wrong += on_a_node(site, words)
    sys.exit(min(100, wrong))


if __name__ == "__main__":
    main(sys.argv[1:])
