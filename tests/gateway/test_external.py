"""A model behind an OpenAI-compatible API: this project's own gateway over HTTP is the API. What is recorded, what it
cost, and what its errors become."""

import asyncio
import json
import sys
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from conftest import ROOT
from gateway_helpers import END, Upstream, World, ids_of
from pydantic import TypeAdapter, ValidationError
from rollout_helpers import TASKS, folder

from coderepairrl.config import dump, load
from coderepairrl.errors import ConfigError
from coderepairrl.files import read_json, read_jsonl
from coderepairrl.gateway.external import key_of
from coderepairrl.inference.server_config import AnyServerConfig, ServerConfig
from coderepairrl.rollout import trajectory_files
from coderepairrl.rollout.rollout import Rollout
from coderepairrl.rollout.rollout_config import RolloutConfig
from coderepairrl.run.evaluate_config import EvaluateConfig
from coderepairrl.run.train_config import TrainConfig
from coderepairrl.types import Outcome

TASK = TASKS["heldout"][0]
PRICES = {"input": 2.0, "output": 10.0}


def said(name: str, **arguments: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def repair() -> list[str]:
    """What a model says that knows the answer."""
    old, new = (
        next(line[1:] for line in TASK.oracle_patch.split("\n") if line.startswith(sign) and line[1:2] not in "-+")
        for sign in "-+"
    )
    return [said("shell", command="cat lib.py"), said("edit", path="lib.py", old=old, new=new), said("submit")]


def config_of(url: str, key_file=None, scaffold="terminal", **settings) -> RolloutConfig:
    server = {"kind": "external", "url": url, "model": "frontier", "prices": PRICES, "max_model_len": 4096}
    server |= {"key_file": str(key_file)} if key_file else {}
    named = {
        "tasks": {"name": "functions"},
        "scaffold": {"name": scaffold},
        "server": server | settings.pop("server", {}),
        "evaluation": {"greedy": False},
        "infrastructure_retries": 0,
        "max_infrastructure_share": 1.0,
    }
    return RolloutConfig.model_validate(named | settings)


async def evaluated(config: RolloutConfig, run, tasks=(TASK,)) -> list:
    async with Rollout(config, folder(run), None, 1, {"heldout": list(tasks)}) as rollout:
        await rollout.evaluate("before", updates=0)
    return trajectory_files.read(run / "rollouts" / "eval_before.parquet")[0]


@dataclass
class Api:
    """Answers as it is told: statuses, then the texts; keeps what it was asked."""

    answers: list
    asked: list[dict] = field(default_factory=list)

    async def answer(self, http: web.Request) -> web.Response:
        self.asked.append(await http.json())
        said = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(said, tuple):
            status, error = said
            return web.json_response({"error": error}, status=status, headers={"Retry-After": "0.01"})
        message = said if isinstance(said, dict) else {"role": "assistant", "content": said}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        made = {"id": "c", "object": "chat.completion", "created": 0, "model": "frontier"}
        return web.json_response(made | {"choices": [choice], "usage": usage})

    async def __aenter__(self) -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.05)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def __aexit__(self, *_) -> None:
        await self._runner.cleanup()


async def program(*words) -> tuple[int, str]:
    """(exit code, all that it said)"""
    pipe = asyncio.subprocess.PIPE
    own = await asyncio.create_subprocess_exec(sys.executable, *map(str, words), cwd=ROOT, stdout=pipe, stderr=pipe)
    said = await own.communicate()
    return own.returncode, "".join(part.decode() for part in said)


def test_an_agent_repairs_a_task_with_a_model_behind_an_api_and_it_is_counted(tmp_path):
    """scripts/evaluate.py; the API is this project's gateway before an engine that says what repairs the task."""
    lines = iter(repair())
    upstream, run = Upstream(lambda prompt: (ids_of(next(lines) + END), "stop")), tmp_path / "run"

    async def main():
        async with World(upstream) as world:
            key = tmp_path / "key"
            key.write_text(world.session.key + "\n")
            config = config_of(
                world.url, key, sandbox={"scratch": str(tmp_path)}, evaluation={"tasks": 1, "greedy": False}
            )
            dump(EvaluateConfig(run=str(run), rollout=config), tmp_path / "config.yaml")
            done = await program("scripts/evaluate.py", tmp_path / "config.yaml")
            return *done, world.session.key, world.session.calls

    code, said, key, calls = asyncio.run(main())
    assert code == 0 and "100.0% [20.7%, 100.0%] of 1 tasks repaired" in said, said
    (trajectory,) = trajectory_files.read(run / "rollouts" / "eval_00000.parquet")[0]
    assert trajectory.outcome == Outcome.SUBMITTED and trajectory.verdict.resolved
    assert [call.parent for call in trajectory.calls] == [None, 0, 1], "known again by its messages"
    assert not any(call.prompt_ids or call.completion_ids or call.logprobs for call in trajectory.calls)
    first = trajectory.events[0]
    assert first["kind"] == "external" and first["model"] == "frontier" and first["token_ids"] is False
    used = sum(len(call.prompt_ids) for call in calls), sum(len(call.completion_ids) for call in calls)
    summary = read_json(run / "summary.json")
    assert (summary["prompt_tokens"], summary["completion_tokens"]) == used and used[0] > 100
    assert summary["dollars"] == pytest.approx((2 * used[0] + 10 * used[1]) / 1e6)
    assert f"{used[0]:,} tokens in, {used[1]:,} out" in said
    (prediction,) = read_jsonl(run / "predictions.jsonl")
    assert prediction["model_name_or_path"] == "frontier"
    files = [path for path in run.rglob("*") if path.is_file()]
    assert files and not any(key.encode() in path.read_bytes() for path in files), "a key is written nowhere"


@pytest.mark.parametrize(
    "answers, outcome, detail",
    [
        ([(429, {"message": "slow down"}), (503, {"message": "busy"}), "no tool"], Outcome.AGENT_ERROR, "without"),
        ([(400, {"message": "too long", "code": "context_length_exceeded"})], Outcome.TOKEN_LIMIT, "too long"),
        ([(401, {"message": "bad key"})], Outcome.INFRASTRUCTURE_ERROR, "correct server.key_file, server.model"),
        ([(404, {"message": "no such model"})], Outcome.INFRASTRUCTURE_ERROR, "correct server.key_file, server.model"),
        ([(400, {"message": "no temperature"})], Outcome.INFRASTRUCTURE_ERROR, "refused a request"),
        ([(503, {"message": "busy"})], Outcome.INFRASTRUCTURE_ERROR, "did not answer, asked 3 times"),
    ],
)
def test_what_an_api_answers_becomes_an_outcome(tmp_path, answers, outcome, detail):
    api = Api(answers)

    async def main():
        async with api as url:
            async with Rollout(
                config_of(url, engine_wait_s=2.0), folder(tmp_path), None, 1, {"heldout": [TASK]}
            ) as own:
                return await own.episode(TASK, "heldout")

    trajectory = asyncio.run(main())
    assert trajectory.outcome == outcome and detail in trajectory.outcome_detail, trajectory.outcome_detail


def test_a_conversation_ends_where_the_api_has_counted_the_limit(tmp_path):
    call = {"id": "x", "type": "function", "function": {"name": "shell", "arguments": '{"command": "ls"}'}}
    api = Api([{"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"}])
    server = {"max_model_len": 10, "body": {"reasoning_effort": "low"}, "left_out": ["temperature"]}

    async def main():
        async with api as url:
            return await evaluated(config_of(url, server=server), tmp_path)

    (trajectory,) = asyncio.run(main())
    assert trajectory.outcome == Outcome.TOKEN_LIMIT and len(trajectory.calls) == 1
    (asked,) = api.asked
    assert asked["reasoning_effort"] == "low" and "temperature" not in asked and asked["max_tokens"] == 10
    assert asked["model"] == "frontier" and asked["tools"][0]["function"]["name"] == "shell"


def test_a_history_goes_back_as_the_api_wants_it_and_broken_arguments_are_text(tmp_path):
    function = {"name": "shell", "arguments": '{"command": "cat lib.py"}'}
    call = {"id": "x", "type": "function", "function": function}
    broken = {"id": "y", "type": "function", "function": {"name": "shell", "arguments": '{"command": '}}
    answers = [
        {"role": "assistant", "content": "", "tool_calls": [call, broken], "reasoning_content": "hm"},
        {"role": "assistant", "content": "done", "tool_calls": [call | {"function": {"name": "submit"}}]},
    ]
    api = Api(answers)

    async def main():
        async with api as url:
            return await evaluated(config_of(url), tmp_path)

    (trajectory,) = asyncio.run(main())
    assert trajectory.outcome == Outcome.SUBMITTED and trajectory.stats["malformed_tool_calls"] == 1
    _, _, spoken, answered = api.asked[1]["messages"]
    assert json.loads(spoken["tool_calls"][0]["function"]["arguments"]) == {"command": "cat lib.py"}
    assert spoken["content"] == '\nshell({"command": )' and "reasoning_content" not in spoken
    assert answered["tool_call_id"] == spoken["tool_calls"][0]["id"] and "def " in answered["content"]


def test_a_key_comes_from_a_file_alone(tmp_path):
    read = lambda **more: TypeAdapter(AnyServerConfig).validate_python(
        {"kind": "external", "url": "u", "model": "m"} | more
    )
    (tmp_path / "key").write_text(" secret \n")
    assert key_of(read(key_file=str(tmp_path / "key"))) == "secret" and key_of(read()) == "none"
    (tmp_path / "empty").write_text("\n")
    for name, said in (("empty", "is empty"), ("nowhere", "can't be read")):
        with pytest.raises(ConfigError, match=said):
            key_of(read(key_file=str(tmp_path / name)))
    with pytest.raises(ValidationError):
        read(key="secret")


def test_a_server_is_vllm_unless_it_says_what_else_and_is_never_trained(tmp_path):
    external = {"kind": "external", "url": "u", "model": "m"}
    assert isinstance(RolloutConfig.model_validate({"tasks": {"name": "functions"}}).server, ServerConfig)
    base = tmp_path / "base.yaml"
    base.write_text("run: r\nmodel: m\nrollout:\n  tasks: {name: functions}\n  server: {dtype: float32, threads: 1}\n")
    (tmp_path / "own.yaml").write_text(f"base: base.yaml\nrollout:\n  server: {json.dumps(external)}\n")
    assert load(EvaluateConfig, tmp_path / "own.yaml").rollout.server.url == "u", "another kind takes nothing over"
    assert load(EvaluateConfig, base, ["rollout.server.threads=2"]).rollout.server.dtype == "float32"
    rollout = {"tasks": {"name": "functions"}, "groups_per_step": 2, "group_size": 2, "server": external}
    with pytest.raises(ValidationError, match="has no weights that could be trained"):
        TrainConfig.model_validate(
            {"run": "r", "model": "m", "engine": {"learning_rate": 1.0}, "rollout": rollout, "training": {"steps": 1}}
        )
