"""Model families rendered by the `renderers` package, with their special tokens in a tiny tokenizer: whatever is
sampled stays token for token.

One property for each family: what agents do to their history gives continuations of what is recorded, or counted new
roots; and what a family's
model would say for a message is read back as that message.
"""

import asyncio
import json
from functools import cache

import pytest
from gateway_helpers import PLAIN, SHELL, ids_by_character, ids_of, tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_agents import ACTIONS, TEXTS, follows, play

from coderepairrl.errors import ConfigError
from coderepairrl.gateway import Renderer, RenderingConfig, make_renderer
from coderepairrl.gateway.messages import canonical
from coderepairrl.gateway.rendering import TemplateRefusal

TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
GLM = [
    "[gMASK]",
    "<sop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|endoftext|>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "/nothink",
]
DEEPSEEK = [
    f"<｜{name}｜>".replace(" ", "▁")
    for name in (
        "begin of sentence",
        "end of sentence",
        "User",
        "Assistant",
        "tool calls begin",
        "tool calls end",
        "tool call begin",
        "tool call end",
        "tool sep",
        "tool outputs begin",
        "tool outputs end",
        "tool output begin",
        "tool output end",
    )
]
GEMMA = [
    "<bos>",
    "<eos>",
    "<|turn>",
    "<turn|>",
    "<|channel>",
    "<channel|>",
    "<|think|>",
    "<|tool>",
    "<tool|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    "<|image>",
    "<|image|>",
    "<image|>",
    '<|"|>',
]
LLAMA = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
]
FAMILIES = {  # name -> (special tokens, arguments of the chat template)
    "qwen3": (CHATML + TAGS, {}),
    "qwen3 without thinking": (CHATML + TAGS, {"enable_thinking": False}),
    "llama-3": (LLAMA, {}),
    "deepseek-v3": (DEEPSEEK, {}),
    "deepseek-r1": (DEEPSEEK + TAGS, {}),
    "gemma4": (GEMMA, {}),
    "gemma4 with thinking": (GEMMA, {"enable_thinking": True}),
    "glm-4.5": (GLM + TAGS, {}),
    "glm-5": (GLM + TAGS, {}),
    "qwen3.5": (CHATML + TAGS + ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"], {}),
    "minimax-m2": (["]~!b[", "]~b]", "[e~[", "<minimax:tool_call>", "</minimax:tool_call>"] + TAGS, {}),
    "nemotron-3": (CHATML + TAGS + ["<s>", "</s>"], {}),
}


@cache
def family_tokenizer(name: str):
    made = tokenizer(PLAIN).__class__(
        tokenizer_object=tokenizer(PLAIN).backend_tokenizer.__class__.from_str(
            tokenizer(PLAIN).backend_tokenizer.to_str()
        ),
        eos_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )
    made.add_special_tokens({"additional_special_tokens": FAMILIES[name][0]})
    made.chat_template = PLAIN
    return made


@cache
def family_renderer(name: str, keep_reasoning: bool = True) -> Renderer:
    return make_renderer(
        family_tokenizer(name),
        RenderingConfig(family=name.partition(" ")[0], keep_reasoning=keep_reasoning),
        FAMILIES[name][1],
    )


def says(renderer: Renderer, text: str, thought: str = "", command: str | None = None) -> tuple[int, ...]:
    """What the family's model would say; where its generation prompt has begun a thought, with one."""
    message = {"role": "assistant", "content": text}
    if command is not None:
        message["tool_calls"] = [
            {"id": "a", "type": "function", "function": {"name": "shell", "arguments": {"command": command}}}
        ]
    for reasoning in ({"reasoning_content": thought} if thought else {}), {"reasoning_content": "well"}, {}:
        try:
            return renderer.turn(message | reasoning, [SHELL])
        except TemplateRefusal:
            continue
    return (*renderer.encode(f"{thought}</think>{text}"), renderer.stop_token_ids[0])


def ended(renderer: Renderer, ids: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """With its finish reason. Some families' turns end with the marker of the next, which their templates put there."""
    ids = ids or ids_of("x")
    return ids, "stop" if ids[-1] in renderer.stop_token_ids else "length"


def replies(renderer: Renderer):
    """Sampled ids: what the family would say for a message, with its end or cut, or any tokens at all, special ones
    included."""
    said = st.builds(
        lambda text, thought, command, cut: says(renderer, text, thought, command)[: -1 if cut else None],
        TEXTS,
        st.sampled_from(["", "hm"]),
        st.none() | TEXTS,
        st.booleans(),
    )
    anything = st.lists(
        st.sampled_from([*ids_of("a b"), *range(renderer.tokenizer.vocab_size, len(renderer.tokenizer))]),
        min_size=1,
        max_size=12,
    )
    noise = st.builds(
        lambda ids, end: (*(i for i in ids if i not in renderer.stop_token_ids), *end),
        anything,
        st.sampled_from([(i,) for i in renderer.stop_token_ids] + [()]),
    )
    return st.one_of(said, said, noise).map(lambda ids: ended(renderer, ids))


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data(), keep_reasoning=st.booleans())
def test_every_prompt_continues_a_record_or_is_a_counted_root(name, data, keep_reasoning):
    renderer = family_renderer(name, keep_reasoning)
    steps = data.draw(st.lists(st.tuples(ACTIONS, replies(renderer), TEXTS), min_size=2, max_size=5))
    played = asyncio.run(play(renderer, steps))
    calls = played.session.calls
    assert [(c.prompt_ids, c.completion_ids) for c in calls] == played.sampled  # each sample once, as it was sampled
    assert all(follows(c, calls) for c in calls)
    assert played.session.counters["rerendered_roots"] == sum(c.rerendered for c in calls)
    assert all(added == (action == "resend") for action, added in played.repeated)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_agent_that_only_appends_gives_one_branch(name):
    """Thoughts, calls, text; turns that end as they should and one that was cut. (A turn that ends within its thought
    may be a new root.)"""
    renderer = family_renderer(name)
    turns = [
        says(renderer, "", "hm", "ls"),
        says(renderer, "so it is", "hm"),
        ids_by_character("cut in the mid"),
        says(renderer, "", "hm", "ls"),
    ]
    steps = [("append", ended(renderer, ids), "a.py") for ids in turns]
    played = asyncio.run(play(renderer, steps))
    calls = played.session.calls
    assert [(c.prompt_ids, c.completion_ids) for c in calls] == played.sampled and all(follows(c, calls) for c in calls)
    assert [(c.parent, c.parent_part) for c in calls] == [
        (None, None),
        *((i, "completion") for i in range(len(turns) - 1)),
    ]


@pytest.mark.parametrize(
    "name", [name for name in FAMILIES if name != "deepseek-r1"]
)  # whose template never shows what it thought
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    text=st.text("abc \n{}größer日本🙂", max_size=12).map(str.strip),
    command=st.text("ls -a\"'\\\n日", max_size=8),
    thought=st.sampled_from(["", "hm\nso"]),
    calls=st.booleans(),
)
def test_what_a_family_says_is_read_back(name, text, command, thought, calls):
    renderer, command = family_renderer(name), command.strip() or "ls"
    text = "" if calls and name == "llama-3" else text
    ids = says(renderer, text, thought, command if calls else None)
    content, reasoning, found, malformed = renderer.parse(
        ids, [SHELL], (), renderer.render([{"role": "user", "content": "u"}], [SHELL])
    )
    assert (content.strip(), malformed) == (text, 0)
    assert [(call.name, json.loads(call.arguments)) for call in found] == [("shell", {"command": command})] * calls
    assert not thought or reasoning in (thought, None)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data(), tools=st.booleans())
def test_parse_takes_anything(name, data, tools):
    renderer = family_renderer(name)
    ids, _ = data.draw(replies(renderer))
    content, reasoning, calls, _ = renderer.parse(
        ids, [SHELL] if tools else [], (), renderer.render([{"role": "user", "content": "u"}], None)
    )
    json.dumps([content, reasoning, [(call.name, call.arguments) for call in calls]]).encode()
    assert tools or not calls
    assert all(isinstance(json.loads(call.arguments), dict) for call in calls)
    canonical({"role": "assistant", "content": content})


def test_a_family_is_named_and_fits():
    with pytest.raises(
        ConfigError, match="family 'llama-4' can't be used .* name the model's own family, or write generic"
    ):
        make_renderer(tokenizer(), RenderingConfig(family="llama-4"))
    with pytest.raises(ConfigError, match="family 'llama-3' can't be used"):
        make_renderer(tokenizer(), RenderingConfig(family="llama-3"))
    with pytest.raises(ConfigError, match="there is no guessing here"):
        make_renderer(tokenizer(), RenderingConfig(family="auto"))
    with pytest.raises(TemplateRefusal, match="does not take these messages"):
        family_renderer("llama-3").render([{"role": "system", "content": "s"}], [SHELL])
