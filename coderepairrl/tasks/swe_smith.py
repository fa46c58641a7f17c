"""SWE-smith: bugs injected into real repositories; `patch` makes the bug, so the repair is its reverse.
https://arxiv.org/abs/2504.21798

    tasks: {name: swe_smith, source: SWE-bench/SWE-smith-py, split: train, use: train, environments: images}
"""

from typing import Literal

from coderepairrl.tasks.repository_recipes import build_environment
from coderepairrl.tasks.rows import Row, RowsConfig, load_rows
from coderepairrl.types import Task


class SweSmithConfig(RowsConfig):
    """SWE-smith."""

    name: Literal["swe_smith"] = "swe_smith"
    split: str = "train"  # of a hub data set; a file has one
    use: Literal["train", "heldout"] = "train"  # what its tasks are for


def load(config: SweSmithConfig, refused: list[str] | None = None) -> dict[str, list[Task]]:
    return load_rows(config, to_task, refused)


def to_task(row: Row, config: SweSmithConfig) -> Task:
    """Raises TaskError."""
    to_pass, to_keep = row.required_tests()
    # "swesmith/OWNER__NAME.COMMIT": their copy of the repository at that commit, with one commit
    owner, underscores, rest = row.text("repo").rpartition("/")[2].partition("__")
    name, dot, commit = rest.rpartition(".")
    if not (underscores and dot and commit):
        row.refuse("repo", f"{row.text('repo')!r} is not of the form swesmith/OWNER__NAME.COMMIT")
    statement, bug = row.text("problem_statement", ""), row.text("patch")
    if not statement.strip():
        row.refuse("problem_statement", "empty: this bug was published without one")
    image = row.text("image_name", "")
    if config.environments == "images" and not image:
        row.refuse("image_name", "missing")
    environment, selection = build_environment(
        row,
        repo=f"{owner}/{name}",
        version="",
        revision=commit,
        created_at=row.date("created_at"),
        tests=(*to_pass, *to_keep),
        test_patch="",
        image=f"docker://{image}" if config.environments == "images" else None,
        test_timeout_s=config.test_timeout_s,
    )
    return Task(
        task_id=row.id,
        problem_statement=statement,
        environment=environment,
        files={},
        hidden_tests={},
        test_selection=selection,
        fail_to_pass=to_pass,
        pass_to_pass=to_keep,
        oracle_patch="",
        bug_patch=bug,  # building.py makes the oracle of it
        metadata={"repo": f"{owner}/{name}", "base_commit": commit, "split": config.use},
    )
