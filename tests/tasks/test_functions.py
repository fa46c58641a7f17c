"""The embedded tasks are what they claim: repeatable, split without leaks, repairable; demonstrations show what really
happens."""

import ast
import asyncio
import random
from itertools import islice

import pytest

from coderepairrl.demonstrations.acts import Edit
from coderepairrl.demonstrations.expert import (
    DemonstrationsConfig,
    candidate_edits,
    demonstrate,
    demonstration_acts,
    drill,
    generate,
    habitual_edit,
)
from coderepairrl.grading.grader import grade
from coderepairrl.sandboxes import SandboxConfig, start_sandbox
from coderepairrl.scaffolds.terminal import Terminal, TerminalConfig
from coderepairrl.tasks import functions
from coderepairrl.tasks.functions import FunctionsConfig, apply_bug, is_held_out, puzzles

PROMPT = "Repair the code."
# every kind of turn occurs often
CONFIG = DemonstrationsConfig(p_right=0.4, p_habit=0.3, p_test=0.8, p_retry=0.8, p_slip=0.3)


def draw(split, seed, count):
    return list(islice(puzzles(split, seed), count))


@pytest.fixture(scope="module")
def train():
    return draw("train", "0", 1200)


@pytest.fixture(scope="module")
def heldout():
    return draw("heldout", "test", 1200)


def anonymous(source):
    """The function's code less its docstring, with every name but min and max replaced by its number: made from the
    text alone."""
    tree = ast.parse(source)
    body = tree.body[0].body
    assert isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    names = {}
    for node in ast.walk(ast.Module(body[1:], [])):
        if isinstance(node, ast.Name) and node.id not in ("min", "max"):
            node.id = names.setdefault(node.id, f"n{len(names)}")
    return ast.unparse(ast.Module(body[1:], []))


def test_a_stream_is_the_same_each_time_and_others_differ():
    assert draw("train", "7", 40) == draw("train", "7", 40)
    assert draw("train", "7", 40) != draw("train", "8", 40)
    short, long = (
        functions.load(FunctionsConfig(train=5, heldout=3)),
        functions.load(FunctionsConfig(train=9, heldout=3, seed=1)),
    )
    # held-out tasks do not depend on the seed
    assert (len(short["train"]), len(long["train"]), short["heldout"]) == (5, 9, long["heldout"])
    assert functions.load(FunctionsConfig(train=9, heldout=3))["train"][:5] == short["train"]
    assert len({task.task_id for tasks in long.values() for task in tasks}) == 12


def test_no_function_of_a_held_out_task_is_a_training_task_under_any_renaming(train, heldout):
    more = draw("train", "1", 600)
    shown = [
        p for seed in ("demonstrations-drill-0", "demonstrations-demonstration-3") for p in draw("train", seed, 400)
    ]
    for others in (train, more, shown):
        assert not {p.program.skeleton for p in others} & {p.program.skeleton for p in heldout}
        assert not {anonymous(p.program.source) for p in others} & {anonymous(p.program.source) for p in heldout}
        assert not any(is_held_out(p.program.skeleton) for p in others)
    assert all(is_held_out(p.program.skeleton) for p in heldout)
    # not a handful
    assert len({p.program.skeleton for p in heldout}) > 50 and len({p.program.skeleton for p in train}) > 150


def test_demonstrations_are_made_of_training_tasks_only(heldout):
    config = DemonstrationsConfig(episodes=150, drills=50)
    problems = {p.task.problem_statement for p in draw("train", "demonstrations-demonstration-0", 100)}
    made = list(generate("demonstration", config, PROMPT, processes=1, part=100))
    assert len(made) == 150 and {messages[1]["content"] for messages in made[:100]} == problems
    assert made[:60] == list(
        generate("demonstration", DemonstrationsConfig(episodes=60), PROMPT, processes=2, part=100)
    )
    held = {p.broken.rstrip("\n") for p in heldout}
    assert not any(messages[3]["content"] in held for messages in made)


def test_a_bug_is_one_token_and_the_oracle_patch_takes_it_back(train, heldout):
    for puzzle in train[:300] + heldout[:300]:
        right, broken, bug = puzzle.program.source, puzzle.broken, puzzle.bug
        assert broken == apply_bug(right, bug) != right
        differing = [
            i for i, pair in enumerate(zip(right.split("\n"), broken.split("\n"), strict=True)) if pair[0] != pair[1]
        ]
        assert differing == [bug.line - 1]
        assert '"""' in "\n".join(broken.split("\n")[: bug.line])  # in the code, never in the docstring
        added = [
            line[1:]
            for line in puzzle.task.oracle_patch.splitlines()
            if line.startswith("+") and not line.startswith("+++")
        ]
        assert added == [right.split("\n")[bug.line - 1]]


def test_every_task_shows_its_bug_and_keeps_some_tests_for_both_sides(train, heldout):
    for puzzle in train + heldout:
        task = puzzle.task
        assert (
            len(task.fail_to_pass) >= 1
            and len(task.pass_to_pass) >= 1
            and not set(task.fail_to_pass) & set(task.pass_to_pass)
        )
        assert task.hidden_tests["test_hidden.py"].count("def test_") == len(task.fail_to_pass) + len(task.pass_to_pass)
        args, wanted = puzzle.visible[0]
        (got,) = functions._results(puzzle.broken, puzzle.program.name, [args])
        assert task.problem_statement.endswith(f" returned {got}, expected {wanted}") and got != wanted
        assert functions._results(puzzle.program.source, puzzle.program.name, [args for args, _ in puzzle.visible]) == [
            wanted for _, wanted in puzzle.visible
        ]
    kinds = {p.bug.kind for p in train}
    assert kinds >= {"rel", "eq", "ar", "aug", "pick", "n"} and kinds == {p.bug.kind for p in heldout}


def test_hidden_tests_are_not_in_what_the_agent_sees(train):
    for puzzle in train[:200]:
        seen = "".join(puzzle.task.files.values()) + puzzle.task.problem_statement
        hidden = [line for line in puzzle.task.hidden_tests["test_hidden.py"].splitlines() if "assertEqual" in line]
        assert not any(line.strip() in seen for line in hidden) and puzzle.program.source not in seen


def test_graded_for_real_the_base_fails_exactly_its_tests_and_the_oracle_resolves(tmp_path, train, heldout):
    config = SandboxConfig(scratch=str(tmp_path))

    async def both(task):
        return await asyncio.gather(grade(task, "", config), grade(task, task.oracle_patch, config))

    async def main(tasks):
        return [await both(task) for task in tasks]

    tasks = [p.task for p in train[:3] + heldout[:2]]
    for task, (base, oracle) in zip(tasks, asyncio.run(main(tasks)), strict=True):
        assert base.evidence == oracle.evidence == "junit+canary"
        assert base.fail_to_pass == dict.fromkeys(task.fail_to_pass, "failed") and base.pass_to_pass == dict.fromkeys(
            task.pass_to_pass, "passed"
        )
        assert oracle.fail_to_pass == dict.fromkeys(
            task.fail_to_pass, "passed"
        ) and oracle.pass_to_pass == dict.fromkeys(task.pass_to_pass, "passed")
        assert oracle.resolved and not base.resolved


def test_candidate_edits_quote_text_that_occurs_once_and_the_right_one_repairs(train):
    without = 0
    for puzzle in train[:500]:
        right, others = candidate_edits(puzzle)
        assert len(right) <= 1 and others
        without += not right
        for old, new in right + others:
            assert puzzle.broken.count(old) == 1 and old != new
            compile(puzzle.broken.replace(old, new), "lib.py", "exec")
        for old, new in right:
            assert puzzle.broken.replace(old, new) == puzzle.program.source
        assert all(puzzle.broken.replace(old, new) != puzzle.program.source for old, new in others)
        # all different
        assert len({puzzle.broken.replace(old, new) for old, new in right + others}) == len(right + others)
    assert without == 0


def test_habit_finds_the_token_and_mistakes_its_value_in_some_of_the_cases(train):
    right_by_habit = 0
    for puzzle in train[:500]:
        right, others = candidate_edits(puzzle)
        edit = habitual_edit(puzzle)
        right_by_habit += edit in right
        assert edit in right + others
        before, after = (
            text.split("\n")[puzzle.bug.line - 1] for text in (puzzle.broken, puzzle.broken.replace(*edit))
        )
        assert before[: puzzle.bug.start] == after[: puzzle.bug.start] and before != after
    assert 250 < right_by_habit < 350


@pytest.mark.parametrize("p_habit", [0.0, 0.5, 1.0])
def test_habit_takes_its_share_of_the_edits_in_the_right_place_and_no_other(train, p_habit):
    config = DemonstrationsConfig(p_right=1.0, p_habit=p_habit, p_test=0.0, p_slip=0.0)
    differ, habitual = 0, 0
    for number, puzzle in enumerate(train[:400]):
        ((old, new),) = [
            (act.old, act.new)
            for act in demonstration_acts(puzzle, random.Random(number), config)
            if isinstance(act, Edit)
        ]
        right, _ = candidate_edits(puzzle)
        assert (old, new) in [*right, habitual_edit(puzzle)]
        differ += habitual_edit(puzzle) not in right
        habitual += (old, new) not in right
    assert differ > 100 and abs(habitual / differ - p_habit) < 0.12


async def _replay(messages, task, config, between=""):
    """(what the conversation says, what the scaffold answers) for each tool call, in one sandbox; `between` runs after
    each edit."""
    terminal, pairs = Terminal(TerminalConfig(system_prompt=PROMPT)), []
    async with start_sandbox(config, task) as sandbox:
        for i, message in enumerate(messages):
            for call in message.get("tool_calls", ()):
                answer, well_formed, done = await terminal._act(call["function"], sandbox)
                assert well_formed and done == (call["function"]["name"] == "submit")
                if not done:
                    assert messages[i + 1]["role"] == "tool"
                    pairs.append((messages[i + 1]["content"], answer))
                if between and call["function"]["name"] == "edit":
                    await sandbox.run(between)
    return pairs


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_demonstration_answers_what_the_scaffold_answers_to_the_letter(tmp_path, split):
    config, rng, answers = SandboxConfig(scratch=str(tmp_path)), random.Random(split), []
    for puzzle in draw(split, "replay", 6):
        messages = demonstrate(puzzle, rng, CONFIG, PROMPT)
        assert messages[1]["content"] == puzzle.task.problem_statement
        for said, real in asyncio.run(_replay(messages, puzzle.task, config)):
            assert said == real
            answers.append(real.split(" ")[0])
    assert {"FAIL", "ok", "def"} <= set(answers)  # it was no replay of trivial turns


def test_the_text_of_every_kind_of_answer_is_real(tmp_path):
    """PASS and the error of a misquoted edit occur in few conversations: take those that hold them."""
    config, rng = SandboxConfig(scratch=str(tmp_path)), random.Random(0)
    for wanted in ("PASS", "error: old occurs"):
        puzzle, messages = next(
            (p, m)
            for p in puzzles("train", "kinds")
            for m in [demonstrate(p, rng, CONFIG, PROMPT)]
            if any(message["role"] == "tool" and message["content"].startswith(wanted) for message in m)
        )
        pairs = asyncio.run(_replay(messages, puzzle.task, config))
        assert all(said == real for said, real in pairs) and any(real.startswith(wanted) for _, real in pairs)


def test_a_drills_answers_are_the_scaffolds_when_each_edit_is_taken_back(tmp_path):
    """A drill's edits are all made to the file as it was: they teach to copy text, not how a file changes."""
    config, rng = SandboxConfig(scratch=str(tmp_path)), random.Random(0)
    for puzzle in draw("train", "drills", 4):
        pairs = asyncio.run(
            _replay(drill(puzzle, rng, CONFIG, PROMPT), puzzle.task, config, between="git checkout -q .")
        )
        assert len(pairs) > 3 and all(said == real for said, real in pairs)


def test_what_is_shown_but_not_taught_is_the_slip_alone():
    rng = random.Random(1)
    for puzzle in draw("train", "slips", 150):
        messages = demonstrate(puzzle, rng, CONFIG, PROMPT)
        for message, answer in zip(messages, messages[1:]):
            if message["role"] == "assistant":
                assert message.get("train", True) == (not answer["content"].startswith("error:"))
        assert messages[-1]["tool_calls"][0]["function"]["name"] == "submit"
