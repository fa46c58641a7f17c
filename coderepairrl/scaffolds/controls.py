"""Scaffolds that call no model: what they leave in the sandbox is known before, so they show what the environments and
the judge are worth.

gold: the oracle's patch, which must resolve. empty: nothing, which must not. gold_less_one_hunk: the n-th episode of a
task leaves out the n-th largest hunk. predictions: patches of somebody else, in SWE-bench's format.
"""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from unidiff import PatchSet
from unidiff.errors import UnidiffParseError

from coderepairrl.config import Config
from coderepairrl.errors import ConfigError, ScaffoldError, TaskError
from coderepairrl.files import from_json, json_lines
from coderepairrl.grading.published import apply_published
from coderepairrl.sandboxes import Sandbox
from coderepairrl.scaffolds.endpoint import Endpoint
from coderepairrl.types import Task


class GoldConfig(Config):
    """A control: the oracle's patch."""

    name: Literal["gold"] = "gold"


class EmptyConfig(Config):
    """A control: no change."""

    name: Literal["empty"] = "empty"


class GoldLessOneHunkConfig(Config):
    """A control: the oracle's patch without one hunk."""

    name: Literal["gold_less_one_hunk"] = "gold_less_one_hunk"


_MISSING = object()


class PredictionsConfig(Config):
    """Patches that somebody else's agent made."""

    name: Literal["predictions"] = "predictions"
    path: str  # JSONL, or a JSON list or mapping, of {"instance_id", "model_patch"}


class Control:
    """Applies a patch that is known before, as SWE-bench does. One that does not apply is the agent's failure, as it is
    there."""

    calls_model = False

    def __init__(self, patch_of: Callable[[Task], str]):
        self._patch_of = patch_of

    async def run(self, task: Task, sandbox: Sandbox, endpoint: Endpoint) -> str:
        """How the patch was applied."""
        patch = await asyncio.to_thread(self._patch_of, task)
        if not patch.strip():
            return ""
        applied = await apply_published(sandbox, patch)
        if applied.problem:
            raise ScaffoldError(f"the patch does not apply: {applied.problem}")
        return str(applied)


def gold(config: GoldConfig) -> Control:
    return Control(lambda task: task.oracle_patch)


def empty(config: EmptyConfig) -> Control:
    return Control(lambda task: "")


def gold_less_one_hunk(config: GoldLessOneHunkConfig) -> Control:
    episodes: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
    return Control(lambda task: without_hunk(task.oracle_patch, next(episodes[task.task_id])))


def without_hunk(patch: str, number: int) -> str:
    """The patch less its hunk of that rank in size (lines added and removed), counted round. A file left without hunks
    is left out."""
    try:
        files = PatchSet(patch)
    except UnidiffParseError as error:
        raise TaskError(f"the oracle's patch is no unified diff ({error}): leave the task out") from error
    hunks = sorted(
        ((file, hunk) for file in files for hunk in file), key=lambda pair: -(pair[1].added + pair[1].removed)
    )
    if not hunks:
        return ""
    file, hunk = hunks[number % len(hunks)]
    file.remove(hunk)
    return "".join(str(file) for file in files if len(file))


def predictions(config: PredictionsConfig) -> Control:
    """Raises ConfigError for a file that isn't one, or a row that names no task. A task without a prediction gets none,
    as does null, which is counted as unresolved; a prediction that is no text is its agent's failure, as one that does
    not apply is."""
    path, patches = Path(config.path), {}
    try:
        by_line = config.path.endswith(".jsonl")
        tree = [from_json(line) for _, line in json_lines(path)] if by_line else from_json(path.read_bytes())
        for number, row in enumerate(tree.values() if isinstance(tree, dict) else tree, 1):
            if not isinstance(row, dict) or not isinstance(row.get("instance_id"), str):
                raise ValueError(f"row {number} has no instance_id that is a text")
            patches[row["instance_id"]] = row.get("model_patch", _MISSING)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{config.path}: no predictions in SWE-bench's format ({type(error).__name__}: {error}): "
            'give a file of rows {"instance_id": ..., "model_patch": ...}'
        ) from error

    def patch_of(task: Task) -> str:
        patch = patches.get(task.task_id)
        if not isinstance(patch, str | None):
            said = "is missing" if patch is _MISSING else f"is no text but {ascii(patch)[:60]}"
            raise ScaffoldError(f"model_patch of the prediction {said}: give a diff, or null for none")
        return patch or ""

    return Control(patch_of)
