"""What real repositories hold, from reports of other projects, as one evaluation of all of it: CODEREPAIRRL_CASES is a
folder with NAME/tasks.jsonl and what belongs to it. Its rows are put into one file, wrong ones among them; this is the
table of what becomes of each."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, once, run_program
from sandbox_helpers import needs_apptainer, sandbox_config

from coderepairrl.files import read_jsonl
from coderepairrl.rewards import grade
from coderepairrl.sandboxes import start_sandbox
from coderepairrl.tasks import jsonl

CASES = Path(os.environ.get("CODEREPAIRRL_CASES", "nowhere"))
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="CODEREPAIRRL_CASES names no folder of cases")

RESOLVED = ("resolved", "")
AT_HOME = "tests/test_lib.py::test_home_is_not_tmp"  # the one thing that is not as on most machines, in every sandbox
GOLD = {  # row -> (what became of it, words of why); all others are resolved
    "c11_latin1_source mine-1": ("unresolved", ""),  # no oracle: it is an agent's, below
    "c54_surroundings mine-1": ("unresolved", str([AT_HOME])),
    "c05_latin1_rows": ("left out", "not UTF-8 (byte 0xfc at "),
    "c30b_root_init_host_app mine-1": (
        "left out",
        "environment.python: ",
    ),  # names no interpreter: that is the reader's own
    "c39_nothing_to_pass mine-1": ("left out", "fail_to_pass: empty"),
    "c44_one_bad_base bad": ("left out", "does not exist"),
    "c61c_django_fail_line x-1": ("infrastructure_error", "parse_log_django breaks on the log"),
    "c72_absent_file mine-1": ("infrastructure_error", "file or directory not found: tests/absent.py"),
}
PREDICTIONS = {  # file -> row -> (what became of it, words of why)
    "c02_no_last_newline/predictions.jsonl": {"stripped": ("resolved", "applied by git apply")},
    "c03_two_predictions/good.jsonl": {"a": ("resolved", "applied")},
    "c03_two_predictions/bad.jsonl": {"a": ("unresolved", "")},
    "c04_lone_surrogate/predictions.jsonl": {
        "a": ("unresolved", "half of a character (a lone surrogate)"),
        "b": ("resolved", "applied"),
    },
}
EDIT = "LC_ALL=C sed -i 's/n + 2/n + 1/' lib.py"
AGENTS = {  # case -> (what an agent does, resolved, text of its diff, words of what the diff leaves out)
    "c10_symlink_replaced": ("sed -i 's/n + 2/n + 1/' lib.py compat/*.py", True, "+    return n + 1", ""),
    "c11_latin1_source": (EDIT, True, "GIT binary patch", ""),
    "c12_many_untracked": (
        f"mkdir build_tmp; cd build_tmp; for i in $(seq 2100); do echo x > f$i.txt; done; cd ..; {EDIT}",
        True,
        "+    return n + 1",
        "100 files",
    ),
    "c33_names_of_modules": (
        "echo 'print(1)' > test.py; echo notes > code.txt; sed -i 's/n + 2/n + 3/' lib.py",
        False,
        "+    return n + 3",
        "",
    ),
    "c33b_new_folder_types": (
        "mkdir types; echo 'export function f(n: number): number' > types/index.d.ts",
        True,
        "types/index.d.ts",
        "",
    ),
    "c84_text_auto_crlf": ("sed -i 's/n + 2/n + 3/' lib.py; git checkout -- lib.py", False, "", ""),
}


def evaluate(
    folder: Path, tasks: Path, name: str, *words: str
) -> tuple[dict[str, tuple[str, str]], subprocess.CompletedProcess]:
    """(row -> what became of it and why, the program)"""
    settings = {
        "run": str(folder / name),
        "scaffold": "gold",
        "rollout": {
            "tasks": {"name": "jsonl", "heldout": str(tasks)},
            "groups_per_step": 1,
            "group_size": 1,
            "infrastructure_retries": 0,
            "sandbox": {"scratch": str(folder / "run-10:00")},
        },
    }  # c77: a colon in the path
    (folder / f"{name}.yaml").write_text(json.dumps(settings))
    done = run_program("scripts/evaluate.py", str(folder / f"{name}.yaml"), *words)
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith("left out: "):
            row, _, why = line.removeprefix(f"left out: {tasks.name}, ").partition(", " if ", field" in line else ": ")
            found[row] = "left out", why
    for path in folder.glob(f"{name}_*/results.jsonl"):
        for row in read_jsonl(path):
            became = "resolved" if row["resolved"] else "unresolved"
            became = row["outcome"] if row["outcome"] == "infrastructure_error" else became
            became = "tampered" if row.get("tampered") else became
            found[row["task"]] = became, f"{row['detail']} {row.get('failing', '')}"
    return found, done


def rows_of(case: Path, prefix: bool) -> list[bytes]:
    """The lines of its tasks, with absolute folders and, among those of other cases, ids of their own. What is no JSON
    stays as it is."""
    lines = []
    for line in (case / "tasks.jsonl").read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            lines += [line] if line.strip() else []
            continue
        base = row["environment"].get("base")
        row["environment"] |= {"base": str(case / base)} if base else {}
        row["task_id"] = f"{case.name} {row['task_id']}" if prefix else row["task_id"]
        lines.append(json.dumps(row, ensure_ascii=False).encode())
    return lines


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return once(tmp_path_factory, "cases", lambda folder: (folder / "run-10:00").mkdir())


def names_of(line: bytes, case: Path) -> str:
    try:
        return json.loads(line)["task_id"]
    except ValueError:
        return case.name


@pytest.mark.parametrize("scaffold", ["gold", "empty"])
def test_one_evaluation_of_all_rows_says_of_each_what_became_of_it(whole, scaffold):
    cases = sorted(path.parent for path in CASES.resolve().glob("*/tasks.jsonl"))
    lines = [(case, line) for case in cases for line in rows_of(case, True)]
    names = [names_of(line, case) for case, line in lines]
    (whole / "all.jsonl").write_bytes(b"".join(line + b"\n" for _, line in lines))
    found, done = evaluate(whole, whole / "all.jsonl", scaffold, f"scaffold={scaffold}")
    numbered = {f"line {number}": name for number, name in enumerate(names, 1)}
    found = {numbered.get(row, row): became for row, became in found.items()}
    expected = {name: GOLD.get(name, RESOLVED) for name in names}
    if b"PYTHON_WITH_PYTEST_7" not in (whole / "all.jsonl").read_bytes():
        expected["c30b_root_init_host_app mine-1"] = RESOLVED  # its reader has named one
    if scaffold == "empty":  # repairs nothing; which rows can be used, and which tests can be run, is the same
        attempted = {"resolved", "unresolved"}
        expected = {row: ("unresolved", "") if ends[0] in attempted else ends for row, ends in expected.items()}
    wrong = {
        name: (found.get(name), expected[name])
        for name in names
        if name not in found or found[name][0] != expected[name][0] or expected[name][1] not in found[name][1]
    }
    assert not wrong, (wrong, done.stderr)
    assert len(found) == len(names) and done.returncode == 1, "rows that were not evaluated"
    last = done.stdout.splitlines()[-1]
    assert (
        f"{sum(became == 'left out' for became, _ in expected.values())} rows that cannot be used" in last
        and "ended as infrastructure errors" in last
    )


@pytest.mark.parametrize("file", PREDICTIONS)
def test_predictions_are_graded_one_by_one(whole, file):
    case, name = (CASES / file).parent.resolve(), file.replace("/", "-").removesuffix(".jsonl")
    tasks = whole / f"{name}.jsonl"
    tasks.write_bytes(b"".join(line + b"\n" for line in rows_of(case, False)))
    found, done = evaluate(whole, tasks, name, "--predictions", str(CASES.resolve() / file))
    for row, (became, why) in PREDICTIONS[file].items():
        assert found[row][0] == became and why in found[row][1], (found, done.stderr)
    assert found.keys() == PREDICTIONS[file].keys()


def test_two_files_of_predictions_do_not_pass_for_each_other(whole):
    first, second = (
        evaluate(
            whole,
            CASES / "c03_two_predictions/tasks.jsonl",
            "both",
            "--predictions",
            str(CASES.resolve() / "c03_two_predictions" / file),
        )
        for file in ("good.jsonl", "bad.jsonl")
    )
    assert (
        first[1].returncode == 0
        and second[1].returncode == 1
        and "holds results of other inputs: rollout.scaffold.path" in second[1].stderr
    )


@pytest.mark.parametrize("case", AGENTS)
def test_what_an_agent_does_is_in_its_diff_and_judged(tmp_path, case):
    command, resolved, text, left_out = AGENTS[case]
    (task,), config = jsonl.read(CASES / case / "tasks.jsonl"), sandbox_config("bubblewrap", tmp_path)

    async def main():
        async with start_sandbox(config, task) as sandbox:
            done = await sandbox.run(command)
            return done, await sandbox.diff(), sandbox.dropped_paths

    done, diff, dropped = asyncio.run(main())
    assert (
        done.exit_code == 0
        and text in diff
        and bool(diff) == bool(text)
        and left_out in " ".join(dropped)
        and bool(dropped) == bool(left_out)
    )
    verdict = asyncio.run(grade(task, diff, config))
    assert verdict.resolved == resolved and not verdict.tampered, verdict


@needs_apptainer
def test_a_suite_finds_in_apptainer_what_it_finds_in_bubblewrap(whole):
    found, done = evaluate(whole, CASES / "c54_surroundings/tasks.jsonl", "apptainer", "rollout.sandbox.kind=apptainer")
    ((became, why),) = found.values()
    assert became == "unresolved" and why.endswith(str([AT_HOME])), (found, done.stderr)


def test_rows_of_r2e_gym_are_loaded_and_their_oracle_applies():
    done = subprocess.run(
        [sys.executable, CASES / "c51_r2e_rows/show.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 0
        and "REFUSED" not in done.stdout
        and "that checkout: 0 \n" in done.stdout
        and "deleted file" not in done.stdout
    ), done
