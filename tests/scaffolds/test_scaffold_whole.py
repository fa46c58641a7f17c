"""Real agents against the real vLLM. The policy has random weights: what it says is nonsense, and every token of it
must be on record as it was sampled."""

import asyncio
import json
import shutil
from pathlib import Path

import aiohttp
import pytest
import torch
from agents_helpers import AGENTS, PUZZLE
from conftest import ROOT
from transformers import AutoModelForCausalLM

from coderepairrl.config import load
from coderepairrl.files import write_json
from coderepairrl.gateway import Gateway, GatewayConfig, SamplingConfig, VLLMClient, make_renderer
from coderepairrl.gateway.vllm_client import PromptTooLong
from coderepairrl.models.tokenizer import load_tokenizer
from coderepairrl.rollout.episode import Services, run_episode
from coderepairrl.rollout.rollout import Rollout
from coderepairrl.rollout.rollout_config import RolloutConfig
from coderepairrl.scaffolds import make_scaffold, ready
from coderepairrl.scaffolds.codex import CodexConfig
from coderepairrl.scaffolds.terminal_text import TerminalTextConfig
from coderepairrl.types import Call, Outcome, Trajectory

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("place")]
CONTEXT = 16384


def run_folder(policy: Path, tmp_path: Path) -> tuple[RolloutConfig, Path, Path]:
    """(the worked example's configuration, as its YAML has it; its run's folder; a model of so long a context)."""
    from coderepairrl.run.train_config import TrainConfig

    model, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(policy, model)
    (model / "config.json").write_text(
        json.dumps(json.loads((policy / "config.json").read_text()) | {"max_position_embeddings": CONTEXT})
    )
    for name in ("logs/attempt_1", "policy"):
        (run / name).mkdir(parents=True)
    write_json(run / "policy/current.json", {"version": 0, "step": 0, "path": str(model), "live": True})
    limits = "{max_turns: 3, max_total_tokens: %d, max_completion_tokens: 32, deadline_s: 120}" % CONTEXT
    config = load(
        TrainConfig,
        ROOT / "examples/command/quickstart.yaml",
        [
            f"rollout.limits={limits}",
            f"rollout.server.max_model_len={CONTEXT}",
            "rollout.server.kv_cache_mib=256",
            f"rollout.sandbox.scratch={tmp_path}",
            "rollout.gateway.processes=2",
        ],
    ).rollout
    return config, run, model


async def with_another(rollout: Rollout, config: RolloutConfig, model: Path, scaffold) -> Trajectory:
    """An episode of another scaffold, with the rollout's vLLM and a gateway of its own."""
    async with ready(scaffold, config.environments) as socket, aiohttp.ClientSession() as http:
        client = VLLMClient(rollout.supervisor.server.url, config.engine_wait_s)
        renderer = make_renderer(load_tokenizer(model), config.rendering, config.chat_template)
        gateway = Gateway(GatewayConfig(), [client], renderer, socket)
        await gateway.start()
        try:
            services = Services(gateway, scaffold, config.sandbox, rollout.grader, config.rewards, config.limits, http)
            return await run_episode(
                services,
                PUZZLE,
                trajectory_id="x",
                group_id="x",
                split="train",
                attempt=0,
                sampling=SamplingConfig(),
                cache_salt="s",
            )
        finally:
            await gateway.stop()
            await client.close()


async def asked_directly(url: str, model: Path) -> None:
    """A prompt that leaves no room is too long, no broken machine; special tokens in stop strings end the sampling."""
    client, special = VLLMClient(url, 10), load_tokenizer(model).convert_tokens_to_ids("<|endoftext|>")
    ask = lambda name, ids, **more: client.generate(
        ids, max_tokens=200, temperature=1.5, stop_token_ids=(), cache_salt=None, request_id=name, **more
    )
    try:
        for length in (CONTEXT, CONTEXT + 1):
            with pytest.raises(PromptTooLong, match=f"a prompt of {length} tokens"):
                await ask(f"long-{length}", (5,) * length)
        samples = await asyncio.gather(*(ask(f"stop-{i}", (5, 6, 7), stop=("<|endoftext|>",)) for i in range(48)))
        places = [
            sample.token_ids.index(special) - len(sample.token_ids) for sample in samples if special in sample.token_ids
        ]
        assert places and set(places) == {-1}
    finally:
        await client.close()


def logprobs_of(call: Call, reference) -> torch.Tensor:
    """Of its sampled tokens, as transformers computes them."""
    ids = torch.tensor([call.prompt_ids + call.completion_ids])
    with torch.no_grad():
        logits = reference(ids).logits[0, len(call.prompt_ids) - 1 : -1]
    return logits.log_softmax(-1).gather(1, ids[0, len(call.prompt_ids) :, None])[:, 0]


def test_every_token_that_an_agent_got_is_on_record_as_it_was_sampled(policy, tmp_path):
    """The worked example through the rollout process and a gateway of two; then the others, with its vLLM."""
    config, run, model = run_folder(policy, tmp_path)
    others = {name: agent.config() for name, agent in AGENTS.items() if name != "command"} | {
        "codex": CodexConfig(instructions="Repair the code."),
        "terminal_text": TerminalTextConfig(),
    }

    async def main():
        async with Rollout(config, run, str(model), attempt=1, tasks={"train": [], "heldout": [PUZZLE]}) as rollout:
            done = {"command": await rollout.episode(PUZZLE, "heldout")}
            await asked_directly(rollout.supervisor.server.url, model)
            return done | {
                name: await with_another(rollout, config, model, make_scaffold(other)) for name, other in others.items()
            }

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for name, trajectory in asyncio.run(main()).items():
        assert trajectory.outcome != Outcome.INFRASTRUCTURE_ERROR and "Traceback" not in trajectory.outcome_detail, (
            name,
            trajectory.outcome_detail,
        )
        assert trajectory.calls and trajectory.verdict is not None, name
        for call in trajectory.calls:
            assert (logprobs_of(call, reference) - torch.tensor(call.logprobs)).abs().max() < 1e-4, name
