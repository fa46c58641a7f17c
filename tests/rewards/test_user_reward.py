"""Rewards by a dotted path: the document's own example on a real task, and every way in which a user's function can be
wrong."""

import asyncio
import re
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from coderepairrl.config import Config, load
from coderepairrl.errors import ConfigError
from coderepairrl.rewards import REWARDS, Grader, RewardConfig, compute, find_reward
from coderepairrl.sandboxes import SandboxConfig
from coderepairrl.tasks import functions
from coderepairrl.tasks.functions import FunctionsConfig

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "rewards.md").read_text()


@pytest.fixture(scope="module")
def task():
    return functions.load(FunctionsConfig(train=1, heldout=0))["train"][0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory of its own; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # files of one test change faster than their time stamps
    before = set(sys.modules)
    find_reward.cache_clear()
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
    find_reward.cache_clear()


def block(language):
    found = re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(found) == 1
    return found[0]


def judge(folder, config, task, *diffs):
    async def main():
        grader = Grader(SandboxConfig(scratch=str(folder / "scratch")))
        return [await compute(config, task, diff, grader) for diff in diffs]

    (folder / "scratch").mkdir(exist_ok=True)
    return asyncio.run(main())


def test_the_documents_example_does_what_it_says(folder, task):
    assert len(block("python").splitlines()) == 10
    (folder / "my_rewards.py").write_text(block("python"))
    config = RewardConfig(**yaml.safe_load(block("yaml"))["rollout"]["rewards"])
    long = (
        task.oracle_patch + "diff --git a/notes.txt b/notes.txt\nnew file mode 100644\n--- /dev/null\n+++ b/notes.txt\n"
        "@@ -0,0 +1,2 @@\n+one\n+two\n"
    )
    (good, parts, total), (_, long_parts, _), (bad, bad_parts, bad_total) = judge(
        folder, config, task, task.oracle_patch, long, ""
    )
    assert good.resolved and parts == {"tests": 1.0, "my_rewards.short_diff": 1.0} and total == pytest.approx(1.1)
    assert long_parts == {"tests": 1.0, "my_rewards.short_diff": 0.5}
    assert not bad.resolved and bad_parts == {"tests": 0.0, "my_rewards.short_diff": 0.0} and bad_total == 0.0


def test_a_users_reward_alone_gets_task_diff_and_verdict(folder, task):
    """Also from a package, as a callable object, and where no other reward runs the tests."""
    (folder / "mine").mkdir()
    (folder / "mine" / "__init__.py").write_text("")
    (folder / "mine" / "parts.py").write_text(
        "class Seen:\n    calls = []\n    def __call__(self, *arguments):\n        self.calls.append(arguments)\n"
        "        return True\n\nseen = Seen()\n"
    )
    [(verdict, parts, total)] = judge(folder, RewardConfig(weights={"mine.parts.seen": -2}), task, task.oracle_patch)
    assert (
        sys.modules["mine.parts"].Seen.calls == [(task, task.oracle_patch, verdict)]
        and verdict.evidence == "junit+canary"
    )
    assert parts == {"mine.parts.seen": 1.0} and type(parts["mine.parts.seen"]) is float and total == -2.0


def test_the_working_directory_hides_no_installed_module(folder):
    (folder / "math.py").write_text("def fsum(task, diff, verdict):\n    return 0\n")
    (folder / "yaml.py").write_text("def load(task, diff, verdict):\n    return 0\n")
    with pytest.raises(ValueError, match="can't be called as"):
        find_reward("math.fsum")
    assert find_reward("tests") is REWARDS["tests"]


WRONG_PATHS = {  # name -> (files, what the one line says)
    "nowhere.f": ({}, "no module 'nowhere': put nowhere.py into the working directory"),
    "there.nowhere.f": (
        {"there/__init__.py": ""},
        "no module 'there.nowhere': put there/nowhere.py into the working directory",
    ),
    "there.f": ({"there.py": "def g(task, diff, verdict): pass\n"}, "there.py) has no 'f': correct the name"),
    "constant.f": ({"constant.py": "f = 0.5\n"}, "'f' of constant (*constant.py) is float, not callable"),
    "two.f": (
        {"two.py": "def f(task, diff): return 0\n"},
        "can't be called as f(task, diff, verdict)*too many positional arguments",
    ),
    "keyword.f": (
        {"keyword.py": "def f(task, diff, verdict, *, scale): return 0\n"},
        "missing a required argument: 'scale'",
    ),
    "lacks.f": (
        {"lacks.py": "import not_installed_anywhere\n"},
        "lacks imports not_installed_anywhere, which is not there: install it",
    ),
    "syntax.f": ({"syntax.py": "def f(:\n"}, "syntax can't be imported (SyntaxError: *syntax.py, line 1)): mend it"),
    "broken.f": (
        {"broken.py": "\n1 / 0\n"},
        "broken can't be imported (ZeroDivisionError: division by zero; *broken.py:2): mend it",
    ),
    "script.f": (
        {"script.py": "import sys\nsys.exit('usage')\n"},
        "script can't be imported (SystemExit: usage; *script.py:2)",
    ),
    "a-b.f": ({}, "not a dotted path"),
    ".f": ({}, "not a dotted path"),
    "testz": ({}, "unknown reward 'testz': did you mean 'tests'?"),
    "qqq": ({}, "or the dotted path of your own"),
}


@pytest.mark.parametrize("path", WRONG_PATHS)
def test_a_wrong_path_is_one_line_before_anything_starts(folder, path):
    files, said = WRONG_PATHS[path]
    path = path.replace("keyword", "keyword_only")  # keyword is a module of Python's own
    for name, text in files.items():
        file = folder / name.replace("keyword", "keyword_only")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    class Run(Config):
        rewards: RewardConfig

    (folder / "run.yaml").write_text(yaml.safe_dump({"rewards": {"weights": {path: 1.0}}}))
    with pytest.raises(ConfigError) as caught:
        load(Run, folder / "run.yaml")
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{folder}/run.yaml:2: rewards.weights: "), message
    assert re.search(".*".join(map(re.escape, said.split("*"))), message), message


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf"])
def test_weights_are_finite(weight):
    with pytest.raises(ValidationError, match="finite"):
        RewardConfig(weights={"tests": float(weight)})


FAILURES = {  # body -> what the error says
    # the user's line, not the library's
    "import json; json.loads('{')": "raised JSONDecodeError: *; *bad.py:2 on task ",
    "raise KeyError('lib.py')": "raised KeyError: 'lib.py'; *bad.py:2 on task ",
    # would hang a coroutine that waits for the thread
    "return next(iter([]))": "raised StopIteration: ; *bad.py:2 on task ",
    "raise SystemExit(0)": "raised SystemExit: 0; *bad.py:2 on task ",
    "from coderepairrl.errors import SandboxError; raise SandboxError('x')": "raised SandboxError: x; *bad.py:2 on "
    "task ",  # not the machine's fault
    "return None": "returned None on task *: it must return a finite number",
    "return float('nan')": "returned nan on task ",
    "return 10 ** 400": "returned 10000*000 on task ",
    "return -float('inf')": "returned -inf on task ",
    "return '1.0'": "returned '1.0' on task ",
    "return 1j": "returned 1j on task ",
}


@pytest.mark.parametrize("body", FAILURES)
def test_a_failure_of_a_users_reward_ends_the_run_and_is_no_reward(folder, task, body):
    (folder / "bad.py").write_text(f"def f(task, diff, verdict):\n    {body}\n")
    with pytest.raises(ConfigError) as caught:
        judge(folder, RewardConfig(weights={"tests": 1.0, "bad.f": 0.0}), task, task.oracle_patch)
    message = str(caught.value)
    said = ".*".join(map(re.escape, FAILURES[body].split("*")))
    assert (
        "\n" not in message
        and message.startswith("reward 'bad.f' ")
        and re.search(said, message)
        and len(message) < 400
    ), message


@pytest.mark.parametrize(
    "value",
    [
        "True",
        "3",
        "__import__('fractions').Fraction(1, 2)",
        "__import__('numpy').float32(0.25)",
        "__import__('numpy').int64(7)",
    ],
)
@pytest.mark.filterwarnings("error")
def test_numbers_of_all_kinds_become_floats(folder, task, value):
    (folder / "kinds.py").write_text(f"def f(task, diff, verdict):\n    return {value}\n")
    [(_, parts, total)] = judge(folder, RewardConfig(weights={"kinds.f": 1.0}), task, task.oracle_patch)
    assert type(parts["kinds.f"]) is float and total == parts["kinds.f"] == float(eval(value))


def test_a_slow_reward_holds_up_nobody_else(folder, task):
    """The event loop turns while it waits: the reward returns only after another coroutine has opened the gate."""
    (folder / "slow.py").write_text(
        "import threading\n\ngate = threading.Event()\n\n\ndef f(task, diff, verdict):\n    return gate.wait(60)\n"
    )
    config = RewardConfig(weights={"slow.f": 1.0})

    async def main():
        (folder / "scratch").mkdir()
        computing = asyncio.create_task(
            compute(config, task, task.oracle_patch, Grader(SandboxConfig(scratch=str(folder / "scratch"))))
        )
        await asyncio.sleep(0)
        sys.modules["slow"].gate.set()
        return await computing

    assert asyncio.run(main())[1] == {"slow.f": 1.0}
