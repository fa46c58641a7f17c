"""Weight updates: the right weights arrive, in all servers; whatever vLLM does the gather ends on every rank; the files
say what is true."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import requests
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM
from weights_server import WeightsServer

from coderepairrl.errors import EngineError
from coderepairrl.files import read_json, write_json
from coderepairrl.inference.server import Server
from coderepairrl.inference.server_config import ServerConfig
from coderepairrl.processes import cause
from coderepairrl.processes.starting import ranks_command, ranks_environment
from coderepairrl.weights import WeightSender
from coderepairrl.weights.probe import unproven_versions

SERVER = ServerConfig(dtype="float32", kv_cache_mib=64, max_model_len=512, threads=1, weight_backend="gloo")


def sender(timeout_s: float) -> WeightSender:
    return WeightSender("gloo", torch.float32, torch.device("cpu"), timeout_s)


def layout_of(weights: list[tuple[str, torch.Tensor]]) -> list:
    return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights]


class Buckets:
    """One tensor each; `taken` counts them; `act` is called before number `at`."""

    def __init__(self, weights, at: int | None = None, act=None):
        self.weights, self.at, self.act, self.taken = weights, at, act, 0

    def __iter__(self):
        for self.taken, pair in enumerate(self.weights):
            if self.taken == self.at:
                self.act()
            yield [pair]
        self.taken += 1


WEIGHTS = [(f"layers.{i}.weight", torch.full((3, 5), float(i))) for i in range(7)]


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    buckets = Buckets(WEIGHTS)
    with pytest.raises(EngineError, match="did not answer /pause"):
        sender(5.0).send([(f"http://127.0.0.1:{port}", 1)], 1, layout_of(WEIGHTS), buckets)
    assert buckets.taken == len(WEIGHTS)


def test_a_server_that_never_answers():
    """The connection is accepted, then nothing: what a stopped process looks like."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        buckets = Buckets(WEIGHTS)
        with pytest.raises(EngineError, match="restart it"):
            sender(1.0).send([(f"http://127.0.0.1:{silent.getsockname()[1]}", 1)], 1, layout_of(WEIGHTS), buckets)
    assert buckets.taken == len(WEIGHTS)


@pytest.mark.parametrize(
    "buckets", [[[("layers.1.weight", torch.zeros(3, 5))]], [[("layers.0.weight", torch.zeros(5, 3))]], [[WEIGHTS[0]]]]
)
def test_buckets_that_are_not_the_layout_are_a_bug(buckets):
    """vLLM would load them into the wrong parameters, or wait for more: not an error to recover from."""
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ValueError, match="layout says"):
        sender(1.0).send([(f"http://127.0.0.1:{silent.getsockname()[1]}", 1)], 1, layout_of(WEIGHTS), buckets)


def publish(ranks: int, policy: Path, run: Path, *words: str, fails: str = "") -> list[list[dict]]:
    """Runs tests/programs/publish.py; what each rank saw after each word. `fails`: why it is to fail in the end."""
    result = subprocess.run(
        ranks_command(ranks, ["tests/programs/publish.py", str(policy), str(run), *words]),
        cwd=ROOT,
        env=ranks_environment(1),
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = result.stdout + result.stderr
    assert (cause.of_text(said) if result.returncode else "") == fails, said
    return [json.loads((run / f"rank_{rank}.json").read_text()) for rank in range(ranks)]


def new_run(folder: Path, policy: Path) -> Path:
    (folder / "policy").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    write_json(
        folder / "policy" / "current.json",
        {"version": 0, "step": 0, "path": str(policy), "path_version": 0, "live": True},
    )
    return folder


def test_the_books_of_two_ranks(policy, tmp_path):
    """vLLM is away, then its port is dead: both ranks finish each gather, agree on the failure, export, and go on. A
    later
    attempt: version 6 was used.

    Then one takes the weights and computes with them; another takes them and computes with others: its version is given
    up,
    it is paused, and the weights go on under a new one, also into a server that began with older ones.

    At last rank 1 breaks: what it says is the cause, not that rank 0 lost it.
    """
    run = new_run(tmp_path / "run", policy)
    shutil.copytree(policy, run / "checkpoints" / "step_00001" / "policy")  # what vLLM was started from
    write_json(
        run / "policy" / "current.json",
        read_json(run / "policy" / "current.json") | {"path": str(run / "checkpoints" / "step_00001" / "policy")},
    )
    write_json(run / "policy" / "highest_version", 6)
    with socket.create_server(("127.0.0.1", 0)) as port:
        dead = json.dumps({"url": f"http://127.0.0.1:{port.getsockname()[1]}", "pid": 1})
    with WeightsServer(run) as honest, WeightsServer(run, off=0.02) as liar:
        entry = lambda server, pid: "server=" + json.dumps({"url": server.url, "pid": pid, "version": 9})
        words = [
            "version=2",
            "checkpoint=3",
            "answer_wish",
            "wish",
            "answer_wish",
            "publish",
            f"server={dead}",
            "publish",
            "publish",
            "checkpoint=4",
            entry(honest, 2),
            "publish",
            entry(liar, 3),
            "publish",
            entry(honest, 4),
            "answer_wish",
        ]
        first, second = publish(
            2, policy, run, *words, "break", fails="KeyError: 'a row'; then ValueError: the batch is damaged"
        )
        assert (honest.version, honest.paused, liar.version, liar.paused) == (12, False, 11, True)
        model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
        assert all(torch.equal(p, honest.weights[name]) for name, p in model.named_parameters())
    assert first == second
    published = [row for row in first if row["word"] == "publish"]
    assert [(row["version"], row["failed"], row["updates"]) for row in published] == [
        (7, 1, 0),
        (8, 2, 0),
        (9, 3, 0),
        (10, 3, 1),
        (12, 4, 1),
    ]
    assert [row["exports"] for row in first[:9]] == [
        [],
        [],
        [],
        ["v000002"],
        *[["v000002", "v000007"]] * 2,
        ["v000007", "v000008"],
        *[["v000008", "v000009"]] * 2,
    ]
    assert first[0]["checkpoints"] == ["step_00001", "step_00003"]  # the older one is in current.json
    assert first[8]["checkpoints"] == ["step_00004"]
    path = lambda version: {"path": str(run / "policy" / f"v{version:06d}"), "path_version": version}
    states = [row["current"] for row in (published[2], published[3], published[4], first[-1])]
    reasons = [state.pop("reason") for state in states]
    assert "did not answer /pause" in reasons[0] and reasons[1] == reasons[3] == ""
    assert "does not compute what weights 11 do: logprobs of 63 tokens are 0.02 off in the mean" in reasons[2]
    assert states == [
        {"version": version, "step": 0, "live": live, "tried": [pid]} | path(exported)
        for version, live, pid, exported in ((9, False, 1, 9), (10, True, 2, 9), (12, False, 3, 12), (12, True, 4, 12))
    ]
    assert not (run / "policy" / "export_wanted.json").exists()
    rows = [json.loads(line) for line in (run / "policy" / "versions.jsonl").read_text().splitlines()]
    assert rows == [{"version": version, "step": 0} for version in (2, 7, 8, 9, 10, 11, 12)]
    assert unproven_versions(run) == {11}
    state = read_json(run / "checkpoints" / "step_00004" / "state.json")
    assert (state["step"], state["version"]) == (4, 9)
    AutoModelForCausalLM.from_pretrained(run / "policy" / "v000012")


def changed_copy(policy: Path, folder: Path) -> Path:
    """The same model with other weights."""
    shutil.copytree(policy, folder)
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05
    model.save_pretrained(folder)
    return folder


@asynccontextmanager
async def serving(folder: Path, *models: Path):
    servers = []
    for number, _ in enumerate(models):
        run = folder / f"server_{number}"
        (run / "policy").mkdir(parents=True)
        servers.append(Server(SERVER, run, run / "vllm.log"))
    try:
        await asyncio.gather(*(server.start(str(model)) for server, model in zip(servers, models, strict=True)))
        yield servers
    finally:
        await asyncio.gather(*(server.stop() for server in servers))


def checksums(server: Server) -> dict[str, str]:
    """Of each of vLLM's own, packed tensors."""
    return requests.post(f"{server.url}/weight_checker", json={"action": "checksum"}, timeout=60).json()["checksums"]


def serves(server: Server) -> str:
    """Generates; the version that the server says it has."""
    answer = requests.post(
        f"{server.url}/v1/completions",
        json={"model": "policy", "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True},
        timeout=60,
    )
    assert answer.json()["usage"]["completion_tokens"] == 4
    return requests.get(f"{server.url}/weight_info", timeout=60).json()["weight_version"]


@pytest.mark.cluster
def test_all_servers_get_the_same_weights(policy, tmp_path):
    """Two servers with different weights become equal, bit for bit, over one communicator that is kept until the
    servers are others.

    Then one is stopped (SIGSTOP) in mid-transfer: nothing breaks and nothing answers; the deadline ends it, and neither
    serves half an update.
    """
    other = changed_copy(policy, tmp_path / "other")
    old, new = (
        [
            (name, p.data)
            for name, p in AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).named_parameters()
        ]
        for path in (policy, other)
    )

    async def scenario():
        async with serving(tmp_path, policy, other) as servers:
            before = [checksums(server) for server in servers]
            assert before[0] != before[1]
            updates = sender(60.0)

            async def send(version, weights, servers, **act):
                addresses = [(server.url, server.process.pid) for server in servers]
                return await asyncio.to_thread(
                    updates.send, addresses, version, layout_of(weights), Buckets(weights, **act)
                )

            sent = [await send(1, new, servers)]
            assert [checksums(server) for server in servers] == [before[1], before[1]]
            sent.append(await send(2, old, servers))
            assert [checksums(server) for server in servers] == [before[0], before[0]]
            assert [serves(server) for server in servers] == ["2", "2"]
            sent.append(await send(3, new, servers[:1]))
            assert [checksums(server) for server in servers] == [before[1], before[0]]
            assert [serves(server) for server in servers] == ["3", "2"]
            sent.append(await send(4, new, servers))
            assert [checksums(server) for server in servers] == [before[1], before[1]]
            assert [update.connect_s > 0.001 for update in sent] == [True, False, True, True]
            updates.timeout_s = 10.0
            with pytest.raises(EngineError, match="restart it"):
                await send(
                    5, old, servers, at=len(old) // 2, act=lambda: os.killpg(servers[0].process.pid, signal.SIGSTOP)
                )
            assert updates.channel is None

    asyncio.run(scenario())


@pytest.mark.cluster
def test_killed_in_mid_transfer(policy, tmp_path):
    """Two real ZeRO-3 ranks; vLLM is killed at half of the buckets. Both ranks finish, and export; started from that,
    it gets the next update."""
    run = new_run(tmp_path / "run", policy)
    other = changed_copy(policy, tmp_path / "other")

    async def scenario():
        server = Server(SERVER, run, run / "vllm.log")
        try:
            await server.start(str(other))
            words = ["publish", "kill", "publish", "server_is_back", "publish", "wish", "answer_wish"]
            ranks = asyncio.create_task(asyncio.to_thread(publish, 2, policy, run, *words))
            try:
                await asyncio.wait_for(server.process.wait(), 300)
                while not ranks.done() and read_json(run / "policy" / "current.json")["live"]:
                    await asyncio.sleep(0.05)
                failed = read_json(run / "policy" / "current.json")
                await server.stop()
                await server.start(failed["path"])
                loaded = checksums(server)
                (run / "server_is_back").touch()
            finally:
                rows = await ranks
            return failed, loaded, checksums(server), serves(server), rows
        finally:
            await server.stop()

    failed, loaded, updated, version, (first, second) = asyncio.run(scenario())
    assert first == second
    assert [(row["version"], row["updates"], row["failed"]) for row in first if row["word"] == "publish"] == [
        (1, 1, 0),
        (2, 1, 1),
        (3, 2, 1),
    ]
    assert not failed["live"] and failed["path_version"] == failed["version"] == 2
    assert loaded == updated  # by file and by gloo, the same engine's weights
    assert version == "3"
    current = read_json(run / "policy" / "current.json")
    assert (current["version"], current["path_version"], current["live"], current["reason"]) == (3, 3, True, "")
