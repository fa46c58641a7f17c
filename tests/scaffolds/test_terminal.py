"""The terminal scaffold: every call of the model gets an answer that says what to do, whatever it holds."""

import asyncio
import json

import aiohttp
import pytest
from aiohttp import web

from coderepairrl.errors import GatewayError, ScaffoldError
from coderepairrl.sandboxes import CommandResult, SandboxConfig, start_sandbox
from coderepairrl.scaffolds import Endpoint, make_scaffold
from coderepairrl.scaffolds.terminal import TOOLS, USAGE, Terminal, TerminalConfig, clip, describe, edit_text
from coderepairrl.tasks.functions import puzzles

PUZZLE = next(puzzles("train", "terminal"))
BROKEN = PUZZLE.broken
FIRST = BROKEN.split("\n")[0]


@pytest.mark.parametrize(
    "content, old, new, changed, answer",
    [
        ("a b c", "b", "x", "a x c", "ok"),
        ("a b b", "b", "x", "a b b", "error: old occurs 2 times in f.py: quote more of its surroundings"),
        ("a b c", "d", "x", "a b c", "error: old occurs 0 times in f.py: check the exact text"),
        ("a b c", "", "x", "a b c", "error: old occurs 0 times in f.py: check the exact text"),
        ("", "", "x", "", "error: old occurs 0 times in f.py: check the exact text"),
        ("a b c", "b", "b", "a b c", "ok"),
        ("a\nb\n", "a\nb", "", "\n", "ok"),
        ("x.y", ".", r"\1", r"x\1y", "ok"),  # text, no pattern
    ],
)
def test_an_edit_is_made_only_where_the_text_occurs_once(content, old, new, changed, answer):
    assert edit_text("f.py", content, old, new) == (changed, answer)


@pytest.mark.parametrize("length", [0, 5, 99, 100])
def test_short_text_is_not_clipped(length):
    assert clip("x" * length, 100) == "x" * length


@pytest.mark.parametrize("limit", [2, 10, 11, 100])
def test_clipping_keeps_head_and_tail_and_counts_the_rest(limit):
    text = "".join(chr(0x4E00 + i) for i in range(1000))
    half = limit // 2
    assert clip(text, limit) == f"{text[:half]}\n[{1000 - 2 * half} characters left out]\n{text[-half:]}"


@pytest.mark.parametrize(
    "result, wanted",
    [
        (CommandResult(0, "hello\n", False, 0.1), "hello"),
        (CommandResult(0, "", False, 0.1), ""),
        (CommandResult(0, "\n a \n\n", False, 0.1), "\n a "),
        (CommandResult(3, "no\n", False, 0.1), "no\n[exit code 3]"),
        (CommandResult(124, "slow\n", True, 2.04), "slow\n[killed after 2 s]"),
        (CommandResult(0, "y" * 30, False, 0.1), "yyyyy\n[20 characters left out]\nyyyyy"),
    ],
)
def test_a_commands_result_tells_the_exit_code_only_where_it_matters(result, wanted):
    assert describe(result, 10) == wanted


@pytest.fixture
def act(tmp_path):
    """act(calls): (answers, files afterwards) of (name, arguments text) pairs, in one real sandbox."""

    def run(*calls):
        async def main():
            async with start_sandbox(SandboxConfig(scratch=str(tmp_path)), PUZZLE.task) as sandbox:
                terminal = Terminal(TerminalConfig(command_timeout_s=5))
                answers = [
                    await terminal._act({"name": name, "arguments": arguments}, sandbox) for name, arguments in calls
                ]
                return answers, await sandbox.read_text("lib.py")

        return asyncio.run(main())

    return run


@pytest.mark.parametrize(
    "name, arguments, said",
    [
        ("shell", "{", "error: the arguments are not JSON"),
        ("shell", "ls", "error: the arguments are not JSON"),
        ("shell", "", "error: no such call: shell"),
        ("shell", "{}", "error: no such call: shell"),
        ("shell", '{"cmd": "ls"}', "error: no such call: shell"),
        ("shell", '{"command": 3}', "error: no such call: shell"),
        ("shell", '{"command": ["ls"]}', "error: no such call: shell"),
        ("shell", '["ls"]', "error: no such call: shell"),
        ("shell", "null", "error: no such call: shell"),
        ("edit", '{"path": "lib.py", "old": "a"}', "error: no such call: edit"),
        ("edit", '{"path": "lib.py", "old": "a", "new": null}', "error: no such call: edit"),
        ("bash", '{"command": "ls"}', "error: no such call: bash"),
        ("", "{}", "error: no such call: "),
        ("submit", "[]", "error: no such call: submit"),
    ],
)
def test_a_malformed_call_is_answered_with_the_usage_and_does_nothing(act, name, arguments, said):
    [(answer, well_formed, done)], content = act((name, arguments))
    assert answer.startswith(said) and answer.endswith(USAGE) and not well_formed and not done
    assert content == BROKEN


@pytest.mark.parametrize(
    "path", ["../outside.py", "/etc/passwd", "/repo/../etc/passwd", "nowhere.py", ".git/config", "", "a\0b"]
)
def test_a_path_that_cannot_be_edited_is_an_answer_of_one_line(act, path):
    [(answer, well_formed, done)], _ = act(("edit", json.dumps({"path": path, "old": "root", "new": "x"})))
    assert answer.startswith("error: ") and "\n" not in answer and well_formed and not done


def test_a_symlink_out_of_the_checkout_is_not_followed(act):
    answers, _ = act(
        ("shell", json.dumps({"command": "ln -s /etc/hostname link.py"})),
        ("edit", json.dumps({"path": "link.py", "old": "a", "new": "b"})),
    )
    assert answers[0] == ("", True, False) and answers[1][0].startswith("error: ")


def test_well_formed_calls_work_and_more_arguments_do_not_hurt(act):
    answers, content = act(
        ("edit", json.dumps({"path": "/repo/lib.py", "old": FIRST, "new": FIRST + "  # é", "why": "because"})),
        ("shell", json.dumps({"command": "head -1 lib.py; pwd; exit 3"})),
        ("shell", json.dumps({"command": "cat"})),
        ("submit", ""),
        ("submit", '{"x": 1}'),
    )
    assert answers == [
        ("ok", True, False),
        (FIRST + "  # é\n/repo\n[exit code 3]", True, False),
        ("", True, False),
        ("", True, True),
        ("", True, True),
    ]
    assert content == BROKEN.replace(FIRST, FIRST + "  # é")


def tool(name, number, **arguments):
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


async def converse(replies, scratch, **config):
    """(the bodies that the scaffold sent, the diff it left). `replies`: assistant messages, or (status, body) pairs;
    one over HTTP each."""
    sent = []

    async def answer(http):
        assert http.headers["Authorization"] == "Bearer key"
        sent.append(await http.json())
        reply = replies[len(sent) - 1]
        if isinstance(reply, tuple):
            return web.json_response(reply[1], status=reply[0])
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": None} | reply}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        async with (
            aiohttp.ClientSession() as http,
            start_sandbox(SandboxConfig(scratch=scratch), PUZZLE.task) as sandbox,
        ):
            try:
                await make_scaffold(TerminalConfig(**config)).run(PUZZLE.task, sandbox, Endpoint(url, "key", http))
            except (ScaffoldError, GatewayError) as error:
                return sent, error
            return sent, await sandbox.diff()
    finally:
        await runner.cleanup()


def test_a_whole_episode_sends_an_append_only_history_and_leaves_the_edit(tmp_path):
    replies = [
        {"tool_calls": [tool("shell", 0, command="cat lib.py"), tool("nonsense", 1)]},
        {"content": "thinking", "tool_calls": []},
        {"tool_calls": [tool("edit", 2, path="lib.py", old=FIRST, new=FIRST + "  # x")]},
        {"tool_calls": [tool("submit", 3), tool("shell", 4, command="rm lib.py")]},
    ]
    sent, diff = asyncio.run(converse(replies, str(tmp_path), system_prompt="Be brief."))
    assert len(sent) == 4 and all(body["tools"] == TOOLS for body in sent)
    for before, after in zip(sent, sent[1:]):
        assert after["messages"][: len(before["messages"])] == before["messages"]
    messages = sent[-1]["messages"]
    assert [m["role"] for m in messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "user",
        "assistant",
        "tool",
    ]
    assert messages[0]["content"] == "Be brief." and messages[1]["content"] == PUZZLE.task.problem_statement
    assert messages[2] == {"role": "assistant"} | replies[0]  # as it was received, less what was null
    assert (messages[3]["tool_call_id"], messages[3]["content"]) == ("call_0", BROKEN.rstrip("\n"))
    assert messages[6]["content"] == f"error: no tool call; {USAGE}"
    assert f"+{FIRST}  # x" in diff and "deleted" not in diff  # what follows a submit is not done


def test_idle_answers_in_a_row_end_the_agent_and_a_usable_one_starts_the_count_again(tmp_path):
    idle, bad, good = (
        {"content": "hm"},
        {"tool_calls": [tool("nonsense", 0)]},
        {"tool_calls": [tool("shell", 1, command="true")]},
    )
    sent, error = asyncio.run(converse([idle, bad, good, bad, idle, bad, good], str(tmp_path), max_idle_answers=3))
    assert len(sent) == 6 and isinstance(error, ScaffoldError) and "3 answers in a row" in str(error)


def test_a_closed_session_ends_the_agent_quietly_and_any_other_error_does_not(tmp_path):
    closed = (
        400,
        {"error": {"message": "This model's maximum context length is 9 tokens.", "code": "context_length_exceeded"}},
    )
    sent, diff = asyncio.run(
        converse([{"tool_calls": [tool("shell", 0, command="echo > new.txt")]}, closed], str(tmp_path))
    )
    assert len(sent) == 2 and "new.txt" in diff
    for status in (400, 401, 500):
        _, error = asyncio.run(converse([(status, {"error": {"message": "no", "code": None}})], str(tmp_path)))
        assert isinstance(error, GatewayError) and str(status) in str(error)
    # once the model has spoken
    for status, kind in ((400, ScaffoldError), (413, ScaffoldError), (401, GatewayError), (500, GatewayError)):
        _, error = asyncio.run(
            converse([{"content": "hm"}, (status, {"error": {"message": "no", "code": None}})], str(tmp_path))
        )
        assert type(error) is kind and "no" in str(error)


def test_an_edit_that_changes_nothing_is_an_error(tmp_path):
    async def body():
        async with start_sandbox(SandboxConfig(scratch=str(tmp_path)), PUZZLE.task) as sandbox:
            return await Terminal(TerminalConfig())._edit(sandbox, "lib.py", FIRST, FIRST), await sandbox.diff()

    assert asyncio.run(body()) == ("error: old and new are the same: lib.py stays as it is", "")
