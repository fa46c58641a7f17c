"""The gateway tests' tiny tokenizer and chat templates. Processes of the gateway import this file alone: it takes half
of the time that all of their tests' would."""

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from coderepairrl.errors import ConfigError
from coderepairrl.gateway import Renderer, Session

END, TEXT_END = "<|im_end|>", "<|endoftext|>"
WORDS = [
    "def f(x):\n    return x + 1\n",
    "The tests fail because the index is off by one.",
    "user assistant system tool\n\n",
    '{"name": "shell", "arguments": {"command": "ls -la"}}',
    "<think>\nlet me see\n</think>\n\n",
    "größer 日本語 🙂 \n\n\n",
]

QWEN3 = r"""
{%- if tools %}{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
{{- "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n" }}
{{- "You are provided with function signatures within <tools></tools> XML tags:\n<tools>" }}
{%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
{{- "\n</tools>\n\nFor each function call, return a json object with function name and arguments " }}
{{- "within <tool_call></tool_call> XML tags:\n<tool_call>\n" }}
{{- "{\"name\": <function-name>, \"arguments\": <args-json-object>}" }}
{{- "\n</tool_call><|im_end|>\n" }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- elif default_system is defined %}{{- '<|im_start|>system\n' + default_system + '<|im_end|>\n' }}{%- endif %}
{%- set ns = namespace(searching=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}
{%- if ns.searching and message.role == "user" and not(
    message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
{%- set ns.searching = false %}{%- set ns.last_query = index %}{%- endif %}{%- endfor %}
{%- for message in messages %}{%- set content = message.content %}
{%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
{%- elif message.role == "assistant" %}{%- set reasoning = '' %}
{%- if message.reasoning_content is string %}{%- set reasoning = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}
{%- if loop.index0 > ns.last_query and (loop.last or reasoning) %}
{{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
{%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}
{%- for call in message.tool_calls or [] %}{%- if (loop.first and content) or (not loop.first) %}{{- '\n' }}{%- endif %}
{{- '<tool_call>\n{"name": "' }}{{- call.function.name }}{{- '", "arguments": ' }}
{%- if call.function.arguments is string %}{{- call.function.arguments }}
{%- else %}{{- call.function.arguments | tojson }}{%- endif %}
{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}
{%- elif message.role == "tool" %}
{%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\n<tool_response>\n' }}{{- content }}{{- '\n</tool_response>' }}
{%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\n' }}{%- endif %}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"""

# no special token ends a turn: nothing can be spliced
PLAIN = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n\n"
    "' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# as Mistral's: turns must alternate, and the tools move to the last user's turn
MOVING = """{%- for m in messages %}
{%- if loop.index0 > 0 and m.role == messages[loop.index0 - 1].role and m.role != 'tool' %}
{{- raise_exception('roles must alternate') }}{%- endif %}
{%- if tools and m.role == 'user' and (messages | selectattr('role', 'equalto', 'user') | list | last) == m %}
{{- '[TOOLS]' + (tools | tojson) + '[/TOOLS]' }}{%- endif %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""


@cache
def tokenizer(template: str | None = QWEN3, rstrip: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE, every string can be written. rstrip: the end token swallows white space after it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        WORDS * 20,
        trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    end = AddedToken(END, special=True, normalized=False, rstrip=rstrip)
    backend.add_special_tokens([TEXT_END, "<|im_start|>", end])
    backend.add_tokens(
        [
            AddedToken(t, normalized=False)
            for t in ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
        ]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, pad_token=TEXT_END, clean_up_tokenization_spaces=False
    )
    made.chat_template = template
    return made


def renderer() -> Renderer:
    return Renderer(tokenizer())


def unsendable() -> Renderer:
    """In the process that serves: what its sessions note can't be pickled."""
    Session._event = lambda session, kind, **details: session.events.append({"kind": lambda: kind})
    return renderer()


def unmakeable() -> Renderer:
    raise ConfigError("no such family: name another")
