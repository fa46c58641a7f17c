"""Evaluation with controls, which need no model: what is graded, counted, merged, and gone on with; the refusals."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, run_program
from hypothesis import given
from hypothesis import strategies as st
from unidiff import PatchSet

from coderepairrl.scaffolds.controls import without_hunk
from coderepairrl.tasks.functions import FunctionsConfig
from coderepairrl.tasks.functions import load as functions

COUNT = 5
EVALUATE = ["scripts/evaluate.py", "configs/eval/quickstart.yaml", f"rollout.tasks.heldout={COUNT}", "rollout.evaluation.samples=1", "chunk_tasks=2"]


def evaluate(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return run_program(*EVALUATE, f"run={folder / 'e'}", *words)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_gold_resolves_and_less_of_it_does_not(tmp_path):
    for scaffold, wanted in (("gold", True), ("empty", False), ("gold_less_one_hunk", False)):  # one hunk each
        done = evaluate(tmp_path, f"scaffold={scaffold}")
        assert done.returncode == 0, done.stderr
        folder = tmp_path / f"e_{scaffold}"
        results = rows(folder / "results.jsonl")
        assert [row["resolved"] for row in results] == [row["resolved_swebench"] for row in results] == [wanted] * COUNT
        assert all(row["graded"] and row["calls"] == 0 for row in results) and all(row["built"] for row in rows(folder / "environments.jsonl"))
        summary = json.loads((folder / "summary.json").read_text())
        assert (summary["pass_rate"], summary["tasks"], summary["not_built"], summary["disagreements"]) == (float(wanted), COUNT, 0, {})
    again = evaluate(tmp_path, "scaffold=gold")
    assert again.returncode == 0 and "environments" not in again.stderr, "it is done"


def test_shards_that_are_merged_and_predictions_of_somebody_else_say_the_same(tmp_path):
    for shard in (0, 1):
        assert evaluate(tmp_path, "scaffold=gold", f"shard={shard}", "shards=2").returncode == 0
    merged = tmp_path / "e_gold"
    assert json.loads((merged / "summary.json").read_text())["tasks"] == COUNT == len(rows(merged / "environments.jsonl"))
    predictions = rows(merged / "predictions.jsonl")
    assert {row["instance_id"] for row in predictions} == {f"functions-heldout-{i}" for i in range(COUNT)}
    theirs = tmp_path / "theirs.json"
    theirs.write_text(json.dumps([*({**row, "model_patch": "not a patch"} for row in predictions[:1]), *predictions[1:-1]]))  # and the last has none
    done = evaluate(tmp_path, "--predictions", str(theirs))
    assert done.returncode == 0, done.stderr
    results = rows(tmp_path / "e_predictions" / "results.jsonl")
    assert sum(row["resolved"] for row in results) == COUNT - 2
    assert [row["task"] for row in results if row["outcome"] == "agent_error"] == [predictions[0]["instance_id"]]


def test_interrupted_it_goes_on_after_the_last_whole_chunk(tmp_path):
    program = subprocess.Popen([sys.executable, *EVALUATE, f"run={tmp_path / 'e'}", "scaffold=gold", "chunk_tasks=1", "rollout.tasks.heldout=40"], cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "e_gold"
    try:
        while not (folder / "results.jsonl").exists():
            assert program.poll() is None
            time.sleep(0.01)
        os.kill(program.pid, signal.SIGKILL)
    finally:
        program.kill()
        program.wait()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("rollouts/eval_*.parquet")}
    assert 0 < len(before) < 40
    done = evaluate(tmp_path, "scaffold=gold", "chunk_tasks=1", "rollout.tasks.heldout=40")
    assert done.returncode == 0, done.stderr
    assert len({row["task"] for row in rows(folder / "results.jsonl")}) == len(rows(folder / "results.jsonl")) == 40
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


@pytest.mark.parametrize(("words", "said"), [
    (["model=runs/nowhere"], "no model there"), (["model=null"], "scaffold=gold"), (["scaffold=silver"], "'gold', 'empty', 'gold_less_one_hunk'"), (["shard=3", "shards=2", "scaffold=gold"], "numbered from 0"),
    (["shard=6", "shards=7", "scaffold=gold"], "take fewer shards"), (["--predictions", "/no/file.jsonl"], "no predictions in SWE-bench's format")])
def test_bad_input_is_one_line(tmp_path, words, said):
    done = evaluate(tmp_path, *words)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    line, = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said in line


ORACLES = [task.oracle_patch for task in functions(FunctionsConfig(train=3, heldout=0))["train"]]
SEVERAL = """--- a/x.py
+++ b/x.py
@@ -1,1 +1,2 @@
 one
+two
@@ -10,2 +11,1 @@
-a
-b
+c
--- /dev/null
+++ b/new.py
@@ -0,0 +1,4 @@
+1
+2
+3
+4
"""


@given(number=st.integers(0, 20))
def test_each_hunk_is_left_out_in_turn_the_largest_first(number):
    left = without_hunk(SEVERAL, number)
    sizes = sorted(hunk.added + hunk.removed for file in PatchSet(left) for hunk in file)
    assert sizes == [[1, 3], [1, 4], [3, 4]][number % 3]
    assert all(without_hunk(oracle, number) == "" for oracle in ORACLES) and without_hunk("", number) == ""
