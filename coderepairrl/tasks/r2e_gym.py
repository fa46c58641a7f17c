"""R2E-Gym: commits of thirteen repositories with generated tests, in the data set's images.
https://arxiv.org/abs/2504.07164

    tasks: {name: r2e_gym, source: R2E-Gym/R2E-Gym-Subset, split: train, use: train, environments: images}

The rows hold both versions of every changed file, the tests, and pytest's output before and after the commit.
"""

import re
from typing import Any, Literal

from coderepairrl.processes.cause import ANSI
from coderepairrl.tasks.patches import unified_diff
from coderepairrl.tasks.pytest_options import OPTIONS
from coderepairrl.tasks.rows import Row, RowsConfig, load_rows
from coderepairrl.types import Environment, Task

PASSED = re.compile(r"^PASSED (\S+::.*?)\r?$", re.MULTILINE)
REASON = " - "  # between a test and why it failed; it may stand in an id, too
TESTS = "r2e_tests"
COMMAND = ("{python}", "-W", "ignore", "-m", "pytest", *OPTIONS, "{tests}", "{canary_path}")


class R2EGymConfig(RowsConfig):
    """R2E-Gym."""

    name: Literal["r2e_gym"] = "r2e_gym"
    split: str = "train"  # of a hub data set; a file has one
    use: Literal["train", "heldout"] = "train"  # what its tasks are for
    environments: Literal["images"] = "images"  # the row's container image


def load(config: R2EGymConfig, refused: list[str] | None = None) -> dict[str, list[Task]]:
    return load_rows(config, to_task, refused, identity)


def identity(fields: dict[str, Any]) -> dict[str, Any]:
    """The rows have no id."""
    return {"instance_id": f"{fields.get('repo_name')}-{str(fields.get('commit_hash'))[:12]}"}


def to_task(row: Row, config: R2EGymConfig) -> Task:
    """Raises TaskError."""
    run, commit = row.mapping("execution_result_content"), row.mapping("parsed_commit_content")
    names, codes = run.get("test_file_names"), run.get("test_file_codes")
    if not isinstance(names, list) or not isinstance(codes, list) or len(names) != len(codes) or not names:
        row.refuse("execution_result_content", "test_file_names and test_file_codes are not lists of one length")
    if not all(isinstance(text, str) for text in (*names, *codes)):
        row.refuse("execution_result_content", "test_file_names and test_file_codes hold something that is no text")
    before, after = (passed(str(run.get(f"{side}_commit_res_stdout") or "")) for side in ("old", "new"))
    expected = {plain(name): status for name, status in row.mapping("expected_output_json").items()}
    passing = [
        test for test in after if expected.get(short(test), expected.get(short(test).partition(REASON)[0])) == "PASSED"
    ]
    to_pass = tuple(test for test in passing if test not in before)
    if not to_pass:
        row.refuse("execution_result_content", "no test fails before and passes after the commit")
    statement = row.text("problem_statement")
    issue = re.search(r"\[ISSUE\](.*)\[/ISSUE\]", statement, re.DOTALL)
    environment = Environment(
        row.id,
        None,
        "",
        COMMAND,
        test_timeout_s=config.test_timeout_s,
        image=f"docker://{row.text('docker_image')}",
        protected=(f"{TESTS}/",),
    )
    return Task(
        task_id=row.id,
        problem_statement=(issue[1] if issue else statement).strip(),
        environment=environment,
        files={},
        hidden_tests={f"{TESTS}/__init__.py": ""} | {f"{TESTS}/{name}": code for name, code in zip(names, codes)},
        test_selection=(TESTS,),
        fail_to_pass=to_pass,
        pass_to_pass=tuple(test for test in passing if test not in set(to_pass)),
        oracle_patch=oracle(row, commit),
        metadata={
            "repo": row.text("repo_name"),
            "base_commit": str(commit.get("old_commit_hash") or ""),
            "split": config.use,
        },
    )


def passed(log: str) -> dict[str, None]:
    """Node ids, in order, of what pytest's short summary says has passed: of these alone no reason follows, so their
    ids are whole."""
    return dict.fromkeys(PASSED.findall(plain(log)))


def plain(text: str) -> str:
    """Without colours: those of logs, and of keys that were read from them."""
    return ANSI.sub("", text)


def short(test: str) -> str:
    """The data set's name of a test: class and function, without the file."""
    return ".".join(test.split("::")[1:])


def oracle(row: Row, commit: dict) -> str:
    """The commit's difference less its tests."""
    sections = []
    diffs = commit.get("file_diffs") or []
    for change in diffs if isinstance(diffs, list) else [diffs]:
        try:
            path = change["header"]["file"]["path"]
            before, after = sides(change)
            if not all(isinstance(text, str) for text in (path, before or "", after or "")):
                raise TypeError("no text")
        except (KeyError, TypeError, AttributeError):
            row.refuse(
                "parsed_commit_content", "a file of the commit has no path, old_file_content or new_file_content"
            )
        is_test = re.search(r"(^|/)(tests?|testing)/|(^|/)(test_[^/]*|[^/]*_test|conftest)\.py$", path)
        if not is_test and before != after:
            sections.append(unified_diff(path, before, after))
    if not sections:
        row.refuse("parsed_commit_content", "the commit changes nothing but tests")
    return "".join(sections)


def sides(change: dict[str, Any]) -> tuple[str | None, str | None]:
    """A file's text before and after; None: it is not there. The rows say "" of a file that is empty and of one that is
    not there, and tell
    the two apart as git does: by a line of the header, or by /dev/null for a name. Of binary files they hold no
    content."""
    texts = [change["old_file_content"], change["new_file_content"]]
    mode = change["header"].get("misc_line") or ""
    names = [(change.get(f"{sign}_file") or {}).get("path") for sign in ("minus", "plus")]
    if change.get("is_binary_file"):
        return "", ""
    told = bool(mode or any(names))
    made, removed = (
        mode.startswith("new file") or names[0] == "/dev/null",
        mode.startswith("deleted file") or names[1] == "/dev/null",
    )
    return tuple(
        None if (gone if told else not text) else text for text, gone in zip(texts, (made, removed), strict=True)
    )
