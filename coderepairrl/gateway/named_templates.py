"""Tokenizers with several chat templates, each with a name: `default` and `tool_use` (Hermes), `rag` (Command R).

As transformers chooses: `tool_use` where there are tools, else `default`. A conversation's tools are part of it, so
that it stays with its template from its first turn to its last; another conversation of the session may have the other.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from coderepairrl.errors import ConfigError
from coderepairrl.gateway.messages import Message
from coderepairrl.gateway.rendering import Renderer
from coderepairrl.gateway.tool_calls import ParsedCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def chosen(tokenizer: "PreTrainedTokenizerBase", name: str | None) -> tuple[str | None, str | None]:
    """(for conversations without tools, with tools). Raises ConfigError, which names the templates that there are."""
    found, model = tokenizer.chat_template, tokenizer.name_or_path or "without a name"
    if not isinstance(found, dict):
        if name not in (None, "default"):
            raise ConfigError(
                f"rendering.template {name!r}: tokenizer {model} has one chat template, without a name: "
                "leave rendering.template out"
            )
        return found, found
    without = with_ = name or "default"
    if not name and "tool_use" in found:
        with_ = "tool_use"
    if without not in found:
        raise ConfigError(
            f"tokenizer {model} has no chat template {without!r}: set rendering.template to one of {', '.join(found)}"
        )
    return found[without], found[with_]


class ByTools(Renderer):
    """Two renderers of one tokenizer: which one renders a conversation depends on whether it has tools."""

    def __init__(self, make: Callable[..., Renderer], without: str, with_: str):
        self._without, self._with = make(template=without), make(template=with_)
        self.tokenizer, self.keep_reasoning = self._with.tokenizer, self._with.keep_reasoning
        self._backend = self.tokenizer.backend_tokenizer
        self.stop_token_ids = tuple(dict.fromkeys((*self._without.stop_token_ids, *self._with.stop_token_ids)))

    def _of(self, tools: Sequence[dict] | None) -> Renderer:
        return self._with if tools else self._without

    def render(self, messages: list[Message], tools: list[dict] | None) -> tuple[int, ...]:
        return self._of(tools).render(messages, tools)

    def extend(
        self,
        prompt_ids: tuple[int, ...],
        completion_ids: tuple[int, ...],
        finish_reason: str,
        previous_messages: list[Message],
        new_messages: list[Message],
        tools: list[dict] | None,
    ) -> tuple[int, ...] | None:
        inner = self._of(tools)
        return inner.extend(prompt_ids, completion_ids, finish_reason, previous_messages, new_messages, tools)

    def parse(
        self,
        completion_ids: tuple[int, ...],
        tools: Sequence[dict] = (),
        stop: Sequence[str] = (),
        prompt_ids: tuple[int, ...] = (),
    ) -> tuple[str, str | None, list[ParsedCall], int]:
        return self._of(tools).parse(completion_ids, tools, stop, prompt_ids)

    def turn(self, message: Message, tools: list[dict] | None) -> tuple[int, ...]:
        return self._of(tools).turn(message, tools)
