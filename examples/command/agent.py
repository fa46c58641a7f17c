"""A coding agent in forty lines, with nothing but OpenAI's package: agent.py PROBLEM_FILE. It knows nothing of who
trains its model."""

import json
import subprocess
import sys
from pathlib import Path

from openai import BadRequestError, OpenAI

SYSTEM = (
    "Repair the code in the current directory. Look at it, edit it, test it with the shell; say done when it is "
    "repaired. Do not change tests."
)
SHELL = {
    "type": "function",
    "function": {
        "name": "shell",
        "description": "Run a shell command",
        "parameters": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
    },
}


def run(arguments: str) -> str:
    try:
        command = json.loads(arguments)["command"]
        done = subprocess.run(
            ["bash", "-c", command],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        return (done.stdout + done.stderr)[-8000:] or f"exit code {done.returncode}"
    except (ValueError, KeyError, TypeError, subprocess.TimeoutExpired) as error:
        return f"error: {error!r}"


def main() -> None:
    # base URL and key are in its environment; an answer may take long while vLLM is restarted
    client = OpenAI(timeout=None)
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": Path(sys.argv[1]).read_text()}]
    while True:
        try:
            answer = client.chat.completions.create(model="policy", messages=messages, tools=[SHELL]).choices[0].message
        except BadRequestError as error:
            if error.code == "context_length_exceeded":
                return  # the episode is over
            raise
        messages.append(answer.model_dump(exclude_none=True))
        if not answer.tool_calls:
            return
        for call in answer.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": run(call.function.arguments)})


main()
