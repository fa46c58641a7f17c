"""Runs inside the sandbox, with mini-swe-agent's own Python: what its command line does, less litellm, typer and
questions to a user.

    python -I driver.py job.json

The model class does what the package's LitellmModel does: same tool, same parsing, same messages; a malformed answer
raises before it is in the history.
"""

import http.client
import json
import os
import sys
import time
from types import SimpleNamespace
from urllib.parse import urlsplit

import yaml
from minisweagent.agents.default import DefaultAgent
from minisweagent.config import builtin_config_dir
from minisweagent.environments.local import LocalEnvironment
from minisweagent.exceptions import LimitsExceeded
from minisweagent.models.utils.actions_text import format_observation_messages, parse_regex_actions
from minisweagent.models.utils.actions_toolcall import (
    BASH_TOOL,
    format_toolcall_observation_messages,
    parse_toolcall_actions,
)
from minisweagent.utils.serialize import recursive_merge
from pydantic import BaseModel

TRIES = 4  # of a request that the gateway did not answer
ACTION = r"```mswea_bash_command\s*\n(.*?)\n```"


class ModelConfig(BaseModel):
    model_name: str
    text: bool
    model_kwargs: dict = {}
    format_error_template: str
    observation_template: str
    action_regex: str = ACTION


class GatewayModel:
    def __init__(self, **settings):
        self.config = ModelConfig(**settings)

    def query(self, messages: list[dict], **kwargs) -> dict:
        body = {
            "model": self.config.model_name,
            "messages": [{k: v for k, v in message.items() if k != "extra"} for message in messages],
        }
        if not self.config.text:
            body["tools"] = [BASH_TOOL]
        choice = post(body | self.config.model_kwargs | kwargs)["choices"][0]
        message = {key: value for key, value in choice["message"].items() if value is not None}
        error = {
            "format_error_template": self.config.format_error_template,
            "template_kwargs": {"finish_reason": choice["finish_reason"]},
        }
        if self.config.text:
            actions = parse_regex_actions(message.get("content") or "", action_regex=self.config.action_regex, **error)
        else:
            calls = [
                SimpleNamespace(id=call["id"], function=SimpleNamespace(**call["function"]))
                for call in message.get("tool_calls") or []
            ]
            actions = parse_toolcall_actions(calls, **error)
        return {"content": None} | message | {"extra": {"actions": actions, "cost": 0.0, "timestamp": time.time()}}

    def format_message(self, **message) -> dict:
        return message

    def format_observation_messages(
        self, message: dict, outputs: list[dict], template_vars: dict | None = None
    ) -> list[dict]:
        template = {"observation_template": self.config.observation_template, "template_vars": template_vars}
        if self.config.text:
            return format_observation_messages(outputs, **template)
        return format_toolcall_observation_messages(actions=message["extra"]["actions"], outputs=outputs, **template)

    def get_template_vars(self, **kwargs) -> dict:
        return self.config.model_dump()

    def serialize(self) -> dict:
        return {}


def post(body: dict) -> dict:
    """The gateway's answer. It waits for as long as the model needs; a closed session ends the agent."""
    url, data = urlsplit(os.environ["OPENAI_BASE_URL"]), json.dumps(body)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
    for attempt in range(TRIES):
        connection = http.client.HTTPConnection(url.hostname, url.port)
        try:
            connection.request(
                "POST", f"{url.path}/chat/completions", data, headers | {"x-stainless-retry-count": str(attempt)}
            )
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
        else:
            if response.status == 200:
                return answer
            problem = f"HTTP {response.status}: {answer['error']['message']}"
            if answer["error"]["code"] == "context_length_exceeded":
                raise LimitsExceeded(
                    {"role": "exit", "content": problem, "extra": {"exit_status": "LimitsExceeded", "submission": ""}}
                )
            if response.status < 500:
                break
        finally:
            connection.close()
        time.sleep(2**attempt)
    raise RuntimeError(f"the model does not answer: {problem}")


def main(path: str) -> None:
    with open(path) as file:
        job = json.load(file)
    config = recursive_merge(yaml.safe_load((builtin_config_dir / job["config"]).read_text()), job["settings"])
    agent = {key: value for key, value in config["agent"].items() if key != "mode"}  # of its interactive class
    model = config["model"]
    model["model_kwargs"].pop("drop_params", None)  # of litellm
    end = DefaultAgent(
        GatewayModel(model_name=job["model"], text=job["mode"] == "text", **model),
        LocalEnvironment(cwd=job["workdir"], **config["environment"]),
        **agent,
    ).run(job["task"])
    if end["exit_status"] != "Submitted":  # where the gateway closed the session, nobody looks at the exit code
        sys.exit(f"the agent gave up: {end['exit_status']}")


if __name__ == "__main__":
    main(sys.argv[1])
