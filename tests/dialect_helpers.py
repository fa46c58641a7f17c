"""Shared by the tests of the gateway's dialects."""

import json

from gateway_helpers import SHELL

CUSTOM = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edit files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: begin end"},
}
FUNCTION = {"type": "function", "strict": False, **SHELL["function"]}
THOUGHT = "<think>\nhm\n</think>\n\n"


def patch_text(text: str) -> str:
    return f'<tool_call>\n{{"name": "apply_patch", "arguments": {json.dumps({"input": text})}}}\n</tool_call>'


def continued(session) -> list[tuple]:
    """(parent, part) of each call; each continuation is checked token by token."""
    for call in session.calls:
        if call.parent is not None:
            parent = session.calls[call.parent]
            kept = parent.prompt_ids + (parent.completion_ids if call.parent_part == "completion" else ())
            assert call.prompt_ids[: len(kept)] == kept
    return [(call.parent, call.parent_part) for call in session.calls]
