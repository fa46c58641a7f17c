"""R2E-Gym: commits of thirteen repositories with generated tests, in the data set's images. https://arxiv.org/abs/2504.07164

    tasks: {name: r2e_gym, source: R2E-Gym/R2E-Gym-Subset, split: train, use: train, environments: images}

The rows hold both versions of every changed file, the tests, and pytest's output before and after the commit.
"""
import re
from typing import Any, Literal

from coderepairrl.tasks.patches import unified_diff
from coderepairrl.tasks.rows import Row, RowsConfig, load_rows
from coderepairrl.types import Environment, Task

SUMMARY = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) (\S+::.*?)(?: - .*)?$", re.MULTILINE)
TESTS = "r2e_tests"
COMMAND = ("{python}", "-W", "ignore", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1", "--junitxml={junit}/report.xml",
           "{tests}", "{canary_path}")


class R2EGymConfig(RowsConfig):
    """R2E-Gym."""
    name: Literal["r2e_gym"] = "r2e_gym"
    split: str = "train"  # of a hub data set; a file has one
    use: Literal["train", "heldout"] = "train"  # what its tasks are for
    environments: Literal["images"] = "images"  # the row's container image


def load(config: R2EGymConfig) -> dict[str, list[Task]]:
    return load_rows(config, to_task, identity)


def identity(fields: dict[str, Any]) -> dict[str, Any]:
    """The rows have no id."""
    return {"instance_id": f"{fields.get('repo_name')}-{str(fields.get('commit_hash'))[:12]}"}


def to_task(row: Row, config: R2EGymConfig) -> Task:
    """Raises TaskError."""
    run, commit = row.mapping("execution_result_content"), row.mapping("parsed_commit_content")
    names, codes = run.get("test_file_names"), run.get("test_file_codes")
    if not isinstance(names, list) or not isinstance(codes, list) or len(names) != len(codes) or not names:
        row.refuse("execution_result_content", "test_file_names and test_file_codes are not lists of one length")
    before, after = (statuses(str(run.get(f"{side}_commit_res_stdout") or "")) for side in ("old", "new"))
    expected = {name for name, status in row.mapping("expected_output_json").items() if status == "PASSED"}
    passing = [test for test, status in after.items() if status == "PASSED" and short(test) in expected]
    to_pass = tuple(test for test in passing if before.get(test) != "PASSED")
    if not to_pass:
        row.refuse("execution_result_content", "no test fails before and passes after the commit")
    statement = row.text("problem_statement")
    issue = re.search(r"\[ISSUE\](.*)\[/ISSUE\]", statement, re.DOTALL)
    environment = Environment(row.id, None, "", COMMAND, test_timeout_s=config.test_timeout_s, image=f"docker://{row.text('docker_image')}",
                              protected=(f"{TESTS}/",))
    return Task(
        task_id=row.id, problem_statement=(issue[1] if issue else statement).strip(), environment=environment, files={},
        hidden_tests={f"{TESTS}/__init__.py": ""} | {f"{TESTS}/{name}": code for name, code in zip(names, codes)}, test_selection=(TESTS,),
        fail_to_pass=to_pass, pass_to_pass=tuple(test for test in passing if test not in set(to_pass)), oracle_patch=oracle(row, commit),
        metadata={"repo": row.text("repo_name"), "base_commit": str(commit.get("old_commit_hash") or ""), "split": config.use})


def statuses(log: str) -> dict[str, str]:
    """Node id -> status, of pytest's short summary."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
    return {test: status for status, test in SUMMARY.findall(plain)}


def short(test: str) -> str:
    """The data set's name of a test: class and function, without the file."""
    return ".".join(test.split("::")[1:])


def oracle(row: Row, commit: dict) -> str:
    """The commit's difference less its tests."""
    sections = []
    for change in commit.get("file_diffs") or []:
        try:
            path = change["header"]["file"]["path"]
            before, after = change["old_file_content"], change["new_file_content"]
        except (KeyError, TypeError):
            row.refuse("parsed_commit_content", "a file of the commit has no path, old_file_content or new_file_content")
        is_test = re.search(r"(^|/)(tests?|testing)/|(^|/)(test_[^/]*|[^/]*_test|conftest)\.py$", path)
        if not is_test and before != after:
            sections.append(unified_diff(path, before or None, after or None))
    if not sections:
        row.refuse("parsed_commit_content", "the commit changes nothing but tests")
    return "".join(sections)
