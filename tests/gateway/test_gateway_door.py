"""Connections to the gateway's socket, which every sandbox sees: one that opens many is alone with its trouble."""

import asyncio
import os
import resource
import sys

import aiohttp
import pytest
from gateway_helpers import tokenizer
from sandbox_helpers import make_task, sandbox_config

from coderepairrl.demonstrations.scripted_server import ScriptedClient
from coderepairrl.gateway import Gateway, GatewayConfig, Renderer, door
from coderepairrl.sandboxes import start_sandbox

FLOOD = """
import os, socket, sys, time
for _ in range({forks}): os.fork()
all = []
for n in range(300):
    one = socket.socket(socket.AF_UNIX); one.settimeout(5)
    try: one.connect(sys.argv[1]); {then}; all.append(one)
    except OSError: time.sleep(0.005)
print("flooded", flush=True); time.sleep({stays_s})
"""
ASK = """
import socket, sys
one = socket.socket(socket.AF_UNIX); one.connect(sys.argv[1])  # as relay.py does: it waits for room
one.sendall(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"); print(one.recv(4096).decode())
"""
FLOODS = {
    "that say nothing": dict(forks=0, then="pass", stays_s=5),
    "of many processes": dict(forks=3, then="pass", stays_s=5),
    "that begin a request": dict(
        forks=0, then="one.sendall(b'POST /v1/completions HTTP/1.1\\r\\nContent-Length: 9999\\r\\n\\r\\n')", stays_s=5
    ),
    "that come again and again": dict(forks=1, then="one.close()", stays_s=0),
}


async def served(tmp_path, body):
    folder = tmp_path / "gateway"
    folder.mkdir()
    folder.chmod(0o755)
    gateway = Gateway(GatewayConfig(), [ScriptedClient()], Renderer(tokenizer(), {}), folder / "socket")
    await gateway.start()
    try:
        return await body(folder / "socket")
    finally:
        await gateway.stop()


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_connections_is_its_own_sandboxes_trouble(tmp_path, flood):
    config = sandbox_config("bubblewrap", tmp_path)
    before = len(os.listdir("/proc/self/fd"))

    async def body(socket):
        async with start_sandbox(config, make_task()) as hostile, start_sandbox(config, make_task()) as sibling:
            for sandbox in (hostile, sibling):
                sandbox.show(str(socket.parent))
            attack = [sys.executable, "-c", FLOOD.format(**FLOODS[flood]), str(socket)]
            flooding = asyncio.create_task(hostile.run(attack))
            most, answers = 0, []
            while not flooding.done():
                most = max(most, len(os.listdir("/proc/self/fd")))
                answers.append((await sibling.run([sys.executable, "-c", ASK, str(socket)])).output)
            said = (await flooding).output
            return most, answers, said, (await hostile.run([sys.executable, "-c", ASK, str(socket)])).output

    most, answers, said, after = asyncio.run(served(tmp_path, body))
    assert "flooded" in said and answers and all("200 OK" in answer for answer in answers)
    assert "200 OK" in after  # nothing is held against it when it has let go
    assert most < before + door.PER_SANDBOX + 60
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_all_together_leave_descriptors_for_everything_else(tmp_path, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(door, "PER_SANDBOX", 10_000)

    async def body(socket):
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        try:
            found = [await asyncio.open_unix_connection(str(socket)) for _ in range(40)]  # of this process at both ends
            await asyncio.sleep(0.2)
            for _, writer in found:
                writer.close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await asyncio.sleep(0.2)
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as http:
            async with http.get("http://x/health") as answer:
                return answer.status

    monkeypatch.setattr(door, "SHARE", 0.2)
    assert asyncio.run(served(tmp_path, body)) == 200
