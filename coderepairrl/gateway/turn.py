"""A call as its client sees it: what the model said, read from the sampled tokens."""

from dataclasses import dataclass

from coderepairrl.gateway import call_forms
from coderepairrl.gateway.messages import Message
from coderepairrl.gateway.tool_calls import ParsedCall
from coderepairrl.types import Call


@dataclass(frozen=True)
class Turn:
    """What the client gets for one call."""

    call: Call
    content: str
    reasoning: str | None
    tool_calls: tuple[ParsedCall, ...]
    used: tuple[int, int] | None = None  # tokens of prompt and completion where somebody else counts them

    def message(self) -> Message:
        """As the OpenAI API has it; the ids of tool calls are the same in every run of the same conversation."""
        message: Message = {"role": "assistant", "content": self.content or (None if self.tool_calls else "")}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": self.call_id(i),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for i, call in enumerate(self.tool_calls)
            ]
        return message

    def call_id(self, number: int) -> str:
        """Of a tool call."""
        return call_forms.call_id(self.call.index, number)
