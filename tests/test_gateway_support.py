"""What the gateway's tests share: a tiny tokenizer, chat templates, and a server that speaks vLLM's wire format.

The server is a double for the wire format of vLLM 0.32 only: it answers with the ids it was given and keeps what it was asked.
"""
import asyncio
import json
from collections.abc import Callable
from functools import cache

import aiohttp
import openai
from aiohttp import web
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from coderepairrl.gateway import Gateway, GatewayConfig, Renderer, SamplingConfig, SessionLimits, VLLMClient
from coderepairrl.gateway.request import Fields, Request
from coderepairrl.gateway.server import DIALECTS
from coderepairrl.gateway.session import Session

END, TEXT_END = "<|im_end|>", "<|endoftext|>"
WORDS = ["def f(x):\n    return x + 1\n", "The tests fail because the index is off by one.", "user assistant system tool\n\n",
         '{"name": "shell", "arguments": {"command": "ls -la"}}', "<think>\nlet me see\n</think>\n\n", "größer 日本語 🙂 \n\n\n"]

QWEN3 = r"""
{%- if tools %}{{- '<|im_start|>system\n' }}{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
{{- "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>" }}
{%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
{{- "\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n" }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- elif default_system is defined %}{{- '<|im_start|>system\n' + default_system + '<|im_end|>\n' }}{%- endif %}
{%- set ns = namespace(searching=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}
{%- if ns.searching and message.role == "user" and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
{%- set ns.searching = false %}{%- set ns.last_query = index %}{%- endif %}{%- endfor %}
{%- for message in messages %}{%- set content = message.content %}
{%- if (message.role == "user") or (message.role == "system" and not loop.first) %}{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
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
{%- if call.function.arguments is string %}{{- call.function.arguments }}{%- else %}{{- call.function.arguments | tojson }}{%- endif %}
{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}
{%- elif message.role == "tool" %}
{%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\n<tool_response>\n' }}{{- content }}{{- '\n</tool_response>' }}
{%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\n' }}{%- endif %}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"""

# no special token ends a turn: nothing can be spliced
PLAIN = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
# as Mistral's: turns must alternate, and the tools move to the last user's turn
MOVING = """{%- for m in messages %}
{%- if loop.index0 > 0 and m.role == messages[loop.index0 - 1].role and m.role != 'tool' %}{{ raise_exception('roles must alternate') }}{%- endif %}
{%- if tools and m.role == 'user' and (messages | selectattr('role', 'equalto', 'user') | list | last) == m %}{{- '[TOOLS]' + (tools | tojson) + '[/TOOLS]' }}{%- endif %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

USER = {"role": "user", "content": "fix f"}
SHELL = {"type": "function", "function": {"name": "shell", "description": "Run a command", "parameters": {
    "type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}}}


@cache
def tokenizer(template: str | None = QWEN3, rstrip: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE, every string can be written. rstrip: the end token swallows white space after it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(WORDS * 20, trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    end = AddedToken(END, special=True, normalized=False, rstrip=rstrip)
    backend.add_special_tokens([TEXT_END, "<|im_start|>", end])
    backend.add_tokens([AddedToken(t, normalized=False) for t in (
        "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=TEXT_END, clean_up_tokenization_spaces=False)
    made.chat_template = template
    return made


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(tokenizer().encode(text, add_special_tokens=False))


def ids_by_character(text: str) -> tuple[int, ...]:
    """As a model may sample them: not the ids that tokenising the text gives."""
    return tuple(i for character in text for i in ids_of(character))


def call_text(command: str) -> str:
    return '<tool_call>\n{"name": "shell", "arguments": {"command": "%s"}}\n</tool_call>' % command


def read_request(session: Session, body: bytes, retry: bool = False, path: str = "/v1/chat/completions") -> Request:
    """As the server reads it."""
    return DIALECTS[path].read(Fields(body, path, {"x-stainless-retry-count": "1"} if retry else {}, session.seen))


class Upstream:
    """POST /inference/v1/generate and GET /health. `reply(prompt_ids) -> (ids, finish_reason)`, or an HTTP status, or the text of a 400."""

    def __init__(self, reply: Callable | None = None):
        self.reply = reply or (lambda prompt: (ids_of("ok" + END), "stop"))
        self.requests: list[dict] = []  # bodies, in order of arrival
        self.answered: list[tuple[tuple[int, ...], tuple[int, ...]]] = []  # (prompt ids, sampled ids)
        self.versions: Callable[[int], list | None] = lambda length: None
        self.gate = asyncio.Event()  # cleared: answers wait
        self.gate.set()
        self.port = 0

    async def start(self) -> str:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/inference/v1/generate", self._generate)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, shutdown_timeout=0.05)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _health(self, http: web.Request) -> web.Response:
        return web.Response()

    async def _generate(self, http: web.Request) -> web.Response:
        body = await http.json()
        self.requests.append(body)
        await self.gate.wait()
        reply = self.reply(tuple(body["token_ids"]))
        if isinstance(reply, int | str):  # a text: why the request is refused
            return web.Response(status=reply if isinstance(reply, int) else 400, text=reply if isinstance(reply, str) else "scripted failure")
        ids, finish_reason = reply
        ids = ids[:body["sampling_params"]["max_tokens"]]
        self.answered.append((tuple(body["token_ids"]), tuple(ids)))
        return web.json_response({"request_id": body["request_id"], "choices": [{
            "index": 0, "finish_reason": finish_reason, "token_ids": ids, "weight_versions": self.versions(len(ids)),
            "logprobs": {"content": [{"token_id": i, "logprob": -0.5 - i / 1000, "rank": 1, "top_logprobs": []} for i in ids]}}]})


class World:
    """A gateway with one session before a scripted upstream."""

    def __init__(self, upstream=None, config=GatewayConfig(), limits=SessionLimits(max_total_tokens=4096), wait_s=10.0, **renderer):
        self.upstream = upstream or Upstream()
        self.config, self.limits, self.wait_s = config, limits, wait_s
        self.renderer = Renderer(tokenizer(), **renderer)

    async def __aenter__(self):
        self.client = VLLMClient(await self.upstream.start(), self.wait_s, initial_version=3)
        self.gateway = Gateway(self.config, [self.client], self.renderer)
        self.url = await self.gateway.start()
        self.session = self.gateway.open_session(self.limits, SamplingConfig(temperature=0.7), cache_salt="salt")
        self.http = aiohttp.ClientSession()
        self.clients = []
        return self

    async def __aexit__(self, *_):
        for client in self.clients:
            await client.close()
        await self.http.close()
        await self.gateway.stop()
        await self.client.close()
        await self.upstream.stop()

    async def post(self, body, key=None, headers=None, path="/chat/completions"):
        """(status, JSON)"""
        data = body if isinstance(body, bytes) else json.dumps(body)
        headers = {"Authorization": f"Bearer {key or self.session.key}", **(headers or {})}
        async with self.http.post(self.url + path, data=data, headers=headers) as response:
            return response.status, await response.json()

    async def in_flight(self):
        """A request, as a task, that vLLM has and does not answer until `upstream.gate` is set."""
        self.upstream.gate.clear()
        request = asyncio.create_task(self.post({"messages": [USER]}))
        while not self.upstream.requests:
            await asyncio.sleep(0.01)
        return request

    def sdk(self, **options):
        client = openai.AsyncOpenAI(base_url=self.url, **{"api_key": self.session.key, "max_retries": 0, **options})
        self.clients.append(client)
        return client


def run(scenario, *args, **kwargs):
    async def main():
        async with World(*args, **kwargs) as world:
            await scenario(world)
    asyncio.run(main())
