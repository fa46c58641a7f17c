"""Scaffolds that call no model: what they leave in the sandbox is known before, so they show what the environments and the judge are worth.

gold: the oracle's patch, which must resolve. empty: nothing, which must not. gold_less_one_hunk: the n-th episode of a task leaves out
the n-th largest hunk. predictions: patches of somebody else, in SWE-bench's format.
"""
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from unidiff import PatchSet

from coderepairrl.config import Config
from coderepairrl.errors import ConfigError, ScaffoldError
from coderepairrl.rewards.published import apply_published
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


class PredictionsConfig(Config):
    """Patches that somebody else's agent made."""
    name: Literal["predictions"] = "predictions"
    path: str  # JSONL, or a JSON list or mapping, of {"instance_id", "model_patch"}


class Control:
    """Applies a patch that is known before, as SWE-bench does. One that does not apply is the agent's failure, as it is there."""
    calls_model = False

    def __init__(self, patch_of: Callable[[Task], str]):
        self._patch_of = patch_of

    async def run(self, task: Task, sandbox: Sandbox, endpoint: Endpoint) -> str:
        """How the patch was applied."""
        patch = self._patch_of(task)
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
    """The patch less its hunk of that rank in size (lines added and removed), counted round. A file left without hunks is left out."""
    files = PatchSet(patch)
    hunks = sorted(((file, hunk) for file in files for hunk in file), key=lambda pair: -(pair[1].added + pair[1].removed))
    if not hunks:
        return ""
    file, hunk = hunks[number % len(hunks)]
    file.remove(hunk)
    return "".join(str(file) for file in files if len(file))


def predictions(config: PredictionsConfig) -> Control:
    """Raises ConfigError for a file that isn't one; a task without a prediction gets none, which is counted as unresolved."""
    try:
        text = Path(config.path).read_text()
        tree = [json.loads(line) for line in text.split("\n") if line.strip()] if config.path.endswith(".jsonl") else json.loads(text)
        rows = list(tree.values()) if isinstance(tree, dict) else tree
        patches = {row["instance_id"]: row["model_patch"] or "" for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{config.path}: no predictions in SWE-bench's format ({type(error).__name__}: {error}): "
                          'give a file of rows {"instance_id": ..., "model_patch": ...}') from error
    return Control(lambda task: patches.get(task.task_id, ""))
