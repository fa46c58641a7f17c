"""Renders model families with the `renderers` package: those whose turns a chat template alone can't continue, and any
that it knows.

Harmony's turns (gpt-oss) are several messages with channels; Gemma and GLM end a turn with the next one's marker;
DeepSeek's and Kimi's tool calls are token sequences of their own. The package has these by hand, with parsers for what
was sampled. It promises that a continuation starts with the ids that were sampled; here that is checked on each.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from coderepairrl.errors import ConfigError
from coderepairrl.gateway import named_templates
from coderepairrl.gateway.messages import Message
from coderepairrl.gateway.rendering import OPENING, Renderer, RenderingConfig, TemplateRefusal
from coderepairrl.gateway.tool_calls import ParsedCall, checked_call

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# what the package raises on messages it doesn't take
REFUSALS = (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, IndexError)


def make_renderer(
    tokenizer: "PreTrainedTokenizerBase",
    config: RenderingConfig = RenderingConfig(),
    chat_template_kwargs: dict[str, Any] | None = None,
) -> Renderer:
    """Raises ConfigError."""
    if config.family == "generic":
        make = partial(Renderer, tokenizer, chat_template_kwargs, config.tool_calls, config.keep_reasoning)
        without, with_ = named_templates.chosen(tokenizer, config.template)
        return make(template=without) if without == with_ else named_templates.ByTools(make, without, with_)
    if config.template is not None:
        raise ConfigError(
            f"rendering.template {config.template!r}: family {config.family} renders by itself: leave one of the two "
            "out"
        )
    return FamilyRenderer(tokenizer, config.family, chat_template_kwargs, config.keep_reasoning)


class FamilyRenderer(Renderer):
    """keep_reasoning: earlier turns stay as they were sampled. Otherwise as the family's own template has it."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        family: str,
        chat_template_kwargs: dict[str, Any] | None = None,
        keep_reasoning: bool = True,
    ):
        import renderers

        try:
            settings = {"thinking_retention": "all"} if keep_reasoning else {}
            blank = renderers.config_from_name(family)
            if blank is None:
                raise ValueError("there is no guessing here")
            config = renderers.merge_chat_template_kwargs(type(blank)(**settings), chat_template_kwargs)
            self._family = renderers.create_renderer(tokenizer, config)
        except (ValueError, TypeError, AssertionError) as error:
            raise ConfigError(
                f"family {family!r} can't be used with tokenizer {tokenizer.name_or_path or 'without a name'} "
                f"({error}): "
                "name the model's own family, or write generic"
            ) from error
        self.tokenizer, self.keep_reasoning, self._backend = tokenizer, keep_reasoning, tokenizer.backend_tokenizer
        self.stop_token_ids = tuple(dict.fromkeys(self._family.get_stop_token_ids()))

    def render(self, messages: list[Message], tools: list[dict] | None) -> tuple[int, ...]:
        try:
            return tuple(self._family.render_ids(_named(messages), tools=tools or None, add_generation_prompt=True))
        except REFUSALS as error:
            raise TemplateRefusal(f"the model's family does not take these messages: {error}") from error

    def extend(
        self,
        prompt_ids: tuple[int, ...],
        completion_ids: tuple[int, ...],
        finish_reason: str,
        previous_messages: list[Message],
        new_messages: list[Message],
        tools: list[dict] | None,
    ) -> tuple[int, ...] | None:
        new = _named([*previous_messages[-1:], *new_messages])[len(previous_messages[-1:]) :]
        try:
            bridged = self._family.bridge_to_next_turn(list(prompt_ids), list(completion_ids), new, tools=tools or None)
        except (
            REFUSALS
        ):  # it can't only append: the whole conversation is rendered, and refused where that can't be either
            return None
        sampled = len(prompt_ids) + len(completion_ids)
        if bridged is None or tuple(bridged.token_ids[:sampled]) != (*prompt_ids, *completion_ids):
            return None
        return tuple(bridged.token_ids)

    def parse(
        self,
        completion_ids: tuple[int, ...],
        tools: Sequence[dict] = (),
        stop: Sequence[str] = (),
        prompt_ids: tuple[int, ...] = (),
    ) -> tuple[str, str | None, list[ParsedCall], int]:
        """A call that is malformed, or that was made when no tools were offered, stays in the content as it was
        said."""
        try:
            said = self._family.parse_response(
                list(completion_ids), tools=list(tools) or None, prompt_ids=list(prompt_ids) or None
            )
        except REFUSALS:  # the model's doing
            return self.text(completion_ids, stop, ends=False), None, [], 1
        content, calls, bad = said.content, [], []
        for attempt in said.tool_calls:
            call = None
            if attempt.status == "ok" and tools:
                call = checked_call(attempt.name, {} if attempt.arguments is None else attempt.arguments)
            if call:
                calls.append(call)
            else:
                bad.append(attempt.raw)
        content = "\n".join(filter(None, [content, *bad]))
        cuts = [at for at in map(content.find, stop) if at >= 0]
        # the line breaks are the family's own way of writing it
        thought = (said.reasoning_content or "").strip("\n") or None
        return content[: min(cuts)] if cuts else content, thought, calls, len(bad) if tools else 0

    def turn(self, message: Message, tools: list[dict] | None) -> tuple[int, ...]:
        """Raises TemplateRefusal also where the generation prompt begins a thought that this message has not."""
        try:
            head = self._family.render_ids(OPENING, tools=tools or None, add_generation_prompt=True)
            whole = self._family.render([*OPENING, message], tools=tools or None)
        except REFUSALS as error:
            raise TemplateRefusal(f"the model's family does not take this message: {error}") from error
        ids = whole.token_ids[
            : max((place + 1 for place, sampled in enumerate(whole.sampled_mask) if sampled), default=0)
        ]
        if ids[: len(head)] == head:
            return tuple(ids[len(head) :])
        before, said = self.text(head), self.text(ids)  # the tokens at the seam may be others
        if not said.startswith(before):
            raise TemplateRefusal("the model's family does not show this message as what follows its generation prompt")
        return self.encode(said[len(before) :])


def _named(messages: list[Message]) -> list[Message]:
    """Some families show which tool a result is of: clients give only the id of the call."""
    names = {call["id"]: call["function"]["name"] for message in messages for call in message.get("tool_calls", ())}
    return [
        {**message, "name": names[message["tool_call_id"]]}
        if message["role"] == "tool" and not message.get("name") and message.get("tool_call_id") in names
        else message
        for message in messages
    ]
