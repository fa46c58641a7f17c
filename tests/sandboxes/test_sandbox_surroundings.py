"""What suites expect of a machine beside the checkout: the same in every kind of sandbox, one table."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sandbox_helpers import isolated, make_task

from coderepairrl.sandboxes.interpreter import interpreter

LOOK = (Path(__file__).parents[1] / "programs/surroundings.py").read_text()
CHARACTER = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
    "ptmx": (5, 2),
}
EXPECTED = {
    "services": [80, "ssh"],
    "protocols": 6,
    "localhost": "127.0.0.1",
    "hostname": ["sandbox", "127.0.0.1"],
    "terminal": [True, True, True, "x"],
    "controlling": [0, True],
    "spawned": [True, 0],
    "full": "ENOSPC",
    "shared_memory": [7, None, None],
    "descriptors": ["through\n", "substituted\nout\nin\n", 0, ["0", "1", "2"]],
    "own": [["look.py"], True, True, True, ["1000"] * 4, "0" * 16, "1"],
    "users": ["agent", "agent", "agent", "/tmp"],
    "home": [True, "/tmp"],
    "outside": [],
    **{path: ["0o1777", 20, True] for path in ("/tmp", "/var/tmp", "/dev/shm")},
    **{f"/dev/{name}": [True, *numbers, "0o666"] for name, numbers in CHARACTER.items()},
}


@isolated
def test_a_suite_finds_the_machine_that_it_expects(use, kind):
    for name in ("services", "protocols"):
        if not os.path.exists(f"/etc/{name}"):
            pytest.skip(f"this machine has no /etc/{name}")
    done = use(kind, lambda sandbox: sandbox.run([sys.executable, "look.py"]), make_task({"look.py": LOOK}), tmp_mib=20)
    found = json.loads(done.output)
    assert {name: found[name] for name in EXPECTED if found[name] != EXPECTED[name]} == {}


@isolated
@pytest.mark.parametrize("parent", ["/tmp", "/var/tmp"])
def test_an_interpreter_below_a_folder_in_memory_is_seen(use, kind, parent, request):
    """An environment's cache may lie there."""
    folder = f"{parent}/crl-python-{os.getpid()}"
    request.addfinalizer(lambda: shutil.rmtree(folder))
    os.makedirs(f"{folder}/bin")
    shutil.copy(f"{sys.prefix}/pyvenv.cfg", folder)
    os.symlink(os.path.realpath(sys.executable), f"{folder}/bin/python")
    assert folder in interpreter(f"{folder}/bin/python").folders
    task = make_task()
    task = replace(task, environment=replace(task.environment, python=f"{folder}/bin/python"))
    done = use(
        kind,
        lambda sandbox: sandbox.run(
            "{0}/bin/python -c 'import sys; print(sys.prefix)'; touch {1}/x && ls {1}".format(folder, parent)
        ),
        task,
    )
    assert done.output.split() == [folder, os.path.basename(folder), "x"]
