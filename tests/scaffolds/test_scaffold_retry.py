"""The control that forces an agent to go on: what a submission is answered with, what starts again, what ends."""

import asyncio
from dataclasses import replace

import pytest
from conftest import ROOT
from gateway_helpers import tokenizer
from scaffold_helpers import LIMITS, episodes, tool_text

from coderepairrl.config import load
from coderepairrl.demonstrations.expert import test_output as printed
from coderepairrl.errors import ConfigError
from coderepairrl.rewards import Grader
from coderepairrl.rollout.rollout import Rollout
from coderepairrl.rollout.rollout_config import RolloutConfig
from coderepairrl.sandboxes import SandboxConfig
from coderepairrl.scaffolds import make_scaffold
from coderepairrl.scaffolds.command import CommandConfig
from coderepairrl.scaffolds.retry import FAILS, UNSOLVED, RetryConfig
from coderepairrl.scaffolds.single_pass import SinglePassConfig
from coderepairrl.scaffolds.terminal_text import TerminalTextConfig
from coderepairrl.tasks.functions import FunctionsConfig, puzzles
from coderepairrl.types import Outcome

PUZZLE = next(puzzles("train", "retry"))
TASK = PUZZLE.task
HIDDEN = replace(TASK, metadata={})  # of which only the judge knows whether it is solved
BROKEN, RIGHT = (source.split("\n")[PUZZLE.bug.line - 1] for source in (PUZZLE.broken, PUZZLE.program.source))
TOLD = f"{printed(PUZZLE, PUZZLE.broken)}\n{FAILS}"
SUBMIT, REPAIR = tool_text("submit"), tool_text("edit", path="lib.py", old=PUZZLE.broken, new=PUZZLE.program.source)
EDIT = "```edit\nlib.py\n<<<<<<< SEARCH\n%s\n=======\n%s\n>>>>>>> REPLACE\n```"


def run(texts, tmp_path, task=TASK, agent=None, **limits):
    """One episode under the control, with a judge."""
    config = RetryConfig() if agent is None else RetryConfig(agent=agent)
    scaffold = make_scaffold(config, Grader(SandboxConfig(scratch=str(tmp_path))))
    job = (task, texts, LIMITS.model_copy(update=limits))
    return asyncio.run(episodes(scaffold, [job], tmp_path))[0]


def answers(trajectory):
    """What the agent was answered with, a list for each call but the first."""
    calls = [event for event in trajectory.events if event["kind"] == "call"]
    return [call["new_messages"] for call in calls[1:]]


# ---- agents that take turns


def test_a_submission_is_answered_until_the_test_passes(tmp_path):
    """Also one that stands between other calls: each has its answer, in the order of the calls."""
    between = "\n".join([tool_text("shell", command="echo before"), SUBMIT, tool_text("shell", command="echo after")])
    found = run([SUBMIT, between, REPAIR, SUBMIT], tmp_path)
    assert found.outcome is Outcome.SUBMITTED and found.verdict.resolved and len(found.calls) == 4
    assert [call.parent for call in found.calls] == [None, 0, 1, 2], "one conversation"
    first, second, third = answers(found)
    assert [message["content"] for message in first] == [TOLD]
    assert [message["content"] for message in second] == ["before", TOLD, "after"]
    said = [event["message"]["tool_calls"] for event in found.events if event["kind"] == "call"]
    for calls, told in zip(said, (first, second, third)):
        assert [message["role"] for message in told] == ["tool"] * len(calls)
        assert [message["tool_call_id"] for message in told] == [call["id"] for call in calls]


@pytest.mark.parametrize(
    "limits, outcome", [({"max_turns": 3}, Outcome.TURN_LIMIT), ({"max_total_tokens": 2000}, Outcome.TOKEN_LIMIT)]
)
def test_a_limit_of_the_gateway_ends_it(tmp_path, limits, outcome):
    found = run([SUBMIT] * 50, tmp_path, **limits)
    assert found.outcome is outcome and not found.verdict.resolved
    assert len(found.calls) == limits.get("max_turns", len(found.calls)) > 1


def test_a_test_that_takes_too_long_fails_and_what_the_deadline_ends_is_no_submission(tmp_path):
    slow = replace(TASK, metadata={"visible_test": "sleep 60"})
    slow = replace(slow, environment=replace(TASK.environment, test_timeout_s=0.5))
    found = run([SUBMIT] * 50, tmp_path, slow, deadline_s=3)
    assert found.outcome is Outcome.TIME_LIMIT and len(found.calls) > 1
    assert [message["content"] for told in answers(found) for message in told] == [
        f"[killed: time limit of 0.5 s]\n{FAILS}"
    ] * (len(found.calls) - 1)


def test_artefacts_of_the_test_are_in_no_diff(tmp_path):
    traces = "mkdir __pycache__ .pytest_cache; touch .coverage; echo x | tee __pycache__/x.pyc > .pytest_cache/x; false"
    found = run([SUBMIT] * 2, tmp_path, replace(TASK, metadata={"visible_test": traces}), max_turns=2)
    assert found.outcome is Outcome.TURN_LIMIT and not found.diff


def test_the_text_agent_is_answered_by_its_user(tmp_path):
    submit = "```bash\nsubmit\n```"
    found = run([submit, EDIT % (BROKEN, RIGHT), submit], tmp_path, agent=TerminalTextConfig())
    assert found.outcome is Outcome.SUBMITTED and found.verdict.resolved
    assert answers(found) == [[{"role": "user", "content": TOLD}], [{"role": "user", "content": "ok"}]]


def test_an_agent_that_gives_up_ends_as_without(tmp_path):
    found = run(["hm"] * 4, tmp_path, agent=TerminalTextConfig())
    assert found.outcome is Outcome.AGENT_ERROR and "3 answers in a row" in found.outcome_detail


# ---- tasks without a visible test


def test_without_a_visible_test_the_verdict_decides(tmp_path):
    cheat = tool_text("shell", command="echo 'print(\"PASS\")' > test_lib.py")  # the visible test is not asked
    found = run([cheat, SUBMIT, REPAIR, SUBMIT], tmp_path, HIDDEN)
    assert found.outcome is Outcome.SUBMITTED and found.verdict.resolved and len(found.calls) == 4
    assert [message["content"] for message in answers(found)[1]] == [UNSOLVED]


def test_an_environment_whose_tests_cannot_run_is_the_machines_error(tmp_path):
    broken = replace(HIDDEN, environment=replace(HIDDEN.environment, test_command=("false", "{canary_module}")))
    found = run([SUBMIT] * 2, tmp_path, broken)
    assert found.outcome is Outcome.INFRASTRUCTURE_ERROR and "SandboxError: environment: " in found.outcome_detail
    assert found.verdict is None and len(found.calls) == 1


def test_without_a_judge_it_is_said_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match="visible_test.*Grader"):
        asyncio.run(episodes(make_scaffold(RetryConfig()), [(HIDDEN, [SUBMIT])], tmp_path))


def test_a_rollout_gives_its_judge(tmp_path):
    config = RolloutConfig(tasks=FunctionsConfig(), scaffold=RetryConfig(), server={"max_model_len": 1024})
    rollout = Rollout(config, tmp_path, None, 1, tasks={"heldout": [TASK]})
    assert rollout._scaffold.grader is rollout.grader


# ---- agents that are started again

WRITER = """
import json, os, sys, urllib.error, urllib.request
from pathlib import Path
mark = Path(os.environ["HOME"], "mark")
with open("log.txt", "a") as log:
    log.write(f"started, mark: {mark.exists()}\\n")
mark.write_text("x")
body = json.dumps({"model": "policy", "messages": [{"role": "user", "content": "the file?"}]}).encode()
headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, headers)
try:
    answer = json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]
except urllib.error.HTTPError:
    sys.exit()
Path("lib.py").write_text(answer)
"""


@pytest.mark.parametrize("kind", ["bubblewrap", "local"])
def test_a_program_is_started_again_on_the_same_tree_in_a_new_home(tmp_path, kind):
    (tmp_path / "agent.py").write_text(WRITER)
    agent = CommandConfig(argv=("{python}", "-I", "{home}/agent.py"), files={"agent.py": str(tmp_path / "agent.py")})
    scaffold, right = make_scaffold(RetryConfig(agent=agent)), PUZZLE.program.source
    two_turns = LIMITS.model_copy(update={"max_turns": 2})
    jobs = [(TASK, [PUZZLE.broken, "no code", right, "never"]), (TASK, ["no code"] * 9, two_turns)]
    repaired, ended = asyncio.run(episodes(scaffold, jobs, tmp_path / "scratch", kind=kind))
    assert repaired.outcome is Outcome.SUBMITTED and repaired.verdict.resolved, repaired.outcome_detail
    assert len(repaired.calls) == 3 and repaired.diff.count("+started, mark: False\n") == 3
    assert "mark: True" not in repaired.diff
    assert ended.outcome is Outcome.TURN_LIMIT and len(ended.calls) == 2 and "+no code" in ended.diff


@pytest.mark.parametrize("line, said", [("true", "without a call of its model"), ("exit 3", "exit code 3")])
def test_a_program_that_does_nothing_or_breaks_is_not_started_for_ever(tmp_path, line, said):
    found = run([], tmp_path, agent=CommandConfig(argv=("bash", "-c", f"echo x >> log.txt; {line}")))
    assert found.outcome is Outcome.AGENT_ERROR and said in found.outcome_detail and found.diff.count("+x") == 1


def test_a_single_answer_is_asked_for_again_with_the_tree_as_it_is(tmp_path):
    block = "lib.py\n<<<<<<< SEARCH\n%s\n=======\n%s\n>>>>>>> REPLACE\n"
    found = run([block % (BROKEN, "    pass"), block % ("    pass", RIGHT)], tmp_path, agent=SinglePassConfig())
    assert found.outcome is Outcome.SUBMITTED and found.verdict.resolved and len(found.calls) == 2
    first, second = (tokenizer().decode(call.prompt_ids) for call in found.calls)
    assert PUZZLE.broken in first and PUZZLE.broken.replace(BROKEN, "    pass") in second


# ---- configurations


@pytest.fixture(autouse=True)
def programs(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")


@pytest.mark.parametrize(
    "agent, said",
    [
        ("{name: gold}", "rollout.scaffold.agent.name: there is no 'gold'"),
        ("{name: retry}", "rollout.scaffold.agent.name: there is no 'retry'"),
        ("{name: terminal, max_output_chars: 0}", "rollout.scaffold.agent.max_output_chars: "),
        ("{name: terminal, max_output: 1}", "unknown key 'rollout.scaffold.agent.max_output': did you mean"),
        ("{name: command}", "rollout.scaffold.agent.argv: Field required"),
    ],
)
def test_a_mistake_is_said_with_its_key(agent, said):
    from coderepairrl.run.evaluate_config import EvaluateConfig

    override = f"rollout.scaffold={{name: retry, agent: {agent}}}"
    with pytest.raises(ConfigError) as refused:
        load(EvaluateConfig, ROOT / "configs/eval/quickstart.yaml", [override])
    assert str(refused.value).startswith(f"override {override!r}: {said}")


def test_it_may_be_evaluated_and_looked_at_but_not_trained():
    from run_one import RunOneConfig

    from coderepairrl.run.evaluate_config import EvaluateConfig
    from coderepairrl.run.train_config import TrainConfig

    config = load(EvaluateConfig, ROOT / "configs/eval/quickstart_retry.yaml", [])
    plain = load(EvaluateConfig, ROOT / "configs/eval/quickstart.yaml", [])
    assert config.rollout.scaffold == RetryConfig(agent=plain.rollout.scaffold)
    assert config.rollout.model_copy(update={"scaffold": plain.rollout.scaffold}) == plain.rollout, "the same limits"
    words = ROOT / "configs/quickstart.yaml", ["rollout.scaffold={name: retry}"]
    assert load(RunOneConfig, *words).rollout.scaffold == RetryConfig()
    with pytest.raises(ConfigError, match="rollout.scaffold: retry is a control for evaluations"):
        load(TrainConfig, *words)
