"""What the package's modules log from INFO on reaches stderr, and so the log file, in every program and process."""

import logging
import re
import subprocess
import sys
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from coderepairrl.gateway import worker
from coderepairrl.gateway.gateway import GatewayConfig
from coderepairrl.processes import cause, logs
from coderepairrl.run.driver import _spawn

ROOT = Path(__file__).resolve().parents[2]
LOGGERS = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
    for path in (ROOT / "coderepairrl").rglob("*.py")
    if "logging.getLogger(__name__)" in path.read_text() and path.name != "logs.py"
)
PROGRAMS = [
    path
    for folder in ("scripts", "slurm", "benchmarks", "analysis")
    for path in sorted((ROOT / folder).glob("*.py"))
    if '__name__ == "__main__"' in path.read_text()
]
TALKS = f'''"""Talks by every logger of the package."""
import logging
import sys

from coderepairrl.run.program import program


@program
def main(arguments):
    for name in {LOGGERS}:
        logging.getLogger(name).info("%s says something", name)
        logging.getLogger(name).warning("%s warns", name)
        logging.getLogger(name).debug("%s mumbles", name)


main(sys.argv[1:])
'''


@pytest.fixture
def talks(tmp_path):
    path = tmp_path / "talks.py"
    path.write_text(TALKS)
    return [sys.executable, str(path), "x.yaml"]


def test_every_logger_of_the_package_is_heard_on_stderr_with_date_level_and_name(talks):
    done = subprocess.run(talks, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "") and len(LOGGERS) >= 7
    said = done.stderr.splitlines()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    for name in LOGGERS:
        assert sum(bool(re.fullmatch(f"{stamp} INFO {name}: {name} says something", line)) for line in said) == 1
        assert sum(bool(re.fullmatch(f"{stamp} WARNING {name}: {name} warns", line)) for line in said) == 1
    assert len(said) == 2 * len(LOGGERS)


def test_in_a_run_they_are_in_the_log_of_the_program_that_the_driver_started(talks, tmp_path):
    child = _spawn(talks, tmp_path / "rollout.log", {"PYTHONPATH": str(ROOT)})
    assert child.wait(60) == 0
    text = (tmp_path / "rollout.log").read_text()
    assert all(f"{name} says something" in text and f"{name} warns" in text for name in LOGGERS)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_every_program_sets_this_up(path):
    text = path.read_text()
    assert re.search(r"^@program(\(.*\))?$", text, re.M) or "    logs.to_stderr()\n" in text


def no_renderer():
    logging.getLogger("coderepairrl.gateway.door").info("the door is open")
    raise ValueError("there is no renderer here")


def test_a_gateway_process_of_its_own_is_heard(capfd):
    ours, theirs = get_context("spawn").Pipe()
    target = partial(worker.serve, GatewayConfig(), (), 1.0, no_renderer, None, theirs)
    process = get_context("spawn").Process(target=target)
    process.start()
    process.join(60)
    assert "INFO coderepairrl.gateway.door: the door is open" in capfd.readouterr().err
    ours.close()


def test_setting_it_up_again_says_nothing_twice(capsys):
    log = logging.getLogger("coderepairrl")
    before = list(log.handlers), log.level
    try:
        logs.to_stderr()
        logs.to_stderr()
        logging.getLogger("coderepairrl.rollout.episode").info("once")
        assert capsys.readouterr().err.count("once") == 1
    finally:
        log.handlers[:], level = before
        log.setLevel(level)


def test_a_logged_warning_is_no_cause_of_an_end():
    record = "2026-12-01 02:40:00,123 WARNING coderepairrl.grading.grader: tests/x.py: error: no report\n"
    assert cause.of_text(record + "error: vLLM ended: see its log\n") == "vLLM ended: see its log"
    assert (
        cause.of_text(record + 'Traceback (most recent call last):\n  File "a", line 1\nValueError: 7\n')
        == "ValueError: 7"
    )
