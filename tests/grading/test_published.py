"""Patches as they come: what SWE-bench's harness accepts is accepted, of predictions, the oracle, test patches and at
admission, by one reading."""

import asyncio
from dataclasses import replace

import pytest
from judge_helpers import FIX, PYTEST_TASK, WRONG, change
from published_helpers import DIFFERS, PATCHES
from sandbox_helpers import make_task

from coderepairrl.curation.admission import validate
from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.errors import ScaffoldError, TaskError
from coderepairrl.grading.published import as_diff, carried
from coderepairrl.rewards import grade
from coderepairrl.scaffolds.controls import Control
from coderepairrl.tasks.patches import patched_files

LINES = "".join(f"x{i} = {i}\n" for i in range(20))
FILES = {"a.py": LINES, "lib.py": WRONG, "crlf.py": "a = 1\r\nb = 2\r\nc = 3\r\n", "d.txt": "old\n"}


@pytest.mark.parametrize("case", PATCHES)
def test_a_prediction_is_applied_as_the_harness_would_and_says_how(use, case):
    patch, how = PATCHES[case]

    async def body(sandbox):
        try:
            return await Control(lambda task: patch).run(sandbox.task, sandbox, None), await sandbox.diff()
        except ScaffoldError as error:
            return f"{error}", await sandbox.diff()

    said, diff = use("bubblewrap", body, make_task(FILES))
    if not how:
        assert said.startswith("the patch does not apply: ") and len(said.splitlines()) == 1 and not diff
        return
    assert said == how and bool(diff) == (case != "only binary files that differ")
    assert ".orig" not in diff and ".rej" not in diff and diff.count("\n+x6 = 66") == ("x6" in patch)


def test_a_script_in_a_patch_runs_in_a_sandbox_only(use, tmp_path):
    """GNU patch hands an ed script to ed, which can run commands."""
    evil = tmp_path / "evil"
    script = f"--- a.py\t2020-01-01\n+++ a.py\t2020-01-01\n1337a\n1,112d\n!touch {evil}\n.\n"

    async def body(sandbox):
        try:
            return await Control(lambda task: script).run(sandbox.task, sandbox, None)
        except ScaffoldError as error:
            return str(error)

    assert "does not apply" in use("bubblewrap", body, make_task(FILES)) and not evil.exists()
    with pytest.raises(TaskError, match="does not apply"):
        patched_files("t", "test_patch", None, FILES, script)
    assert not evil.exists()


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in PATCHES
        if "x6" in PATCHES[case][0] and PATCHES[case][1] and "differ" not in case and "rename" not in case
    ],
)
def test_a_test_patch_is_read_by_the_same_rules(case):
    assert "x6 = 66\n" in patched_files("t", "test_patch", None, FILES, PATCHES[case][0])["a.py"].replace("\r", "")


def test_sections_without_content_are_told_from_those_with():
    content = (
        "diff --git a/x.bin b/x.bin\nnew file mode 100644\nindex 0000000..f76dd23\nGIT binary patch\nliteral 1\n"
        "IcmZPo000310RR91\n\n"
    )
    assert carried(content + DIFFERS) == (
        content,
        {"new.bin": "the patch does not hold the content of this binary file"},
    )


ADMITTED = {  # an oracle of PYTEST_TASK in another's hands -> whether it is admitted
    "as it is": (FIX, True),
    "stripped": (FIX.strip(), True),
    "with a picture": (DIFFERS + FIX, True),
    "needs fuzz": (FIX.replace(" def f(a):", " def f(b):"), True),
    "a link that leads outside": (
        change("lib.py", WRONG, None)
        + "diff --git a/lib.py b/lib.py\nnew file mode 120000\n--- /dev/null\n+++ b/lib.py\n@@ -0,0 +1 @@\n"
        "+/repo/right.py\n\\ No newline at end of file\n",
        False,
    ),
    "does not apply": (FIX.replace("a + 2", "b + 2"), False),
}


@pytest.mark.parametrize("case", ADMITTED)
def test_what_is_admitted_is_what_golds_own_diff_repairs(config, tmp_path, case):
    oracle, admitted = ADMITTED[case]
    task = replace(
        PYTEST_TASK, oracle_patch=oracle, files=PYTEST_TASK.files | {"right.py": WRONG.replace("a + 2", "a + 1")}
    )

    async def main():
        decision = await validate(task, EnvironmentsConfig(cache=str(tmp_path / "cache")), config, repeats=1)
        diff, _ = await as_diff(task, oracle, config)
        return decision, await grade(task, diff, config)

    decision, gold = asyncio.run(main())
    assert decision.admitted == gold.resolved == admitted, (decision, gold)
    assert admitted or decision.reason == "the oracle patch does not resolve it" and decision.detail
