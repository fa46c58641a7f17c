"""Which recorded call a request continues: the trees that real agents' habits make, through the gateway, and what holds
of every tree, whatever is asked in whatever form."""

import json

import pytest
from gateway_helpers import DIALECTS, END, SHELL, call_text, ids_by_character, ids_of, run, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from coderepairrl.gateway import Renderer
from coderepairrl.gateway.call_tree import CallTree, Prompt, kept
from coderepairrl.gateway.messages import BadRequest, chain
from coderepairrl.gateway.request import Fields, Request, Seen
from coderepairrl.gateway.turn import Turn
from coderepairrl.gateway.worker import brief, whole
from coderepairrl.types import Call

SYSTEM, TASK = {"role": "system", "content": "You repair."}, {"role": "user", "content": "fix f"}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


class Asking:
    """Posts conversations, and gives the answer's message."""

    def __init__(self, world):
        self.world, self.number = world, 0
        world.upstream.reply = self._reply

    def _reply(self, prompt):
        self.number += 1
        return ids_by_character(f"answer {self.number}") + ids_of(END), "stop"

    async def __call__(self, *messages, **more) -> dict:
        status, answer = await self.world.post({"messages": list(messages), **more})
        assert status == 200, answer
        return answer["choices"][0]["message"]


def tree(session) -> list:
    """(parent, part) of each call. Each is checked against its parent's ids; roots but the first are counted."""
    for call in session.calls:
        if call.parent is not None:
            beginning = kept(session.calls[call.parent], call.parent_part)
            assert call.prompt_ids[: len(beginning)] == beginning
    assert session.counters["rerendered_roots"] == sum(call.rerendered for call in session.calls)
    return [call.parent if call.parent_part != "prompt" else f"{call.parent}, prompt" for call in session.calls]


def test_aider_rewrites_its_history_every_turn():
    """The files' contents stand in front of the conversation, and change; done turns move into another place."""

    async def scenario(world):
        ask, files = Asking(world), "f = {}\n"
        first = await ask(SYSTEM, user(files.format(0)), user("fix f"))
        second = await ask(SYSTEM, user(files.format(0)), user("fix f"), first, user("the tests fail"))
        third = await ask(
            SYSTEM, user("fix f"), first, user("the tests fail"), second, user(files.format(1)), user("and g")
        )
        await ask(
            SYSTEM,
            user("fix f"),
            first,
            user("the tests fail"),
            second,
            user(files.format(1)),
            user("and g"),
            third,
            user("lint"),
        )
        assert tree(world.session) == [None, 0, None, 2]
        assert world.session.counters["rerendered_roots"] == 1

    run(scenario)


def test_a_summary_in_place_of_the_history_is_one_new_root():
    async def scenario(world):
        ask, history = Asking(world), [SYSTEM, TASK]
        for turn in range(3):
            history += [await ask(*history), user(f"turn {turn}")]
        summary = await ask(*history, user("Summarise what was done."))  # goes on from the branch
        compacted = [SYSTEM, TASK, user(f"So far: {summary['content']}")]
        for turn in range(2):
            compacted += [await ask(*compacted), user(f"turn {turn}")]
        assert tree(world.session) == [None, 0, 1, 2, None, 4]

    run(scenario)


def test_sub_agents_in_one_session_are_branches_of_their_own():
    """Interleaved: the main agent, two that it starts with another system message and other tools, and one that begins
    from its history."""

    async def scenario(world):
        ask = Asking(world)
        main, scout = [SYSTEM, TASK], [{"role": "system", "content": "You search."}, user("where is f?")]
        main += [await ask(*main, tools=[SHELL]), user("a scout is out")]
        scout += [await ask(*scout), user("look closer")]
        other = [scout[0], user("where is g?")]
        other += [await ask(*other), user("look closer")]
        scout += [await ask(*scout), user("thanks")]
        main += [await ask(*main, tools=[SHELL]), user("the scout says: there")]
        other += [await ask(*other), user("thanks")]
        await ask(*main[:3], user("a fork of the main agent"), tools=[SHELL])
        await ask(*main, tools=[SHELL])
        await ask(*scout)
        assert tree(world.session) == [None, None, None, 1, 0, 2, 0, 4, 3]

    run(scenario)


def test_each_of_n_choices_can_be_continued():
    async def scenario(world):
        ask, history = Asking(world), [SYSTEM, TASK]
        _, answer = await world.post({"messages": history, "n": 3})
        choices = [choice["message"] for choice in answer["choices"]]
        for choice in reversed(choices):
            await ask(*history, choice, user("go on"))
        said = [choice["content"] for choice in choices]
        parents = [world.session.calls[call.parent] for call in world.session.calls[3:]]
        assert tree(world.session)[:3] == [None, "0, prompt", "0, prompt"]
        assert [ids_by_character(text) for text in reversed(said)] == [parent.completion_ids[:-1] for parent in parents]

    run(scenario)


def test_a_turn_that_was_dropped_and_asked_again_forks_at_its_prompt():
    """mini-swe-agent leaves a malformed turn out; others ask the very same again, or cut the history back."""

    async def scenario(world):
        ask, history = Asking(world), [SYSTEM, TASK]
        first = await ask(*history)
        await ask(*history)  # the same again, although it was answered
        kept = await ask(*history, first, user("a"))
        await ask(*history, first, user("a"), kept, user("b"))
        await ask(*history, first, user("b, without a"))
        await ask(*history, {**first, "content": first["content"] + " edited"}, user("a"))
        await ask(*history, user("try again"))
        assert tree(world.session) == [None, "0, prompt", 0, 2, 0, None, None]

    run(scenario)


def test_what_agents_do_to_a_message_without_meaning_it_is_the_same_message():
    async def scenario(world):
        ask = Asking(world)
        world.upstream.reply = lambda prompt: (ids_by_character(f" Look:\n{call_text('ls')}") + ids_of(END), "stop")
        turn = await ask(SYSTEM, TASK, tools=[SHELL])
        call = turn["tool_calls"][0]
        result = {"role": "tool", "tool_call_id": call["id"], "content": "a.py"}
        function = {"arguments": '{ "command":"ls" }', "name": "shell"}
        for changed in (
            {**turn, "content": turn["content"].strip()},
            {**turn, "refusal": None, "audio": None, "annotations": []},
            {
                "tool_calls": [{**call, "function": function, "index": 0}],
                "role": "assistant",
                "content": [{"type": "text", "text": turn["content"]}],
            },
            {**turn, "tool_calls": [{**call, "id": "call_of_my_own"}]},
            {**turn, "reasoning_content": "made up"},
        ):
            system = {
                "role": "developer",
                "content": [{"type": "text", "text": SYSTEM["content"], "cache_control": {"type": "ephemeral"}}],
            }
            own = {**result, "tool_call_id": changed["tool_calls"][0]["id"]}
            await ask(system, TASK, changed, own, tools=[SHELL])
        calls = world.session.calls
        assert tree(world.session)[:2] == [None, 0] and {call.prompt_ids for call in calls[1:]} == {calls[1].prompt_ids}

    run(scenario)


class Asked:
    """A tree without a session: requests are read as the server reads them, and `said` is what the model samples."""

    def __init__(self, **renderer):
        self.renderer, self.seen = Renderer(tokenizer(), **renderer), Seen()
        self.tree = CallTree(self.renderer)
        self.calls = self.tree.calls

    def read(self, body: dict) -> Request:
        path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
        return DIALECTS[path].read(Fields(json.dumps(body).encode(), path, {}, self.seen))

    def ask(self, body: dict, said: tuple[int, ...], n: int = 1) -> tuple[Prompt, list[Turn]]:
        """n: choices of the same request, which all sample the same."""
        request = self.read(body)
        prompt = self.tree.prompt(request)
        return prompt, [self._record(request, prompt, said) for _ in range(n)]

    def _record(self, request: Request, prompt: Prompt, said: tuple[int, ...]) -> Turn:
        index, (parent, part) = len(self.calls), self.tree.place(prompt)
        logprobs, versions = (-1.0,) * len(said), (0,) * len(said)
        root = parent is None and index > 0
        call = Call(index, parent, part, prompt.ids, said, logprobs, versions, "stop", root, 0.0, 0.0)
        if request.text is not None:
            turn = Turn(call, self.renderer.text(said, ends=False), None, ())
        else:
            content, reasoning, tool_calls, _ = self.renderer.parse(said, request.tools.functions, (), prompt.ids)
            turn = Turn(call, content, reasoning, tuple(tool_calls))
        self.tree.add(prompt, turn)
        return turn


def record(call: Call) -> tuple[int, ...]:
    return call.prompt_ids + call.completion_ids


def place_of(calls, prompt: Prompt) -> tuple[int | None, str | None]:
    """By the definition, for a prompt of tokens: looked for among all that is recorded."""
    for call in calls:
        if call.prompt_ids == prompt.ids:
            return call.index, "prompt"
    begins = [call for call in calls if record(call) == prompt.ids[: len(record(call))]]
    return (max(begins, key=lambda call: len(record(call))).index, "completion") if begins else (None, None)


FEW_TOKENS = st.lists(st.integers(5, 7), min_size=1, max_size=4).map(tuple)  # so that much begins alike


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.none() | st.integers(0, 5), st.booleans(), FEW_TOKENS, FEW_TOKENS), min_size=1, max_size=8)
)
def test_tokens_continue_the_longest_record_that_they_begin_with(steps):
    """A step goes on from an earlier call (its prompt, or its completion, too) or from none, as clients do that keep
    ids."""
    asked = Asked()
    for above, completed, new, said in steps:
        before = asked.calls[above % len(asked.calls)] if above is not None and asked.calls else None
        ids = (record(before) if completed else before.prompt_ids) + new if before else new
        recorded = list(asked.calls)
        prompt, (turn,) = asked.ask({"prompt": list(ids)}, said)
        assert prompt.ids == ids and (turn.call.parent, turn.call.parent_part) == place_of(recorded, prompt)
        assert bool(prompt.why_root) == (prompt.continues is None)
    assert whole(brief(asked.calls)) == asked.calls


FEW_TEXTS = st.text("ab ", min_size=1, max_size=4)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.none() | st.integers(0, 5), FEW_TEXTS, FEW_TEXTS), min_size=1, max_size=8))
def test_a_text_continues_the_longest_record_that_it_begins_with(steps):
    """The recorded tokens stay, although tokenising their text again gives others; only what is new is tokenised."""
    asked, texts = Asked(), []
    for above, new, said in steps:
        text = (texts[above % len(texts)] if above is not None and texts else "") + new
        begins = [known for known in texts if text.startswith(known)]
        prompt, (turn,) = asked.ask({"prompt": text}, ids_by_character(said))
        if begins:
            longest = max(begins, key=len)
            assert texts[prompt.continues] == longest
            rest = ids_of(text[len(longest) :]) if text != longest else ()
            assert prompt.ids == record(asked.calls[prompt.continues]) + rest
        for call in asked.calls:
            if call.parent is not None:
                beginning = kept(asked.calls[call.parent], call.parent_part)
                assert call.parent < call.index and call.prompt_ids[: len(beginning)] == beginning
        assert tokenizer().decode(prompt.ids) == text
        assert turn.call.rerendered == (turn.call.parent is None and turn.call.index > 0)
        texts.append(text + said)


SAID = st.sampled_from(
    ["ok", " ok", "größer", call_text("ls"), call_text("a") + call_text("b"), "<think>\nhm\n</think>\n\nok"]
)
DEEDS = st.sampled_from(["append", "append", "append", "back", "edit", "again", "other tools"])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(DEEDS, SAID, st.integers(1, 2)), min_size=1, max_size=8), st.booleans())
def test_a_conversation_is_rendered_again_only_where_no_turn_of_its_history_was_sampled_here(steps, keep_reasoning):
    """And the chain that is kept from the request before is the one that would be computed."""
    asked = Asked(keep_reasoning=keep_reasoning)
    history, tools = [SYSTEM, TASK], [SHELL]
    for deed, said, n in steps:
        body = {"messages": history, "tools": tools}
        request = asked.read(body)
        prompt, turns = asked.ask(body, ids_by_character(said) + ids_of(END), n)
        assert prompt.links == chain(request.tools.digest, [entry.digest for entry in request.messages])
        known = asked.tree.sampled_here(request)
        assert keep_reasoning is False or (prompt.continues is None) == (not known)
        calls = [turn.call for turn in turns]
        first = calls[0]
        asked_first = first.parent if first.parent_part == "prompt" else first.index
        assert all((call.parent, call.parent_part) == (asked_first, "prompt") for call in calls[1:])
        if first.parent is not None:
            beginning = kept(asked.calls[first.parent], first.parent_part)
            assert first.prompt_ids[: len(beginning)] == beginning
        elif first.index > 0:
            assert first.rerendered and prompt.why_root
        message = {name: value for name, value in turns[-1].message().items() if name != "reasoning_content"}
        answers = [{"role": "tool", "tool_call_id": c["id"], "content": "a"} for c in message.get("tool_calls", ())]
        if deed != "again":
            history = [*history, message, *(answers or [user("go on")])]
        if deed == "back":
            history = history[:2] + [user("so far nothing")]
        if deed == "edit":
            history = [*history[:1], user("fix g"), *history[2:]]
        if deed == "other tools":
            tools = [*tools, SHELL]


def test_choices_that_read_the_same_are_told_apart_by_the_ids_of_their_calls():
    """The tokens differ, the messages don't but for these ids."""
    asked, body = Asked(), {"messages": [SYSTEM, TASK], "tools": [SHELL]}
    said = call_text("ls")
    _, [one] = asked.ask(body, ids_of(said + END))
    _, [other] = asked.ask(body, ids_by_character(said) + ids_of(END))
    assert one.call.completion_ids != other.call.completion_ids and other.call.parent_part == "prompt"
    for turn in (one, other):
        message = turn.message()
        answer = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "a.py"}
        prompt, _ = asked.ask({"messages": [SYSTEM, TASK, message, answer], "tools": [SHELL]}, ids_of("ok" + END))
        assert prompt.continues == turn.call.index


def test_what_no_token_has_is_refused():
    asked = Asked()
    with pytest.raises(BadRequest, match="is no token id"):
        asked.ask({"prompt": [5, asked.renderer.vocabulary]}, (5,))
    assert not asked.calls


def test_a_text_is_looked_up_while_others_are_recorded():
    """Long texts are read in a thread."""
    asked = Asked()

    class Text(str):
        def startswith(self, other):
            asked.tree._texts[99] = "recorded meanwhile"
            return super().startswith(other)

    asked.ask({"prompt": "one"}, ids_of("two"))
    assert asked.tree._of_text(Text("another")).continues is None
