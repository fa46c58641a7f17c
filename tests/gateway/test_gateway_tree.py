"""The trees that real agents' habits make: what is a branch, what forks, what is a counted root."""

from gateway_helpers import END, SHELL, call_text, ids_by_character, ids_of, run

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
            parent = session.calls[call.parent]
            kept = parent.prompt_ids + (parent.completion_ids if call.parent_part == "completion" else ())
            assert call.prompt_ids[: len(kept)] == kept
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
