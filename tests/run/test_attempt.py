"""Attempts over several nodes: who may begin, who has been superseded, what a silent node means. Nodes are objects
here; their files are real."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from conftest import ROOT

from coderepairrl.errors import EngineError
from coderepairrl.files import read_json, write_json
from coderepairrl.rollout.ledger import Ledger
from coderepairrl.run import attempt as attempts
from coderepairrl.run.attempt import Attempt, Owner, Place, follow, lead, ready, stuck

FIRST = Owner("7", 0)


@pytest.fixture
def elsewhere(monkeypatch):
    """Says which machine the code believes to be on."""
    return lambda name: monkeypatch.setattr(attempts, "host", lambda: name)


def pair(run, elsewhere, owner=FIRST) -> tuple[Attempt, Attempt]:
    elsewhere("a")
    first = lead(run, Place(0, 1, 1, "10.0.0.1", owner))
    ready(first)
    elsewhere("b")
    second = follow(run, Place(1, 1, 1, "10.0.0.2", owner))
    second.beat()
    return first, second


def test_nodes_of_a_job_meet_and_say_goodbye(tmp_path, elsewhere):
    first, second = pair(tmp_path, elsewhere)
    assert (first.number, second.number) == (1, 1) and first.lost() == second.lost() == ""
    assert second.other(0)["address"] == "10.0.0.1" and not first.ended([1])
    second.end()
    elsewhere("a")
    assert first.ended([1]) and first.lost() == ""
    second.end("out of memory")
    assert "node 1 (a): out of memory" in first.lost()  # the host is who wrote it last


@pytest.mark.parametrize("tells", [True, False])
def test_a_node_that_lost_another_is_not_the_one_that_failed(tells, tmp_path, elsewhere, monkeypatch):
    elsewhere("a")
    nodes = [lead(tmp_path, Place(0, 1, 2, "10.0.0.1", FIRST))]
    ready(nodes[0])
    for number in (1, 2):
        elsewhere(f"host{number}")
        nodes.append(follow(tmp_path, Place(number, 1, 2, f"10.0.0.{number}", FIRST)))
        nodes[-1].beat()
    nodes[1].end("the trainer program ended with code 1: RuntimeError: Connection closed by peer; see its log")
    elsewhere("a")
    assert nodes[0].lost() == ""  # node 2 may be about to say more
    if tells:
        elsewhere("host2")
        nodes[2].end("the trainer program ended with code 1: ValueError: empty; see its log")
        elsewhere("a")
    else:
        monkeypatch.setattr(attempts, "ECHO_S", 0.0)
    assert (
        "node 2 (host2): the trainer program ended with code 1: ValueError: empty" if tells else "node 1 ("
    ) in nodes[0].lost()


def test_a_node_has_a_part_in_each_attempt_once(tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr(attempts, "JOIN_S", 0.3)
    first, _ = pair(tmp_path, elsewhere)
    with pytest.raises(EngineError, match="no attempt of job 7 began"):
        follow(tmp_path, Place(1, 1, 1, "10.0.0.2", FIRST))
    with pytest.raises(EngineError, match="no attempt of job 8 began"):
        follow(tmp_path, Place(2, 1, 2, "10.0.0.3", Owner("8", 0)))
    (tmp_path / "summary.json").write_text("{}")  # of an end that node 0 may be about to go beyond
    with pytest.raises(EngineError, match="no attempt of job 7 began"):
        follow(tmp_path, Place(1, 1, 1, "10.0.0.2", FIRST))
    attempts.finish(first)
    with pytest.raises(EngineError, match="no attempt of job 8 began"):
        follow(tmp_path, Place(1, 1, 1, "10.0.0.2", Owner("8", 0)))  # whose node 0 has not looked yet
    assert follow(tmp_path, Place(1, 1, 1, "10.0.0.2", FIRST)) is None  # done: nothing to join


def test_a_requeued_job_supersedes_a_node_that_was_cut_off(tmp_path, elsewhere):
    """The cut-off node still writes: it is waited for, and learns from attempt.json that it is to end."""
    first, second = pair(tmp_path, elsewhere)
    stop = threading.Event()

    def cut_off():
        while "taken over" not in second.lost() and not stop.is_set():  # it may see node 0's failure before
            second._beaten = 0.0
            second.beat()
            stop.wait(0.05)
        second.end(second.lost())

    thread = threading.Thread(target=cut_off)
    thread.start()
    try:
        elsewhere("a")
        first.end("node failure")
        again = lead(tmp_path, Place(0, 1, 1, "10.0.0.1", replace(FIRST, restart=1)))
    finally:
        stop.set()
        thread.join()
    assert (
        again.number == 2 and "attempt 2 has taken over" in read_json(tmp_path / "heartbeats" / "node_1.json")["reason"]
    )


def test_somebody_elses_run_is_left_alone(tmp_path, elsewhere, monkeypatch):
    pair(tmp_path, elsewhere)
    monkeypatch.setattr(attempts, "PATIENCE_S", 0.5)
    elsewhere("c")
    for owner in (None, Owner("8", 0)):
        with pytest.raises(EngineError, match="in use by another process"):
            lead(tmp_path, Place(0, 1, 1, "10.0.0.9", owner))
    assert read_json(tmp_path / "attempt.json")["attempt"] == 1
    monkeypatch.setattr(attempts, "SILENT_S", 0.2)
    # nobody has been heard of for long enough
    assert lead(tmp_path, Place(0, 1, 1, "10.0.0.9", Owner("8", 0))).number == 2


def test_a_silent_node_is_lost(tmp_path, elsewhere, monkeypatch):
    first, _ = pair(tmp_path, elsewhere)
    elsewhere("a")
    assert first.lost() == ""
    monkeypatch.setattr(attempts, "SILENT_S", 0.0)
    assert "node 1 (b) has not been heard of" in first.lost()


def test_on_one_machine_a_killed_process_is_known_at_once(tmp_path):
    program = (
        "from coderepairrl.run.attempt import Place, lead; from pathlib import Path; "
        f"lead(Path({str(tmp_path)!r}), "
        "Place()); print(1, flush=True); input()"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    child.stdout.readline()
    child.kill()
    child.wait()
    assert lead(tmp_path, Place()).number == 2
    beat = read_json(tmp_path / "heartbeats" / "node_0.json")
    # the same number, another process
    write_json(tmp_path / "heartbeats" / "node_0.json", beat | {"processes": [[os.getpid(), 1]]})
    assert not attempts.Heard().alive(0, read_json(tmp_path / "heartbeats" / "node_0.json"))


def test_of_many_at_once_one_begins(tmp_path):
    program = (
        "from coderepairrl.run import attempt; from coderepairrl.run.attempt import Place, lead; from pathlib "
        "import Path; "
        "attempt.PATIENCE_S = 4.0; "
        f"print(lead(Path({str(tmp_path)!r}), Place()).number, flush=True); input()"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        for _ in range(4)
    ]
    # the one that began stays until the others have given up
    said = [child.stdout.readline().strip() for child in children]
    for child in children:
        child.communicate(timeout=60)
    assert sorted(said) == ["", "", "", "1"]


def test_three_attempts_without_progress_are_enough(tmp_path):
    (tmp_path / "logs").mkdir()
    for number in range(3):
        assert not stuck(tmp_path, "7")
        attempt = lead(tmp_path, Place(owner=replace(FIRST, restart=number)))
        ready(attempt)
        attempts.note(attempt, {"state": "failed", "reason": "out of memory"})
        attempt.end()
    assert stuck(tmp_path, "7") and not stuck(tmp_path, "8")
    books = Ledger(tmp_path / "ledger.jsonl")
    books.write("finished", "g")
    books.close()
    assert not stuck(tmp_path, "7")
