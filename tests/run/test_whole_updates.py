"""Weight updates of whole runs: into a vLLM that is stopped, with a head that stays old, under running requests."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest
import requests
import torch
from conftest import ROOT, metrics_of, processes_of, run_program
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from whole_helpers import SMALL, check_books

from coderepairrl.files import read_json
from coderepairrl.gateway import VLLMClient
from coderepairrl.inference.server import Server
from coderepairrl.inference.server_config import ServerConfig
from coderepairrl.weights import UnprovenError, WeightSender
from coderepairrl.weights.probe import Probe, token_ids, unproven_versions

pytestmark = pytest.mark.whole


@pytest.mark.cluster
def test_update_into_a_stopped_vllm(policy, tmp_path):
    """vLLM hangs when the update comes: bounded by a deadline, restarted from the export, and the run goes on with the
    right weights."""
    run = tmp_path / "run"
    command = [
        sys.executable,
        "scripts/train_grpo.py",
        "configs/quickstart.yaml",
        f"run={run}",
        f"model={policy}",
        *SMALL,
        "training.steps=2",
        "rollout.server.update_timeout_s=5",
        "rollout.rewards.weights={random: 1.0}",
        "rollout.rewards.require_submission=false",
    ]
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 300
        while not (run / "rollouts" / "step_00000.parquet").exists():
            assert program.poll() is None and time.monotonic() < deadline, program.stdout.read()
            time.sleep(0.005)
        os.killpg(read_json(run / "policy" / "engine_0.json")["pid"], signal.SIGSTOP)
        output, _ = program.communicate(timeout=300)
    finally:
        if program.poll() is None:
            program.terminate()
            program.wait(60)
    assert program.returncode == 0, output
    assert "weight update 1 failed" in output
    rows, summary = metrics_of(run), read_json(run / "summary.json")
    assert [row["failed_updates"] for row in rows] == [1, 1] and rows[-1]["engine_restarts"] == 1
    assert summary["weight_updates"] == 1 and summary["max_logprob_gap"] < 1e-4
    check_books(run)
    assert not processes_of(run)


@pytest.mark.cluster
def test_an_update_that_leaves_the_old_head(policy, tmp_path):
    """The probe finds it; vLLM is restarted with the export, passes, and the run goes on; no token of it is trained."""
    run = tmp_path / "run"
    result = run_program(
        "tests/programs/stale_head.py",
        "configs/quickstart.yaml",
        f"run={run}",
        f"model={policy}",
        *SMALL,
        "training.steps=4",
        "rollout.max_staleness=1",
        "engine.learning_rate=0.02",
        "engine.warmup_steps=0",
        "rollout.rewards.weights={random: 1.0}",
        "rollout.rewards.require_submission=false",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "weight update 2 failed: vLLM at" in result.stdout and "does not compute what weights 2 do" in result.stdout
    rows, summary = metrics_of(run), read_json(run / "summary.json")
    assert [row["failed_updates"] for row in rows] == [0, 1, 1, 1] and rows[-1]["engine_restarts"] == 1
    assert ["probe_gap" in row for row in rows] == [True, False, True, True]
    assert all(row["probe_gap"] < 1e-3 for row in rows if "probe_gap" in row)
    assert unproven_versions(run) == {2} and summary["max_logprob_gap"] < 1e-4
    assert "weight update 3 failed: vLLM at" in read_json(run / "status.json")["recoveries"][0]["what"]
    check_books(run)
    assert not processes_of(run)


def test_update_under_running_requests(policy, tmp_path):
    """Requests in flight go on; their later tokens carry the new version; fresh requests are those of the new weights.

    The head is the embeddings, which are sent once, and padded in vLLM. Weights of which one was not sent as it is do
    not
    pass their probe.
    """
    (tmp_path / "policy").mkdir()
    tokenizer, folder = AutoTokenizer.from_pretrained(policy), tmp_path / "tied"
    config = AutoConfig.from_pretrained(policy, tie_word_embeddings=True)
    config.vocab_size += 1 + config.vocab_size % 2  # odd
    tokenizer.save_pretrained(folder)
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    models[0].save_pretrained(folder)
    model, row = models[1], token_ids(config.vocab_size, 2048)
    prompt = tuple(tokenizer("def compute(xs, k):\n    return k")["input_ids"])

    def logprobs(ids: tuple[int, ...]) -> torch.Tensor:
        with torch.no_grad():
            everything = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return everything.gather(1, torch.tensor(ids)[1:, None])[:, 0]

    async def scenario():
        server = Server(
            ServerConfig(dtype="float32", kv_cache_mib=128, max_model_len=2048), tmp_path, tmp_path / "vllm.log"
        )
        client = VLLMClient(server.url, 60.0, initial_version=0)
        try:
            await server.start(str(folder))
            ask = lambda salt, tokens: client.generate(
                prompt, max_tokens=tokens, temperature=1.0, stop_token_ids=(), cache_salt=salt, request_id=salt
            )
            running = [asyncio.create_task(ask(f"old-{i}", 1500)) for i in range(4)]
            await asyncio.sleep(1.0)
            weights = [(name, parameter.data) for name, parameter in model.named_parameters()]
            sender = WeightSender("gloo", torch.float32, torch.device("cpu"), 60.0)
            layout = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights]

            async def send(version, weights):
                probe = Probe(version, row, tuple(logprobs(row).tolist()), server.config.largest_gap(exact=True))
                address = (server.url, server.process.pid)
                return await asyncio.to_thread(sender.send, [address], version, layout, [weights], probe)

            sent = await send(7, weights)
            finished, fresh = [await task for task in running], await ask("new", 40)
            with pytest.raises(UnprovenError, match="does not compute what weights 8 do"):
                await send(8, [*weights[:-1], (weights[-1][0], 1.1 * weights[-1][1])])
            assert requests.get(f"{server.url}/is_paused", timeout=60).json() == {"is_paused": True}
            return finished, fresh, sent
        finally:
            await client.close()
            await server.stop()

    running, fresh, sent = asyncio.run(scenario())
    assert any(set(completion.policy_versions) == {0, 7} for completion in running)
    assert all(list(c.policy_versions) == sorted(c.policy_versions) for c in running)
    assert set(fresh.policy_versions) == {7}
    assert (logprobs(prompt + fresh.token_ids)[len(prompt) - 1 :] - torch.tensor(fresh.logprobs)).abs().max() < 1e-4
    assert sent.gap.largest < 1e-4
