"""The clusters of the tests take down what a test program that was killed left, wherever it was."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cluster
import pytest
from cluster import Cluster, job_state, out, processes, why_not

from coderepairrl.files import read_json
from coderepairrl.processes import proc

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
PATIENCE_S = 300.0
PROGRAM = """
import subprocess, sys, time
from pathlib import Path
from cluster import Cluster
with Cluster(Path(sys.argv[1]), nodes=2):
    subprocess.run(["sbatch", "-o", "/dev/null", "--wrap", "setsid sleep 3333"], check=True, capture_output=True)
    time.sleep(3333)
"""


def left(name: str, base: Path) -> list[str]:
    """Interfaces, network namespaces, processes and files."""
    lines = [*out("ip", "-o", "link").splitlines(), *out("ip", "netns", "list").splitlines()]
    return (
        [line for line in lines if any(f"{name}{kind}" in line for kind in ("v", "br", "n"))]
        + processes(base)
        + list(base.glob("*"))
    )


def there(moment: str, base: Path) -> bool:
    if moment == "while it comes up":
        return (base / "run/slurmctld.pid").exists()
    return any(proc.words(pid) == ["sleep", "3333"] for pid in processes(base))


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def records(tmp_path, monkeypatch):
    """Apart from those of other tests on this machine, which may start or end clusters meanwhile."""
    monkeypatch.setattr(cluster, "RECORDS", tmp_path / "records")
    yield tmp_path / "records"
    for record in (tmp_path / "records").glob("*.json"):  # of a test that failed
        cluster.take_down(int(record.stem), Path(read_json(record)["base"]))


@pytest.mark.parametrize("moment", ["while a job runs", "while it comes up"])
def test_a_killed_test_program_leaves_nothing_for_the_next(moment, tmp_path, records):
    base = tmp_path / "former"
    (tmp_path / "program.py").write_text(
        f"import cluster, pathlib\ncluster.RECORDS = pathlib.Path({str(records)!r})\n" + PROGRAM
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    }
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(base)], stdout=subprocess.PIPE, text=True, env=environment
    ) as program:
        try:
            wait_until(lambda: program.poll() is not None or there(moment, base))
            assert program.poll() is None
            name = f"slurm{next(records.glob('*.json')).stem}"
        finally:
            program.kill()
    assert left(name, base)
    with Cluster(tmp_path / "next", nodes=2) as after:
        assert (
            not left(name, base) or after.bridge == f"{name}br" and not [*processes(base), *base.glob("*")]
        )  # the number is free to be taken
        job = subprocess.run(
            ["sbatch", "-o", "/dev/null", "--parsable", "--wrap", "true"], check=True, capture_output=True, text=True
        ).stdout.strip()
        wait_until(lambda: job_state(job) == "COMPLETED")
    assert (
        not left(after.bridge.removesuffix("br"), tmp_path / "nothing")
        and not processes(tmp_path / "next")
        and not list(records.glob("*.json"))
    )


def test_two_at_once_have_numbers_of_their_own(tmp_path, records):
    with Cluster(tmp_path / "one", nodes=1) as one, Cluster(tmp_path / "two", nodes=1) as two:
        assert one.net != two.net and one.bridge != two.bridge
        assert out("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N") == "node1"
    assert not left(one.bridge.removesuffix("br"), tmp_path / "nothing") and not processes(tmp_path / "one")
