"""SWE-bench: Verified, Lite, full, Multilingual, any split. https://arxiv.org/abs/2310.06770

    tasks: {name: swe_bench, source: SWE-bench/SWE-bench_Verified, split: test}
    tasks: {name: swe_bench, source: data/dev.parquet, environments: images}

A task's `fail_to_pass` and `pass_to_pass` are the row's own ids: pytest's node ids, which the data set cut at the first
space, or the log parser's names. Its environment is not built yet: see building.py.
"""

from functools import partial
from typing import Literal

from coderepairrl.tasks import specifications
from coderepairrl.tasks.repository_recipes import build_environment
from coderepairrl.tasks.rows import Row, RowsConfig, load_rows
from coderepairrl.types import Task


class SweBenchConfig(RowsConfig):
    """SWE-bench and what has its form."""

    name: Literal["swe_bench"] = "swe_bench"
    specifications: str | None = None  # folder of a swebench before 5, or of SWE-Gym's fork; null: fetched, pinned
    hints: bool = False  # add the later comments to the problem statement


def load(config: SweBenchConfig, refused: list[str] | None = None) -> dict[str, list[Task]]:
    return load_rows(config, to_task, refused)


def to_task(row: Row, config: SweBenchConfig) -> Task:
    """Raises TaskError."""
    to_pass, to_keep = row.required_tests()
    facts = {"repo": row.text("repo"), "version": row.text("version", ""), "created_at": row.date("created_at")}
    revision, test_patch = row.text("base_commit"), row.text("test_patch")
    environment, selection = build_environment(
        row,
        **facts,
        revision=revision,
        tests=(*to_pass, *to_keep),
        test_patch=test_patch,
        image=image(row) if config.environments == "images" else None,
        test_timeout_s=config.test_timeout_s,
        specifications=partial(specifications.tables, config.specifications),
    )
    hints = row.text("hints_text", "") if config.hints else ""
    return Task(
        task_id=row.id,
        problem_statement=row.text("problem_statement") + (f"\n\n{hints}" if hints else ""),
        environment=environment,
        files={},
        hidden_tests={},
        test_selection=selection,
        fail_to_pass=to_pass,
        pass_to_pass=to_keep,
        oracle_patch=row.text("patch"),
        metadata=facts | {"base_commit": revision, "split": config.use},
        test_patch=test_patch,
    )


def image(row: Row) -> str:
    """The row's image; rows of older releases name none, but the names of theirs follow from the id."""
    name = row.text("image", "") or f"swebench/sweb.eval.x86_64.{row.id.lower().replace('__', '_1776_')}:latest"
    return name if "://" in name or name.startswith("/") else f"docker://{name}"
