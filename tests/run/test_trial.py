"""Each environment is tried once before the first step; what does not work is named with what its tests said."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from judge_helpers import FIX, PYTEST_TASK, RIGHT, change
from rollout_helpers import TASKS, folder, rollout_of

from coderepairrl.curation.admission import validate
from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.errors import ConfigError, TaskError
from coderepairrl.files import read_json
from coderepairrl.rewards import Grader, RewardConfig
from coderepairrl.run.trial import key_of, problem_of, try_environments
from coderepairrl.sandboxes import SandboxConfig

FIRST, SECOND, *_ = TASKS["train"]
WRONG = replace(FIRST, task_id="wrong", oracle_patch=SECOND.oracle_patch)


def in_environment(task, **changes):
    return replace(task, environment=replace(task.environment, **changes))


def tried(tmp_path, *tasks, weights=None) -> tuple[Grader, dict]:
    grader = Grader(SandboxConfig())
    asyncio.run(try_environments(tasks, grader, RewardConfig(weights=weights or {"tests": 1.0}), tmp_path))
    return grader, read_json(tmp_path / "environments_tried.json")


def test_one_task_of_each_environment_once(tmp_path):
    other = in_environment(SECOND, lock="abc", name="other")
    grader, works = tried(
        tmp_path, *TASKS["train"], *TASKS["heldout"], other, in_environment(FIRST, lock="abc", name="renamed")
    )
    assert grader.runs == 2 and Counter(row["task"] for row in works.values()) == {FIRST.task_id: 1, SECOND.task_id: 1}
    assert tried(tmp_path, *TASKS["train"], other)[0].runs == 0, "a later attempt has nothing to try"
    assert tried(tmp_path, *TASKS["train"], in_environment(SECOND, lock="new"))[0].runs == 1


def test_what_makes_an_environment_another_one():
    same = {key_of(task.environment, SandboxConfig()) for task in TASKS["train"]}
    assert len(same) == 1
    others = [
        in_environment(FIRST, **changes).environment
        for changes in (
            {"lock": "1"},
            {"image": "docker://x"},
            {"test_command": ("false", "{canary_module}")},
            {"variables": {"A": "1"}},
        )
    ]
    assert len({key_of(environment, SandboxConfig()) for environment in others} | same) == 5
    assert key_of(FIRST.environment, SandboxConfig(memory_mib=100)) not in same


def test_a_wrong_task_is_no_broken_environment(tmp_path):
    assert tried(tmp_path, WRONG, FIRST)[1].popitem()[1]["task"] == FIRST.task_id


@pytest.mark.parametrize(
    ("task", "weights", "said"),
    [
        (WRONG, None, "task wrong in environment functions: the oracle's patch does not resolve it"),
        (
            in_environment(FIRST, name="silent", test_command=("false", "{canary_module}")),
            None,
            "in environment silent: its tests give no verdict",
        ),
        (
            replace(in_environment(FIRST, test_command=("false", "{canary_module}")), oracle_patch=""),
            None,
            "its tests give no verdict",
        ),
        (
            in_environment(FIRST, name="mute", test_command=("true", "{canary_module}")),
            None,
            "in environment mute: its tests give no verdict",
        ),
        (in_environment(FIRST, python="/no/python"), None, "/no/python"),
        (in_environment(FIRST, python="/no/python"), {"random": 1.0}, "/no/python"),
        (WRONG, {"random": 1.0}, "does not apply"),
        (replace(FIRST, metadata={"build_command": "false"}), {"build": 1.0}, "gets 0 from reward build"),
        (FIRST, {"visible_log": 1.0}, ""),
        (replace(FIRST, oracle_patch=""), None, ""),
    ],
)
def test_what_does_not_work_is_named(tmp_path, task, weights, said):
    if not said:
        tried(tmp_path, task, weights=weights)
        return
    with pytest.raises(TaskError) as caught:
        tried(tmp_path, task, weights=weights)
    message = str(caught.value)
    assert said in message and task.task_id in message and "\n" not in message and "1 of 1 environments" in message, (
        message
    )
    assert read_json(tmp_path / "environments_tried.json") == {}


def test_a_training_run_starts_with_it_unless_it_is_told_not_to(tmp_path):
    broken = {
        split: [in_environment(task, test_command=("false", "{canary_module}")) for task in tasks]
        for split, tasks in TASKS.items()
    }

    async def start(**settings):
        async with rollout_of(folder(tmp_path), broken, **settings):
            pass

    with pytest.raises(TaskError, match="try_environments=false"):
        asyncio.run(start())
    asyncio.run(start(try_environments=False))
    with pytest.raises(ConfigError, match="no training tasks"):
        rollout_of(folder(tmp_path), {"train": [], "heldout": TASKS["heldout"]})


NEEDS_FUZZ = FIX.replace(" def f(a):", " def f(b):")
LOST = replace(
    PYTEST_TASK,
    files=PYTEST_TASK.files | {".gitignore": "gen.py\n", "lib.py": "from gen import f, g\n"},
    oracle_patch=change("gen.py", None, RIGHT),
)
AS_ADMISSION = {  # an oracle -> what keeps it from resolving its task, if anything does
    "as it is": (PYTEST_TASK, ""),
    "needs fuzz": (replace(PYTEST_TASK, oracle_patch=NEEDS_FUZZ), ""),
    "stripped": (replace(PYTEST_TASK, oracle_patch=FIX.strip()), ""),
    "does not apply": (replace(PYTEST_TASK, oracle_patch=FIX.replace("a + 2", "b + 2")), "does not apply"),
    "its diff loses the repair": (LOST, "gen.py"),
    "does not repair": (replace(PYTEST_TASK, oracle_patch=FIX.replace("a + 1", "a + 3")), "test_f"),
}


@pytest.mark.parametrize("case", AS_ADMISSION)
def test_the_trial_admits_what_admission_admits(tmp_path, case):
    task, said = AS_ADMISSION[case]
    config = SandboxConfig(scratch=str(tmp_path))

    async def main():
        decision = await validate(task, EnvironmentsConfig(cache=str(tmp_path / "cache")), config, repeats=1)
        return (
            decision,
            await problem_of(task, Grader(config), RewardConfig()),
            await problem_of(task, Grader(config), RewardConfig(weights={"random": 1.0})),
        )

    decision, problem, without_tests = asyncio.run(main())
    assert decision.admitted == (not problem) == (not said), (decision, problem)
    assert (
        not said
        or said in decision.detail
        and said in problem
        and decision.reason == "the oracle patch does not resolve it"
    )
    assert bool(without_tests) == (said == "does not apply")
