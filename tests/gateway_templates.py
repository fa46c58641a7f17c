"""Chat templates that behave as published ones do where those differ: written here, with this project's tiny
tokenizer's tokens."""

_TURN = "'<|im_start|>' + m.role + '\\n' + m.content"
_ASK = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
_TOOLS = "{%- if tools %}{{- '[TOOLS]' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif %}"


def _template(checks: str = "", call: str = "c.function | tojson", tools: str = _TOOLS, content: str = _TURN) -> str:
    calls = "{%- for c in m.tool_calls or [] %}" + checks + "{{- " + call + " }}{%- endfor %}" if call else ""
    return (
        tools + "{%- for m in messages %}{{- " + content + " }}" + calls + "{{- '<|im_end|>\\n' }}{%- endfor %}" + _ASK
    )


def _refuse(condition: str, why: str) -> str:
    return "{%- if " + condition + " %}{{- raise_exception('" + why + "') }}{%- endif %}"


TAKES_ALL = _template()
# Mistral
NINE = _template(
    _refuse("c.id is undefined or c.id | length != 9 or not c.id.isalnum()", "ids of nine letters or digits"),
    "c.function | tojson + c.id",
)
ONE_CALL = _template(_refuse("m.tool_calls | length > 1", "one tool call a turn"))  # Llama 3.1
ONE_CALL_EACH_ANSWERED = """{%- for m in messages %}{%- if m.tool_calls %}{%- set at = loop.index %}
{%- set answers = messages[at:at + 2] | selectattr('role', 'equalto', 'tool') | list %}
{%- if m.tool_calls | length > 1 or answers | length > 1 %}{{- raise_exception('one call, one answer') }}{%- endif %}
{%- endif %}{%- if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}
{{- raise_exception('an answer to nothing') }}{%- endif %}{%- endfor %}""" + _template()
TEXT_ARGUMENTS = _template(call="c.function.name + c.function.arguments")  # DeepSeek
CALL_WITHOUT_TEXT = _template(_refuse("m.content", "a call stands alone"))
NO_TOOLS = _template(call="", tools="")  # SmolLM2
NO_CALLS = _template(call="")
# Phi-3
NO_ANSWERS = _TOOLS + _template(tools="").replace(
    "{%- for m in messages %}", "{%- for m in messages if m.role != 'tool' %}"
)
TEXT_OR_CALLS = _template(content="'<|im_start|>' + m.role + '\\n' + ('' if m.tool_calls else m.content)")  # Llama 3.1
ALTERNATING = (
    _refuse("messages[0].role == 'system'", "no system role").join(
        [
            "",
            """{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}{%- endif %}{%- endfor %}""",
        ]
    )
    + NO_TOOLS
)  # Gemma
