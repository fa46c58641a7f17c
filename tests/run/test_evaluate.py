"""Evaluation with controls, which need no model: what is graded, counted, merged, and gone on with; the refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, run_program
from hypothesis import given
from hypothesis import strategies as st
from unidiff import PatchSet

from coderepairrl.config import contents
from coderepairrl.files import read_json
from coderepairrl.rollout import trajectory_files
from coderepairrl.scaffolds.controls import without_hunk
from coderepairrl.tasks.functions import FunctionsConfig
from coderepairrl.tasks.functions import load as functions
from coderepairrl.types import Outcome

COUNT = 5
EVALUATE = [
    "scripts/evaluate.py",
    "configs/eval/quickstart.yaml",
    f"rollout.tasks.heldout={COUNT}",
    "rollout.evaluation.samples=1",
    "chunk_tasks=2",
]


def evaluate(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return run_program(*EVALUATE, f"run={folder / 'e'}", *words)


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """The line in which the same evaluation is refused, in this process."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import evaluate as program

    def said(*words: str) -> str:
        contents.tree.cache_clear()
        monkeypatch.chdir(ROOT)
        with pytest.raises(SystemExit) as end:
            program.main([*EVALUATE[1:], f"run={tmp_path / 'e'}", *words])
        error = capsys.readouterr().err
        assert end.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1, error
        return error

    return said


def content(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("**/*") if path.is_file()}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_control_has_each_of_its_samples_judged_anew(tmp_path):
    """Whether a task's tests always say the same is what it asks."""
    ended = evaluate(tmp_path, "scaffold=gold", "rollout.evaluation.samples=3", "rollout.tasks.heldout=2")
    assert ended.returncode == 0, ended.stderr
    [path] = (tmp_path / "e_gold" / "rollouts").glob("eval_*.parquet")
    stats = trajectory_files.read_stats(path)
    assert (stats["gradings_run"], stats["gradings_remembered"]) == (6, 0)


def test_gold_resolves_and_less_of_it_does_not(tmp_path, refused):
    for scaffold, wanted in (("gold", True), ("empty", False), ("gold_less_one_hunk", False)):  # one hunk each
        keep = scaffold == "empty"
        done = evaluate(tmp_path, f"scaffold={scaffold}", f"rollout.keep_test_output_mib={int(keep)}")
        assert done.returncode == 0, done.stderr
        folder = tmp_path / f"e_{scaffold}"
        results = rows(folder / "results.jsonl")
        assert (
            all("AssertionError" in row.get("test_output", "") for row in results)
            if not wanted
            else not any("test_output" in row for row in results)
        )
        assert (
            all(("test_output_file" in row) == keep for row in results) and (folder / "test_outputs").exists() == keep
        )
        assert not keep or all("AssertionError" in Path(row["test_output_file"]).read_text() for row in results)
        assert [row["resolved"] for row in results] == [row["resolved_swebench"] for row in results] == [wanted] * COUNT
        assert all(row["graded"] and row["calls"] == 0 for row in results) and all(
            row["built"] for row in rows(folder / "environments.jsonl")
        )
        summary = json.loads((folder / "summary.json").read_text())
        assert (summary["pass_rate"], summary["tasks"], summary["not_built"], summary["disagreements"]) == (
            float(wanted),
            COUNT,
            0,
            {},
        )
    former = tmp_path / "e_gold" / "inputs.json"  # of before these keys
    former.write_text(
        json.dumps(
            {
                key: value
                for key, value in read_json(former).items()
                if "discount_per_call" not in key and ".rendering." not in key
            }
        )
    )
    again = evaluate(tmp_path, "scaffold=gold", "chunk_tasks=3", "rollout.concurrent_episodes=1")
    assert again.returncode == 0 and "environments" not in again.stderr and "100.0%" in again.stdout, "it is done"
    gold = tmp_path / "e_gold"
    for chunk in gold.glob("rollouts/eval_*.parquet"):  # the machine was broken, as if from the beginning
        broken = [
            replace(t, outcome=Outcome.INFRASTRUCTURE_ERROR, verdict=None) for t in trajectory_files.read(chunk)[0]
        ]
        trajectory_files.write(
            chunk, broken, trajectory_files.read_stats(chunk) | {"outcomes": {"infrastructure_error": len(broken)}}
        )
    (gold / "summary.json").unlink()
    mended = evaluate(tmp_path, "scaffold=gold")
    assert mended.returncode == 0 and "100.0%" in mended.stdout, mended.stderr
    before = content(tmp_path)
    for words, said in (
        (
            "rollout.tasks.heldout=4",
            "rollout.tasks.heldout 5 tasks (1 that are not so in the other: functions-heldout-4 ...) -> 4 tasks",
        ),
        ("rollout.evaluation.samples=2", "rollout.evaluation.samples 1 -> 2"),
        ("rollout.limits.max_turns=3", "max_turns 10 -> 3"),
        ("rollout.sandbox.kind=local", "rollout.sandbox.kind bubblewrap -> local"),
        ("rollout.server.dtype=bfloat16", "float32 -> bfloat16"),
        ("rollout.rewards.weights.patch=0.5", "rollout.rewards.weights.patch not set -> 0.5"),
    ):
        assert (
            "e_gold holds results of other inputs: " in (line := refused("scaffold=gold", words))
            and said in line
            and "another `run:` folder" in line
        )
    assert content(tmp_path) == before, "a refusal writes nothing"
    (tmp_path / "e_gold" / "inputs.json").unlink()
    assert "holds results, but not what made them" in refused("scaffold=gold")


def test_shards_that_are_merged_and_predictions_of_somebody_else_say_the_same(tmp_path, refused):
    for shard in (0, 1):
        assert evaluate(tmp_path, "scaffold=gold", f"shard={shard}", "shards=2").returncode == 0
    merged = tmp_path / "e_gold"
    assert (
        json.loads((merged / "summary.json").read_text())["tasks"] == COUNT == len(rows(merged / "environments.jsonl"))
    )
    for words in (["shards=3"], ["shards=3", "shard=2"], []):
        assert f"{merged} holds results of other inputs: shards 2 -> {3 if words else 1}:" in refused(
            "scaffold=gold", *words
        )
    assert "rollout.tasks.heldout 5 tasks" in refused("scaffold=gold", "shards=2", "rollout.tasks.heldout=6")
    shard = read_json(merged / "shard_1" / "inputs.json")
    # began at the same time, with other settings
    (merged / "shard_1" / "inputs.json").write_text(json.dumps(shard | {"rollout.limits.max_turns": 3}))
    assert f"{merged / 'shard_1'} holds results of other inputs: rollout.limits.max_turns 3 -> 10" in refused(
        "scaffold=gold", "shards=2"
    )
    predictions = rows(merged / "predictions.jsonl")
    assert {row["instance_id"] for row in predictions} == {f"functions-heldout-{i}" for i in range(COUNT)}
    theirs = tmp_path / "theirs.json"
    # and the last has none
    theirs.write_text(
        json.dumps([*({**row, "model_patch": "not a patch"} for row in predictions[:1]), *predictions[1:-1]])
    )
    done = evaluate(tmp_path, "--predictions", str(theirs))
    assert done.returncode == 0, done.stderr
    results = rows(tmp_path / "e_predictions" / "results.jsonl")
    assert sum(row["resolved"] for row in results) == COUNT - 2
    assert [row["task"] for row in results if row["outcome"] == "agent_error"] == [predictions[0]["instance_id"]]
    theirs.write_text(json.dumps(predictions))
    assert f"rollout.scaffold.path {theirs} (" in refused("--predictions", str(theirs)), "another file of the same name"


def test_interrupted_it_goes_on_after_the_last_whole_chunk(tmp_path, refused):
    program = subprocess.Popen(
        [
            sys.executable,
            *EVALUATE,
            f"run={tmp_path / 'e'}",
            "scaffold=gold",
            "chunk_tasks=1",
            "rollout.tasks.heldout=40",
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
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
    assert "rollout.tasks.heldout 40 tasks" in refused("scaffold=gold", "chunk_tasks=1", "rollout.tasks.heldout=39")
    # other chunks, the same tasks
    done = evaluate(tmp_path, "scaffold=gold", "chunk_tasks=7", "rollout.tasks.heldout=40")
    assert done.returncode == 0, done.stderr
    assert rows(folder / "attempts.jsonl")[-1]["changed"] == {"chunk_tasks": ["1", "7"]}
    assert len({row["task"] for row in rows(folder / "results.jsonl")}) == len(rows(folder / "results.jsonl")) == 40
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=runs/nowhere"], "no model there"),
        (["model=null"], "scaffold=gold"),
        (["scaffold=silver"], "gold, empty, gold_less_one_hunk"),
        (["shard=3", "shards=2", "scaffold=gold"], "numbered from 0"),
        (["shard=6", "shards=7", "scaffold=gold"], "take fewer shards"),
        (["--predictions", "/no/file.jsonl"], "no predictions in SWE-bench's format"),
    ],
)
def test_bad_input_is_one_line(refused, words, said):
    assert said in refused(*words)


def test_the_program_says_it_in_one_line(tmp_path):
    done = evaluate(tmp_path, "model=runs/nowhere")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "no model there" in line


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
