"""Messages to token ids and back, token-exact: what was sampled is never tokenised again.

`render` tokenises a whole conversation. `extend` continues a recorded prompt + completion with what the client added:
the new messages are rendered after a dummy conversation, and what follows the dummy assistant turn's end token is the
continuation. `parse` turns sampled ids into content, reasoning and tool calls.

This is the generic path: it serves every Hugging Face chat template that ends an assistant's turn with a special token.
Families whose turns are more than that (gpt-oss, Gemma ...) are rendered by the `renderers` package: families.py. Which
one is used is said in the configuration and never guessed from a model's name: a checkpoint in a run folder has none,
and training and evaluation of one policy must be rendered by the same code.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

import jinja2

from coderepairrl.config import Config
from coderepairrl.errors import ConfigError, GatewayError
from coderepairrl.gateway.call_forms import forms
from coderepairrl.gateway.messages import Message
from coderepairrl.gateway.tool_calls import ParsedCall, tool_call_parser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "\u2402dummy turn\u2403"  # stands for what was sampled; no message holds it (checked)
LITERAL = "\ufdd0"  # no character: stands within what reads like a special token in a message, and must not become one
CACHE_ENTRIES = 4096
OPENING: list[Message] = [{"role": "user", "content": "u"}]  # of every dummy conversation


class RenderingConfig(Config):
    """How messages become token ids: the same in training and evaluation of a policy."""

    # generic: the tokenizer's own chat template; else a family of the `renderers` package: gpt-oss, gemma4, llama-3 ...
    family: str = "generic"
    template: str | None = None  # the name of one of several chat templates; null: tool_use with tools, else default
    # of the generic path: hermes, or the name of one of vLLM's tool parsers (llama3_json, mistral ...)
    tool_calls: str = "hermes"
    keep_reasoning: bool = True  # of earlier turns, as it was sampled, whatever the template would strip


class TemplateRefusal(GatewayError):
    """The chat template does not take these messages."""


# what templates raise on messages that they don't take: they compute with what models say
REFUSALS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
Dummy = tuple[str, tuple[tuple[str, str], ...]]  # of a dummy turn: its content, and (id, name) of its calls


class Renderer:
    """Renders for one tokenizer and one chat template. Not for threads.

    template              the tokenizer's own where none is given
    chat_template_kwargs  passed to the template in every render, for example {"enable_thinking": False}
    keep_reasoning        True: reasoning of earlier turns stays as it was sampled, whatever the template would strip.
                          False: where the template strips it, the conversation is rendered as a new root.
    stop_token_ids        end sampling: the template's end of turn and the tokenizer's end of text
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        chat_template_kwargs: dict[str, Any] | None = None,
        tool_calls: str = "hermes",
        keep_reasoning: bool = True,
        template: str | None = None,
    ):
        name = tokenizer.name_or_path or "without a name"
        if not tokenizer.is_fast:
            raise ConfigError(f"tokenizer {name} is a slow one: use a model folder that has a tokenizer.json")
        self._template = template or tokenizer.chat_template
        if not isinstance(self._template, str):
            raise ConfigError(
                f"tokenizer {name} has no chat template: use an instruction-tuned model, "
                "or put a chat_template.jinja into its folder"
            )
        self.tokenizer, self.keep_reasoning = tokenizer, keep_reasoning
        self._parse_calls = tool_call_parser(tool_calls, tokenizer)
        self._backend = tokenizer.backend_tokenizer
        # a template that prints today's date would break a conversation at midnight
        started = datetime.now()
        self._variables = {
            **tokenizer.special_tokens_map,
            "strftime_now": started.strftime,
            **(chat_template_kwargs or {}),
        }
        self._specials = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._specials |= set(tokenizer.all_special_tokens)
        self._forged = _pattern(self._specials)
        self._dummies: dict[Dummy, tuple[str, str]] = {}
        self._tools_matter: dict[tuple, bool] = {}
        self._head_generate = self._text(OPENING, None, generate=True)
        self._prefills_think = self._head_generate.rstrip().endswith("<think>")
        self.end_id, self._end = self._find_end()
        ends = (self.end_id, tokenizer.eos_token_id)
        self.stop_token_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in ends if i is not None))

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token: a text of more than so many times n is longer than n tokens."""
        return max(map(len, self._backend.get_vocab()))

    @cached_property
    def vocabulary(self) -> int:
        """Token ids lie below it."""
        return len(self.tokenizer)

    def render(self, messages: list[Message], tools: list[dict] | None) -> tuple[int, ...]:
        """The whole conversation and the generation prompt. Raises TemplateRefusal."""
        return self.encode(self._text(messages, tools, generate=True))

    def encode(self, text: str, begins: bool = False) -> tuple[int, ...]:
        """begins: with what the tokenizer puts before every text (a begin token, or nothing)."""
        encoding = self._backend.encode(text, add_special_tokens=begins)
        if LITERAL not in text:
            return tuple(encoding.ids)
        ids = tuple(i for i, (start, stop) in zip(encoding.ids, encoding.offsets) if text[start:stop] != LITERAL)
        plain = tuple(self._backend.encode(text.replace(LITERAL, ""), add_special_tokens=begins).ids)
        return ids if self.text(ids) == self.text(plain) else plain  # some tokenizer may not keep it apart

    def _literally(self, message: Message) -> Message:
        """What a client's words say is text, whatever they spell: no file that a tool prints begins a turn. The
        assistant's are as it sampled them."""
        content = message["content"].replace(LITERAL, "\ufffd")
        if message["role"] != "assistant":
            content = self._forged.sub(lambda found: found[0][0] + LITERAL + found[0][1:], content)
        return message if content == message["content"] else {**message, "content": content}

    def text(self, token_ids: Sequence[int], stop: Sequence[str] = (), ends: bool = True) -> str:
        """Of sampled ids. stop: cut before the first of them. ends: with the end tokens at its end."""
        end = len(token_ids)
        while not ends and end and token_ids[end - 1] in self.stop_token_ids:
            end -= 1
        text = self._backend.decode(token_ids[:end], skip_special_tokens=False)
        cuts = [at for at in map(text.find, stop) if at >= 0]
        return text[: min(cuts)] if cuts else text

    def extend(
        self,
        prompt_ids: tuple[int, ...],
        completion_ids: tuple[int, ...],
        finish_reason: str,
        previous_messages: list[Message],
        new_messages: list[Message],
        tools: list[dict] | None,
    ) -> tuple[int, ...] | None:
        """prompt_ids + completion_ids, the end of the turn, the new messages and the generation prompt; costs O(new
        tokens).

        previous_messages: the conversation up to and including the sampled turn. None where the splice can't be proven
        right: then the whole conversation has to be rendered. A turn that ended without the template's end token
        (length, stop string, another end) is closed with it.
        """
        if self._end is None:
            return None
        tail = self._tail(previous_messages, new_messages, tools)
        if tail is None:
            return None
        # The end token in front keeps the tokeniser's view: added tokens may swallow white space after them (the line
        # break after <|im_end|>), and some tokenisers put a space before the first word of a text.
        tail_ids = self.encode(self._end + tail)
        if tail_ids[0] != self.end_id:
            return None
        ended = finish_reason == "stop" and completion_ids and completion_ids[-1] == self.end_id
        return prompt_ids + (completion_ids + (tail_ids[1:] if ended else tail_ids))

    def parse(
        self,
        completion_ids: tuple[int, ...],
        tools: Sequence[dict] = (),
        stop: Sequence[str] = (),
        prompt_ids: tuple[int, ...] = (),
    ) -> tuple[str, str | None, list[ParsedCall], int]:
        """(content, reasoning, tool calls, count of malformed calls). Malformed calls stay in the content.

        No tools: the client offered none, `<tool_call>` is plain text. stop: the text is cut before the first.
        prompt_ids: no matter here.
        """
        text, reasoning = self.text(completion_ids, stop, ends=False), None
        if self._prefills_think or text.lstrip().startswith("<think>"):
            before, closed, after = text.partition("</think>")
            reasoning = before.lstrip().removeprefix("<think>").strip()
            text = after.lstrip("\n") if closed else ""
        if not tools:
            return text, reasoning, [], 0
        content, calls, malformed = self._parse_calls(text, tools)
        return content, reasoning, calls, malformed

    def turn(self, message: Message, tools: list[dict] | None) -> tuple[int, ...]:
        """The ids that a policy samples when it says this message, the end of the turn included: `parse` backwards.
        Raises TemplateRefusal."""
        head, text = self._text(OPENING, tools, generate=True), self._text([*OPENING, message], tools, generate=False)
        if not text.startswith(head):
            raise TemplateRefusal(
                "the model's chat template does not show an assistant's turn as what follows its generation prompt"
            )
        said = text[len(head) :]
        if self._end and self._end in said:
            said = said[: said.rindex(self._end) + len(self._end)]
        before = self.encode(self._head_generate)  # in front, so that the tokeniser's view is that of a conversation
        ids = self.encode(self._head_generate + said)
        return ids[len(before) :] if ids[: len(before)] == before else self.encode(said)

    def _find_end(self) -> tuple[int | None, str | None]:
        """The special token that ends an assistant turn in this template; None when there is none: no splice then."""
        try:
            text = self._text([*OPENING, {"role": "assistant", "content": MARK}], None, generate=False)
        except TemplateRefusal:
            return None, None
        _, found, after = text.rpartition(MARK)
        end = max((token for token in self._specials if after.startswith(token)), key=len, default=None)
        if not found or not end:
            return None, None
        return self.tokenizer.convert_tokens_to_ids(end), end

    def _tail(self, previous: list[Message], new: list[Message], tools: list[dict] | None) -> str | None:
        """What the template puts after the end token of the dummy turn; None when it would not only append.

        Templates refuse turns that models do sample: two calls in one (Llama 3), calls beside a text. What follows is
        looked for behind the turn that is likest to the sampled one of those that the template takes.
        """
        if not self.keep_reasoning and any(message.get("reasoning_content") for message in previous):
            try:
                if not self._keeps_reasoning(new):
                    return None
            except TemplateRefusal:
                return None
        key = tuple(message["role"] for message in new)
        if tools and not self._tools_matter.get(key, True):
            tools = None  # this kind of continuation was seen not to depend on them, and they are long
        for shape in _shapes(_calls_answered(previous[-1] if previous else {}, new)):
            try:
                tail = self._splice(shape, new, tools)
                if tools and key not in self._tools_matter and len(self._tools_matter) < CACHE_ENTRIES:
                    self._tools_matter[key] = tail is None or tail != self._splice(shape, new, None)
                return tail
            except TemplateRefusal:
                continue  # the next shape
        return None

    def _splice(self, shape: Dummy, new: list[Message], tools: list[dict] | None) -> str | None:
        head, base = self._dummy_texts(shape, tools)
        text = self._text([*OPENING, _dummy_turn(shape), *new], tools, generate=True)
        _, mark, after = base.rpartition(MARK)
        # One mark for the content, one for the arguments of each dummy call, as far as the template prints them.
        if not mark or text.count(MARK) != base.count(MARK) or not text.startswith(head):
            return None  # a message holds the mark, or the template rewrites or drops earlier turns
        turn, _, trail = after.partition(self._end)
        text_turn, end, tail = text.rpartition(MARK)[2].partition(self._end)
        return tail if end and turn == text_turn and tail.startswith(trail) else None

    def _dummy_texts(self, shape: Dummy, tools: list[dict] | None) -> tuple[str, str]:
        """The renders of the user's turn alone, and with the dummy turn: what may not change when messages follow."""
        known = None if tools else self._dummies.get(shape)
        if known:
            return known
        texts = tuple(
            self._text(messages, tools, generate=False) for messages in (OPENING, [*OPENING, _dummy_turn(shape)])
        )
        if not tools:
            if len(self._dummies) >= CACHE_ENTRIES:
                self._dummies.clear()
            self._dummies[shape] = texts
        return texts

    def _keeps_reasoning(self, new: list[Message]) -> bool:
        """Whether an earlier turn with reasoning still reads as it was sampled once `new` follows."""
        text = self._text(
            [*OPENING, {"role": "assistant", "content": MARK, "reasoning_content": "r"}, *new], None, generate=True
        )
        sampled = self._head_generate + ("" if self._prefills_think else "<think>") + "r</think>"
        return "".join(text.partition(MARK)[0].split()) == "".join(sampled.split())

    def _text(self, messages: list[Message], tools: list[dict] | None, generate: bool) -> str:
        """Raises TemplateRefusal, the first of those that the forms of the messages meet with."""
        refusal = None
        for form in forms(messages):
            try:
                return self._rendered(form, tools, generate)
            except TemplateRefusal as error:
                refusal = refusal or error
        raise refusal

    def _rendered(self, messages: list[Message], tools: list[dict] | None, generate: bool) -> str:
        from transformers.utils.chat_template_utils import (
            render_jinja_template,  # a second, for who only reads a configuration
        )

        try:
            conversation = [self._literally(message) for message in messages]
            texts, _ = render_jinja_template(
                conversations=[conversation],
                tools=tools or None,
                add_generation_prompt=generate,
                chat_template=self._template,
                **self._variables,
            )
        except REFUSALS as error:
            raise TemplateRefusal(f"the model's chat template does not take these messages: {error}") from error
        return texts[0]


def _pattern(words: set[str]) -> re.Pattern:
    """Finds any of them, the longest at a place. By their beginnings: some tokenizers have hundreds of "<|"."""
    longest_first = sorted(words, key=lambda word: (word[:2], -len(word)))
    groups = (
        (head, "|".join(re.escape(word[2:]) for word in some))
        for head, some in groupby(longest_first, key=lambda word: word[:2])
    )
    return re.compile("|".join(f"{re.escape(head)}(?:{rests})" for head, rests in groups) or "(?!)")


def _calls_answered(turn: Message, new: list[Message]) -> tuple[tuple[str, str], ...]:
    """(id, name) of the sampled turn's tool calls when tool results follow it, for templates that look them up."""
    if not new or new[0]["role"] != "tool":
        return ()
    return tuple((call["id"], call["function"]["name"]) for call in turn.get("tool_calls") or ())


def _shapes(calls: tuple[tuple[str, str], ...]) -> Iterator[Dummy]:
    """The likest to the sampled turn first."""
    for some in dict.fromkeys((calls, calls[:1])):
        yield MARK, some
        if some:
            yield "", some
    if calls:
        yield MARK, ()


def _dummy_turn(shape: Dummy) -> Message:
    content, calls = shape
    turn: Message = {"role": "assistant", "content": content}
    if calls:
        turn["tool_calls"] = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": {"mark": MARK}}}
            for call_id, name in calls
        ]
    return turn
