"""The API through the official `litellm` client, of the version that aider brings along, in aider's own environment."""

import asyncio
import json

from gateway_helpers import END, SHELL, call_text, ids_of, run

from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.gateway import SessionLimits
from coderepairrl.scaffolds.aider import Aider
from coderepairrl.scaffolds.installation import install

PROGRAM = """
import asyncio, json, sys
import litellm

url, key, tool = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
litellm.suppress_debug_info = True
common = {"api_base": url, "api_key": key, "num_retries": 0}
user = {"role": "user", "content": "list"}


def brief(message):
    calls = message.tool_calls or []
    return [message.content, [[call.id, call.function.name, json.loads(call.function.arguments)] for call in calls]]


first = litellm.completion(model="openai/policy", messages=[user], tools=[tool], temperature=0.1, **common)
said = first.choices[0].message
history = [user, said, {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "lib.py"}]
second = litellm.completion(model="openai/policy", messages=history, tools=[tool], stream=True, **common)
joined = litellm.stream_chunk_builder(list(second), messages=history)
both = asyncio.run(litellm.acompletion(model="openai/policy", messages=[user], n=2, **common))
text = litellm.text_completion(model="text-completion-openai/policy", prompt="once", **common)
response = litellm.responses(model="openai/policy", input="list", **common)
errors = []
for name, own in (("closed", {}), ("stranger", {"api_key": "nobody's"})):
    try:
        litellm.completion(model="openai/policy", messages=[user, user], **common | own)
    except Exception as error:
        errors.append(type(error).__name__)
print(json.dumps([brief(said), brief(joined.choices[0].message), [brief(choice.message) for choice in both.choices],
                  text.choices[0].text, response.output[0].content[0].text, errors]))
"""


def test_completions_streams_choices_texts_responses_and_errors(tmp_path):
    async def scenario(world):
        installed = await install(Aider.installation, EnvironmentsConfig())
        world.upstream.reply = lambda prompt: (
            ids_of((call_text("ls") if not world.session.calls else "There is lib.py.") + END),
            "stop",
        )
        program = await asyncio.create_subprocess_exec(
            installed.python,
            "-I",
            "-c",
            PROGRAM,
            world.url,
            world.session.key,
            json.dumps(SHELL),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        )
        out, err = await asyncio.wait_for(program.communicate(), 120)
        assert program.returncode == 0, err.decode()[-2000:]
        said = ["There is lib.py.", []]
        assert json.loads(out.splitlines()[-1]) == [
            [None, [["c00000000", "shell", {"command": "ls"}]]],
            said,
            [said, said],
            said[0],
            said[0],
            ["ContextWindowExceededError", "AuthenticationError"],
        ]
        first, second, *choices = world.session.calls[:4]
        assert (
            second.parent == 0
            and second.prompt_ids[: len(first.prompt_ids) + len(first.completion_ids)]
            == first.prompt_ids + first.completion_ids
        )
        assert choices[1].prompt_ids == choices[0].prompt_ids

    run(scenario, limits=SessionLimits(max_turns=6, max_total_tokens=4096))
