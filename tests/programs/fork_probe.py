"""A driver for fork_server.py that tells what a fork is and can do; `job` is a JSON file: {"do": ...}."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

SECRET = "loaded once"


def warm():
    global SECRET
    SECRET = f"loaded once, by {os.getpid()}"


def attempt(what):
    try:
        return str(what())
    except OSError as error:
        return type(error).__name__


def main(path):
    job = json.loads(Path(path).read_text())
    if job["do"] == "exit":
        sys.exit(job["code"])
    if job["do"] == "raise":
        raise ValueError("a mistake in the agent")
    if job["do"] == "sleep":
        mark = Path(job["mark"])
        mark.with_suffix(".part").write_text(str(os.getpid()))
        mark.with_suffix(".part").rename(mark)
        time.sleep(600)
    if job["do"] == "eat":
        bytearray(job["bytes"])
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    print(
        json.dumps(
            {
                "secret": SECRET,
                "pid": os.getpid(),
                "uid": os.getuid(),
                "gid": os.getgid(),
                "groups": os.getgroups(),
                "capabilities": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
                "no_new_privs": status["NoNewPrivs"],
                "seccomp": status["Seccomp"],
                "limits": {
                    name: resource.getrlimit(getattr(resource, name))
                    for name in ("RLIMIT_DATA", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_CORE")
                },
                "variables": dict(os.environ),
                "descriptors": sorted(fd for fd in range(300) if attempt(lambda: os.fstat(fd)) != "OSError"),
                "cwd": os.getcwd(),
                "root": sorted(os.listdir("/")),
                "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
                "interfaces": sorted(
                    line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]
                ),
                "network": attempt(lambda: socket.create_connection(("127.0.0.1", job.get("port", 9)), timeout=2)),
                "hostname": socket.gethostname(),
                "host_file": attempt(lambda: Path(job["host_file"]).read_text()),
                "written": {path: attempt(lambda: Path(path).write_text("x")) for path in job.get("write", ())},
                "mounted": attempt(
                    lambda: subprocess.run(["mount", "-t", "tmpfs", "none", "/repo"], capture_output=True).returncode
                ),
                "run": subprocess.run(
                    ["sh", "-c", "id -u; grep CapEff /proc/self/status"], capture_output=True, text=True
                ).stdout,
            }
        )
    )
