"""The tree of a session's calls: which recorded call a request continues, token for token.

An agent sends its whole history with every request, as text. What the model sampled in it is never tokenised again: a
prompt is the ids of a recorded call, and behind them the ids of what is new. So every path of the tree is one sequence
of tokens that the model has seen and sampled just so, which is what training needs.

Three ways lead to the call that a request continues; the longest recorded beginning wins:

    messages    a hash chain over canonical messages, tools included (messages.py): the last link that ends with a turn
                that was sampled here. Behind it the template renders what is new (rendering.py)
    text        of /v1/completions, which is no conversation: the longest recorded prompt + completion, as text
    tokens      ids that a client gives, and what the template rendered where no turn was known again, or could not be
                continued: the longest recorded prompt + completion, as ids

What comes of it:

    the conversation ends, or goes on, after a turn that was sampled here       -> that call's prompt + completion,
                                                                                extended
    its prompt was asked before (n > 1, or the same body as a new request)      -> parent_part "prompt"
    a turn was dropped or edited                                                -> a fork at the last turn that still
                                                                                agrees
    no turn agrees, or the template can't only append                           -> rendered as a new root, counted
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from coderepairrl.gateway import call_forms
from coderepairrl.gateway.messages import BadRequest, Canonical, Message, canonical, chain, next_link
from coderepairrl.gateway.rendering import Renderer
from coderepairrl.gateway.request import Request
from coderepairrl.gateway.turn import Turn
from coderepairrl.types import Call


def kept(parent: Call, part: str | None) -> tuple[int, ...]:
    """The ids of its parent that a call's prompt begins with. part: the call's parent_part."""
    return parent.prompt_ids + (parent.completion_ids if part == "completion" else ())


@dataclass(frozen=True)
class Prompt:
    """What vLLM gets for a request, and where that stands in the tree."""

    ids: tuple[int, ...]
    continues: int | None  # the call whose prompt + completion the ids begin with
    links: list[bytes]  # the request's chain; of a text, one
    why_root: str  # empty for a continuation
    text: str | None = None  # of what is no conversation


class CallTree:
    """`calls` grows: a call's parent comes before it. `prompt` may run in a thread while calls are added."""

    def __init__(self, renderer: Renderer):
        self.calls: list[Call] = []
        self._renderer = renderer
        self._turns: list[Turn] = []  # one a call
        self._after_turn: dict[bytes, list[int]] = {}  # link that ends with a sampled turn -> calls
        self._asked: dict[bytes, list[int]] = {}  # last link of a prompt -> calls
        self._texts: dict[int, str] = {}  # call -> prompt + completion, of those that are no conversation
        self._last: tuple[tuple[Canonical, ...], list[bytes]] = (), [b""]  # messages and chain of the request before

    def prompt(self, request: Request) -> Prompt:
        """Raises TemplateRefusal for what can't be rendered, BadRequest for ids that no token has."""
        if isinstance(request.text, tuple):
            return self._of_ids(request.text)
        if request.text is not None:
            return self._of_text(request.text)
        return self._of_messages(request)

    def history(self, request: Request) -> Prompt:
        """Of a model whose tokens are not known: no ids; the call that it continues by its messages alone."""
        links, messages = self._links(request), [entry.message for entry in request.messages]
        upto = next((i for i in range(len(messages), 0, -1) if links[i] in self._after_turn), None)
        if upto is None:
            return Prompt((), None, links, "no recorded turn in the history")
        return Prompt((), self._call_of(links[upto], messages[upto - 1]).index, links, "")

    def place(self, prompt: Prompt) -> tuple[int | None, str | None]:
        """(parent, parent_part) of a call with this prompt; (None, None) for a root."""
        for index in self._asked.get(prompt.links[-1], ()):
            if self.calls[index].prompt_ids == prompt.ids:
                return index, "prompt"
        return prompt.continues, None if prompt.continues is None else "completion"

    def add(self, prompt: Prompt, turn: Turn) -> None:
        """The call of `turn` has the next index, and the place that `place` says."""
        call, link = turn.call, prompt.links[-1]
        self.calls.append(call)
        self._turns.append(turn)
        self._asked.setdefault(link, []).append(call.index)
        if prompt.text is None:
            self._after_turn.setdefault(next_link(link, canonical(turn.message()).digest), []).append(call.index)
        else:
            self._texts[call.index] = prompt.text + self._renderer.text(call.completion_ids)

    def sampled_here(self, request: Request) -> set[int]:
        """Places in the request's messages where a turn of this tree stands, with all that came before it."""
        return {place for place, link in enumerate(self._links(request)[1:]) if link in self._after_turn}

    def new_messages(self, request: Request, prompt: Prompt, call: Call) -> list[Message]:
        """What the call's request added, for people: its messages behind the last assistant's, or its text behind the
        parent's."""
        if prompt.text is not None:
            known = len(self._texts.get(call.parent, "")) if call.parent_part == "completion" else 0
            return [{"role": "text", "content": prompt.text[known:]}]
        messages = [entry.message for entry in request.messages]
        last = next((i for i in reversed(range(len(messages))) if messages[i]["role"] == "assistant"), -1)
        return messages[last + 1 :]

    def _of_messages(self, request: Request) -> Prompt:
        links, messages = self._links(request), [entry.message for entry in request.messages]
        tools = list(request.tools.functions) or None
        upto = next((i for i in range(len(messages), 0, -1) if links[i] in self._after_turn), None)
        if not self._renderer.keep_reasoning:
            messages = self._with_reasoning(messages, links)
        if upto is not None:
            call = self._call_of(links[upto], messages[upto - 1])
            ids = self._renderer.extend(
                call.prompt_ids, call.completion_ids, call.finish_reason, messages[:upto], messages[upto:], tools
            )
            if ids is not None:
                return Prompt(ids, call.index, links, "")
        ids = self._renderer.render(self._with_reasoning(messages, links), tools)
        why = "the template can't only append" if upto is not None else "no recorded turn in the history"
        return self._rendered(ids, links, why)

    def _of_text(self, text: str) -> Prompt:
        """A completion counts as its tokens read, the end token included."""
        links = [hashlib.blake2b(text.encode(), key=b"text", digest_size=16).digest()]
        begins_with = [i for i, recorded in list(self._texts.items()) if text.startswith(recorded)]
        if begins_with:
            known = max(begins_with, key=lambda i: len(self._texts[i]))
            call, new = self.calls[known], text[len(self._texts[known]) :]
            return Prompt(call.prompt_ids + (call.completion_ids + self._renderer.encode(new)), known, links, "", text)
        ids = self._renderer.encode(text, begins=True)
        return self._rendered(ids, links, "no recorded text is its beginning", text)

    def _of_ids(self, ids: tuple[int, ...]) -> Prompt:
        """BadRequest: vLLM would refuse ids that no token has."""
        unknown = next((i for i in ids if not 0 <= i < self._renderer.vocabulary), None)
        if unknown is not None:
            raise BadRequest(f"prompt: {unknown} is no token id: there are {self._renderer.vocabulary}")
        link = hashlib.blake2b(repr(ids).encode(), key=b"ids", digest_size=16).digest()
        return self._rendered(ids, [link], "no recorded tokens are its beginning", self._renderer.text(ids))

    def _rendered(self, ids: tuple[int, ...], links: list[bytes], why_root: str, text: str | None = None) -> Prompt:
        """Of ids that were made without the tree, which may begin with a recorded call all the same."""
        call = self._longest_beginning(ids)
        return Prompt(ids, call, links, why_root if call is None else "", text)

    def _longest_beginning(self, ids: tuple[int, ...]) -> int | None:
        """The call with the longest prompt + completion that `ids` begin with; of equally long ones the first."""
        best, best_length = None, 0
        for call in self.calls:
            cut, length = len(call.prompt_ids), len(call.prompt_ids) + len(call.completion_ids)
            if not best_length < length <= len(ids):
                continue
            if ids[:cut] == call.prompt_ids and ids[cut:length] == call.completion_ids:
                best, best_length = call.index, length
        return best

    def _links(self, request: Request) -> list[bytes]:
        """The request's chain; as far as its messages are those of the request before, it is not computed again."""
        before, links = self._last
        same = _same(before, request.messages) if links[0] == request.tools.digest else 0
        start = links[same] if same else request.tools.digest
        links = [*links[:same], *chain(start, (entry.digest for entry in request.messages[same:]))]
        self._last = request.messages, links
        return links

    def _with_reasoning(self, messages: list[Message], links: list[bytes]) -> list[Message]:
        """Clients don't send reasoning back: a template that keeps it needs it."""
        out = []
        for message, link in zip(messages, links[1:]):
            if message["role"] == "assistant" and not message.get("reasoning_content") and link in self._after_turn:
                reasoning = self._turns[self._call_of(link, message).index].reasoning
                message = {**message, "reasoning_content": reasoning} if reasoning else message
            out.append(message)
        return out

    def _call_of(self, link: bytes, message: Message) -> Call:
        """Several samples can read the same and differ in tokens: the ids of tool calls tell them apart, else the
        last."""
        candidates = self._after_turn[link]
        if message.get("tool_calls"):
            named = message["tool_calls"][0]["id"]
            return self.calls[next((i for i in candidates if named == call_forms.call_id(i, 0)), candidates[-1])]
        return self.calls[candidates[-1]]


def _same(before: Sequence[Canonical], now: Sequence[Canonical]) -> int:
    """How many messages, from the first, are the very same: each is parsed once in a session (request.py)."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] is pair[1], zip(before, now)))
