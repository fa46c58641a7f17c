"""What a chat template shows of what it is given. Many leave tools, an assistant's calls or their answers out without a
word (SmolLM2's, Llama 3's, Phi-3's): an agent that works with tools is then never told of them, and fine-tuning would
learn to end the turn in the place of the call.

It is found by rendering: a conversation whose every part is a word that occurs nowhere else.
"""

import multiprocessing
import sys
from dataclasses import dataclass
from functools import lru_cache

from coderepairrl.errors import ConfigError
from coderepairrl.gateway.families import make_renderer
from coderepairrl.gateway.messages import Message
from coderepairrl.gateway.rendering import OPENING, Renderer, RenderingConfig, TemplateRefusal

TOOL = {
    "type": "function",
    "function": {
        "name": "toolword",
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {"key": {"type": "string", "description": "k"}},
            "required": ["key"],
        },
    },
}


@dataclass(frozen=True)
class Shape:
    """Which parts a turn has, and whether its conversation has tools and answers to its calls."""

    text: bool = False
    reasoning: bool = False
    calls: int = 0
    answered: bool = False
    tools: bool = False


def shape_of(turn: Message, answered: bool, tools: bool) -> Shape:
    text, reasoning = bool(turn["content"].strip()), bool(turn.get("reasoning_content"))
    return Shape(text, reasoning, len(turn.get("tool_calls", ())), answered, tools)


def hidden(renderer: Renderer) -> tuple[str, ...]:
    """Of an agent that works with tools: `tools`, `tool calls`, `tool answers`, as far as the template shows none."""
    tools = () if _shows_tools(renderer) else ("tools",)
    return tools + left_out(renderer, Shape(calls=1, answered=True, tools=True))


@lru_cache(256)
def left_out(renderer: Renderer, shape: Shape) -> tuple[str, ...]:
    """What an assistant's turn of this shape, learnt by fine-tuning, would lose. Nothing where the template refuses it:
    that is said when it is met."""
    tools = [TOOL] if shape.tools else None
    turn: Message = {"role": "assistant", "content": "textword" if shape.text else ""}
    if shape.reasoning:
        turn["reasoning_content"] = "thoughtword"
    if shape.calls:
        functions = ({"name": "nameword", "arguments": {"key": f"value{i}word"}} for i in range(shape.calls))
        turn["tool_calls"] = [
            {"id": f"callid{i:03}", "type": "function", "function": function} for i, function in enumerate(functions)
        ]
    answers = [
        {"role": "tool", "tool_call_id": f"callid{i:03}", "content": "answerword"} for i in range(max(1, shape.calls))
    ]
    wanted = {
        "text": ["textword"] * shape.text,
        "reasoning": ["thoughtword"] * shape.reasoning,
        "tool calls": [word for i in range(shape.calls) for word in ("nameword", f"value{i}word")],
    }
    lost = []
    try:
        said = renderer.text(renderer.turn(turn, tools))
        lost = [what for what, words in wanted.items() if not all(word in said for word in words)]
    except TemplateRefusal:
        pass  # see above
    if shape.answered and not _shows(renderer, [*OPENING, turn, *answers], tools, "answerword"):
        lost.append("tool answers")
    return tuple(lost)


@lru_cache(64)
def _shows_tools(renderer: Renderer) -> bool:
    return _shows(renderer, OPENING, [TOOL], "toolword")


def _shows(renderer: Renderer, messages: list[Message], tools: list[dict] | None, word: str) -> bool:
    try:
        return word in renderer.text(renderer.render(messages, tools))
    except TemplateRefusal:
        return False


def renderer_of(
    model: str | None, config: RenderingConfig, chat_template: dict, without_tools: str = ""
) -> Renderer | None:
    """Of a model's folder, None without. What its template hides from agents that work with tools is said in a line;
    `without_tools`: what to use in the place of an agent that does. Raises ConfigError."""
    if model is None:
        return None
    from coderepairrl.models.tokenizer import (
        load_tokenizer,  # imports transformers: not for who only reads a configuration
    )

    renderer = make_renderer(load_tokenizer(model), config, chat_template)
    if unseen := " and no ".join(hidden(renderer)):
        if without_tools:
            raise ConfigError(
                f"the chat template of {model} shows no {unseen}, and this scaffold works with tools: "
                f"use {without_tools}, or a model that knows tools"
            )
        if multiprocessing.current_process().name in ("MainProcess", "gateway-0"):  # of a gateway's processes one
            print(
                f"the chat template of {model} shows no {unseen}: agents that work with tools are never told of them",
                file=sys.stderr,
                flush=True,
            )
    return renderer
