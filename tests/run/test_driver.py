"""The driver and the programs that it watches over: what each end of one means for the attempt.

Real processes, logs and run folder.
"""

import json
import os
import subprocess
import sys
import threading

import pytest

from coderepairrl.errors import CodeRepairError
from coderepairrl.files import read_json, write_json
from coderepairrl.run import attempt as attempts
from coderepairrl.run import driver
from coderepairrl.run.attempt import Place

PATIENCE_S = 60.0
ENDS = {  # what the trainer program does -> the reason of the attempt's end
    "print('done')": "",
    "import sys; print('step 0', flush=True); print('error: the tail is missing: make it first', "
    "file=sys.stderr); sys.exit(1)": "the trainer program ended with code 1: the tail is missing: make it "
    "first; see {log}; ",
    "print(1 / 0)": "the trainer program ended with code 1: ZeroDivisionError: division by zero; see {log}; ",
    "import os; os.kill(os.getpid(), 9)": "the trainer program ended with code -9: ended by SIGKILL, from outside",
    "import os; os.kill(os.getpid(), 15)": "the trainer program ended with code -15: ended by SIGTERM; see {log}; ",
    "import sys; sys.exit(7)": "the trainer program ended with code 7: no error in its log; see {log}; ",
}


@pytest.fixture
def attempt(tmp_path):
    (tmp_path / "policy").mkdir()
    write_json(tmp_path / "policy" / "current.json", {"version": 2, "step": 2})
    own = attempts.lead(tmp_path, Place())
    late = threading.Timer(
        PATIENCE_S,
        lambda: write_json(tmp_path / "attempt.json", {"attempt": own.number + 1, "owner": None, "ready": False}),
    )
    late.start()  # a driver that waits for ever is superseded
    yield own
    late.cancel()


@pytest.mark.parametrize("program", ENDS)
def test_each_end_of_a_program_has_its_reason(program, attempt):
    log = driver._log(attempt, "trainer")
    children = {
        "trainer": driver._spawn([sys.executable, "-c", program], log, dict(os.environ)),
        "rollout": driver._spawn(
            [
                sys.executable,
                "-c",
                "import time; time.sleep(0 if sys_done else 600)".replace("sys_done", str(not ENDS[program])),
            ],
            driver._log(attempt, "rollout"),
            dict(os.environ),
        ),
    }
    try:
        if ENDS[program]:
            with pytest.raises(CodeRepairError) as error:
                driver._follow(children, attempt.run, attempt, [])
            assert str(error.value).startswith(ENDS[program].format(log=log)) and "\n" not in str(error.value)
        else:
            driver._follow(children, attempt.run, attempt, [])
        assert json.loads((attempt.run / "status.json").read_text())["state"] == "running"
    finally:
        driver._end(children)
    assert all(isinstance(child.returncode, int) for child in children.values())


def test_a_wish_to_stop_reaches_the_programs_by_its_file_and_keeps_the_work(attempt):
    trainer = (
        f"import json, pathlib, time\nwhile not pathlib.Path({str(attempt.run / 'stop.json')!r}).exists(): "
        "time.sleep(0.05)"
    )
    children = {
        "trainer": driver._spawn([sys.executable, "-c", trainer], driver._log(attempt, "trainer"), dict(os.environ)),
        "rollout": driver._spawn(["sleep", "600"], driver._log(attempt, "rollout"), dict(os.environ)),
    }
    try:
        with pytest.raises(driver.Stopped, match="at step 2: the same command goes on"):
            driver._follow(children, attempt.run, attempt, [1])
    finally:
        driver._end(children)
    assert read_json(attempt.run / "stop.json") == {"attempt": attempt.number} and children["rollout"].returncode == -15


def test_programs_end_with_their_driver(attempt, tmp_path):
    """However it ends."""
    code = (
        f"from coderepairrl.run import driver; from pathlib import Path; import os, time; "
        f"print(driver._spawn(['sleep', '600'], Path({str(tmp_path / 'log')!r}), dict(os.environ)).pid, flush=True); "
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=driver.ROOT) as program:
        child = int(program.stdout.readline())
        handle = os.pidfd_open(child)
        program.kill()
    import select

    assert select.select([handle], [], [], 60)[0]  # it has ended
    os.close(handle)
