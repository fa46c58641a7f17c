"""Controls that ask a model but have no loop of their own: single_pass, what it shows and what it takes; scripted,
which replays a record."""

import asyncio
import dataclasses
import json
import random

import pytest
from gateway_helpers import tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from scaffold_helpers import LIMITS, episodes

from coderepairrl.demonstrations.dialects import speak
from coderepairrl.demonstrations.expert import DemonstrationsConfig, demonstration_acts
from coderepairrl.errors import ConfigError, ScaffoldError
from coderepairrl.gateway import Renderer
from coderepairrl.rollout import trajectory_files
from coderepairrl.scaffolds import make_scaffold
from coderepairrl.scaffolds.controls import PredictionsConfig
from coderepairrl.scaffolds.retrieval import MAX_FILE_BYTES, choose, read_checkout, words
from coderepairrl.scaffolds.scripted import ScriptedConfig, read_scripts
from coderepairrl.scaffolds.single_pass import SinglePassConfig, parse_blocks, show
from coderepairrl.scaffolds.terminal import TerminalConfig
from coderepairrl.tasks.functions import puzzles
from coderepairrl.types import Outcome

PUZZLE = next(puzzles("train", "controls"))
TASK = PUZZLE.task
BROKEN_LINE, RIGHT_LINE = (
    source.split("\n")[PUZZLE.bug.line - 1] + "\n" for source in (PUZZLE.broken, PUZZLE.program.source)
)


def block(path, old, new):
    return f"{path}\n```\n<<<<<<< SEARCH\n{old}=======\n{new}>>>>>>> REPLACE\n```\n"


REPAIR = block("lib.py", BROKEN_LINE, RIGHT_LINE)


def run(answers, tmp_path, limits=LIMITS, **config):
    return asyncio.run(
        episodes(
            make_scaffold(SinglePassConfig(**config)), [(task, [text], limits) for task, text in answers], tmp_path
        )
    )


# ---- single_pass: one answer


def test_one_answer_repairs_and_the_prompt_holds_statement_and_files(tmp_path):
    trajectory, sibling = run([(TASK, "It is the third line.\n" + REPAIR)] * 2, tmp_path, system_prompt="Be brief.")
    assert trajectory.outcome == Outcome.SUBMITTED and trajectory.verdict.resolved and len(trajectory.calls) == 1
    prompt = tokenizer().decode(trajectory.calls[0].prompt_ids)
    assert prompt.startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
        + TASK.problem_statement
        + "\n\nlib.py\n```\n"
        + PUZZLE.broken
        + "```\n\ntest_lib.py\n```\n"
    )
    assert sibling.calls[0].prompt_ids == trajectory.calls[0].prompt_ids
    assert (
        PUZZLE.program.source not in prompt
        and not any(text in prompt for text in TASK.hidden_tests.values())
        and "test_hidden" not in prompt
    )


@pytest.mark.parametrize(
    "answer, cause",
    [
        ("", "no search/replace block"),
        ("It is fine.", "no search/replace block"),
        (REPAIR.replace(">>>>>>> REPLACE", ""), "in this order"),
        (REPAIR.replace("=======", ""), "in this order"),
        (REPAIR.replace("<<<<<<< SEARCH", ""), "stands outside of a block"),
        (REPAIR.replace("lib.py", ""), "no path above it"),
        (block("lib.py", "    nothing like it\n", "x\n"), "occurs 0 times"),
        (block("lib.py", "", "x\n"), "occurs 0 times"),
        (block("nowhere.py", "a\n", "b\n"), "nowhere.py"),
        (block("../outside.py", "", "x\n"), "outside"),
        (block("/etc/outside.py", "", "x\n"), "outside"),
        (block(".git/hooks/post-checkout", "", "x\n"), ""),
        (REPAIR + block("lib.py", "    nothing like it\n", "x\n"), "occurs 0 times"),
    ],
)
def test_a_malformed_answer_is_the_agents_error_and_changes_nothing(tmp_path, answer, cause):
    (trajectory,) = run([(TASK, answer)], tmp_path)
    if ".git/" in answer:  # written, but no part of any diff
        assert trajectory.outcome == Outcome.SUBMITTED and not trajectory.diff
        return
    assert trajectory.outcome == Outcome.AGENT_ERROR and cause in trajectory.outcome_detail and not trajectory.diff


def test_an_answer_that_is_cut_and_one_that_was_never_given(tmp_path):
    (cut,) = run([(TASK, (REPAIR, "length"))], tmp_path)
    assert cut.outcome == Outcome.AGENT_ERROR and "cut" in cut.outcome_detail and not cut.diff
    (long,) = run([(TASK, REPAIR)], tmp_path, limits=LIMITS.model_copy(update={"max_total_tokens": 50}))
    assert long.outcome == Outcome.TOKEN_LIMIT and not long.calls and not long.diff


def test_edits_follow_one_another_and_files_are_made(tmp_path):
    answer = (
        block("./lib.py", BROKEN_LINE, "    pass\n")
        + block("lib.py", "    pass\n", RIGHT_LINE)
        + block("new/deep.py", "", "x = 1\n")
        + block("new/deep.py", "x = 1\n", "x = 2\n")
    )
    (trajectory,) = run([(TASK, answer)], tmp_path)
    assert (
        trajectory.verdict.resolved
        and "+x = 2" in trajectory.diff
        and "pass" not in trajectory.diff
        and "x = 1" not in trajectory.diff
    )


TEXT = st.lists(
    st.sampled_from(["a", "  b = 1", "", "```", "<<<<<<", "x ======= y", "> REPLACE", "日本"]), max_size=4
).map(lambda lines: "".join(line + "\n" for line in lines))
PATHS = st.sampled_from(["lib.py", "a/b.py", "x-1.txt", "Makefile"])


@given(
    st.lists(st.tuples(PATHS, TEXT, TEXT), min_size=1, max_size=4),
    st.sampled_from(["", "Words before.\n", "```python\n"]),
)
@settings(max_examples=200)
def test_what_is_written_as_blocks_is_read_back(edits, before):
    assert parse_blocks(before + "\n".join(block(*edit) for edit in edits)) == edits


@given(st.text(alphabet=st.sampled_from("<=> SEARCHPLa\n`."), max_size=200))
@settings(max_examples=200)
def test_any_answer_is_blocks_or_the_agents_error(text):
    try:
        assert parse_blocks(text)
    except ScaffoldError as error:
        assert "malformed" in str(error)


# ---- single_pass: which files


def test_all_files_where_all_fit_else_those_that_share_the_statements_words():
    files = {
        "a/reader.py": "def read_header(line):\n    return parse(line)\n",
        "a/writer.py": "def write(x):\n    pass\n",
        "b/zoo.py": "giraffe = 1\n" * 40,
        "test_reader.py": "read_header('x')\n",
    }
    statement = "`readHeader` gives a wrong result for an empty header"
    assert choose(files, statement, 10**6) == list(files)
    assert choose(files, statement, 80) == ["a/reader.py", "test_reader.py"]
    assert (
        choose(files, "something about b/zoo.py, read_header", 490)[0] == "b/zoo.py"
        and choose(files, "nothing of all that", 100) == []
    )
    assert choose(files, statement, 10) == []


def test_the_choice_depends_on_nothing_but_statement_and_texts():
    rng = random.Random(0)
    vocabulary = [f"word{i}" for i in range(60)]
    files = {f"m{i:02d}.py": " ".join(rng.choices(vocabulary, k=40)) for i in range(40)}
    chosen = choose(files, " ".join(vocabulary[:8]), 3000)
    shuffled = dict(rng.sample(list(files.items()), len(files)))
    assert (
        sorted(choose(shuffled, " ".join(vocabulary[:8]), 3000)) == sorted(chosen)
        and 0 < sum(len(files[name]) for name in chosen) <= 3000
    )
    fewer = {name: files[name] for name in files if name in chosen}
    assert sum(map(len, fewer.values())) <= 3000 and choose(fewer, "whatever", 3000) == list(fewer)


def test_words_of_identifiers():
    assert words("readHeader(HTTPServer, snake_case, x)") == [
        "readheader",
        "read",
        "header",
        "httpserver",
        "http",
        "server",
        "snake_case",
        "snake",
        "case",
    ]


def test_a_checkout_is_read_without_links_binaries_git_and_giants(tmp_path):
    for name, data in {
        "a.py": b"x = 1\n",
        "deep/b.txt": "é\n".encode(),
        "c.bin": b"\xff\xfe\x00",
        "d.py": b"a\0b",
        ".git/config": b"secret",
        "big.txt": b"x" * (MAX_FILE_BYTES + 1),
        "empty.py": b"",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "link.py").symlink_to("/etc/passwd")
    (tmp_path / "linked").symlink_to("/etc")
    assert read_checkout(tmp_path) == {"a.py": "x = 1\n", "deep/b.txt": "é\n", "empty.py": ""}


def test_a_file_that_holds_fences_is_fenced_with_more():
    assert (
        show({"a.md": "````\ncode\n````\n", "b.py": "x"})
        == "a.md\n`````\n````\ncode\n````\n`````\n\nb.py\n```\nx\n```\n"
    )


def test_bounded_characters_are_what_is_shown_and_the_repair_is_still_possible(tmp_path):
    task = dataclasses.replace(
        TASK,
        files=TASK.files | {f"noise/n{i}.py": f"other_{i} = {i}\n" * 400 for i in range(20)},
        problem_statement=TASK.problem_statement + "\nSee lib.py.",
    )
    (trajectory,) = run([(task, REPAIR)], tmp_path, max_context_chars=4000)
    prompt = tokenizer().decode(trajectory.calls[0].prompt_ids)
    assert trajectory.verdict.resolved and PUZZLE.broken in prompt and "noise" not in prompt


# ---- scripted


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Trajectories of the terminal scaffold, of tasks with several records each, and their Parquet."""
    folder, rng = tmp_path_factory.mktemp("recorded"), random.Random(3)
    jobs = [
        (
            puzzle.task,
            [
                message_text(turn.message)
                for turn in speak(TerminalConfig(), demonstration_acts(puzzle, rng, DemonstrationsConfig(p_right=0.5)))
            ],
        )
        for puzzle in [next(puzzles("train", seed)) for seed in ("one", "two")]
        for _ in range(3)
    ]
    jobs = [
        (dataclasses.replace(task, task_id=f"task-{number // 3}"), texts) for number, (task, texts) in enumerate(jobs)
    ]
    done = asyncio.run(episodes(make_scaffold(TerminalConfig()), jobs, folder))
    trajectory_files.write(folder / "step_00000.parquet", done, {})
    tokenizer().save_pretrained(folder / "model")
    return folder, jobs, done


def message_text(message):
    call = message["tool_calls"][0]["function"]
    return f'<tool_call>\n{{"name": "{call["name"]}", "arguments": {call["arguments"]}}}\n</tool_call>'


def test_a_record_said_again_gives_the_same_diffs_and_verdicts(recorded, tmp_path):
    folder, jobs, done = recorded
    scaffold = make_scaffold(ScriptedConfig(path=str(folder), model=str(folder / "model")))
    again = asyncio.run(episodes(scaffold, [(task, []) for task, _ in jobs], tmp_path))
    assert not scaffold.calls_model and all(not trajectory.calls for trajectory in again)
    assert [trajectory.diff for trajectory in again] == [trajectory.diff for trajectory in done]
    assert [trajectory.verdict.resolved for trajectory in again] == [trajectory.verdict.resolved for trajectory in done]
    assert len({trajectory.diff for trajectory in done}) > 2  # it was no replay of one edit


def test_outputs_as_text_another_scaffold_and_a_task_without_a_record(recorded, tmp_path):
    folder, *_ = recorded
    (tmp_path / "outputs.jsonl").write_text(
        json.dumps({"task_id": TASK.task_id, "outputs": [REPAIR]})
        + "\n"
        + json.dumps({"task_id": "empty", "outputs": []})
        + "\n"
    )
    scaffold = make_scaffold(
        ScriptedConfig(
            path=str(tmp_path / "outputs.jsonl"), model=str(folder / "model"), scaffold={"name": "single_pass"}
        )
    )
    jobs = [
        (TASK, []),
        (TASK, []),
        (dataclasses.replace(TASK, task_id="unknown"), []),
        (dataclasses.replace(TASK, task_id="empty"), []),
    ]
    first, second, unknown, empty = asyncio.run(episodes(scaffold, jobs, tmp_path))
    assert first.verdict.resolved and second.diff == first.diff and not unknown.diff and not empty.diff


def test_a_record_that_ends_before_the_agent_closes_its_session(recorded, tmp_path):
    folder, jobs, done = recorded
    rows = [{"task_id": "task-0", "outputs": [text for text in jobs[0][1][:-1]]}]  # less the submission
    (tmp_path / "outputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scaffold = make_scaffold(ScriptedConfig(path=str(tmp_path / "outputs.jsonl"), model=str(folder / "model")))
    (trajectory,) = asyncio.run(episodes(scaffold, [(jobs[0][0], [])], tmp_path))
    assert trajectory.outcome == Outcome.SUBMITTED and trajectory.diff == done[0].diff


@pytest.mark.parametrize(
    "name, text, cause",
    [
        ("x.parquet", "no parquet", "no recorded outputs"),
        ("missing.parquet", None, "no recorded outputs"),
        ("x.jsonl", "{", "no recorded outputs"),
        ("x.jsonl", '{"outputs": []}', "no recorded outputs"),
        ("folder", None, "nothing is recorded there"),
    ],
)
def test_a_file_that_is_no_record_is_named(recorded, tmp_path, name, text, cause):
    if text is not None:
        (tmp_path / name).write_text(text)
    if name == "folder":
        (tmp_path / name).mkdir()
    scaffold = make_scaffold(ScriptedConfig(path=str(tmp_path / name), model=str(recorded[0] / "model")))
    with pytest.raises(ConfigError, match=cause):
        asyncio.run(episodes(scaffold, [], tmp_path))
    with pytest.raises(ConfigError, match="asks no model"):
        make_scaffold(ScriptedConfig(path="x", model="x", scaffold={"name": "gold"}))


def test_rows_end_at_line_feeds_only(tmp_path):
    """JSON may hold the line separators of Unicode as they are, and splitlines() splits at them."""
    path = tmp_path / "x.jsonl"
    path.write_text(
        json.dumps(
            {"instance_id": "a", "model_patch": "one\u2028two", "task_id": "a", "outputs": ["one\u2028two"]},
            ensure_ascii=False,
        )
        + "\n"
    )
    make_scaffold(PredictionsConfig(path=str(path)))
    assert len(read_scripts(path, Renderer(tokenizer(), {}))["a"][0]) == 1
