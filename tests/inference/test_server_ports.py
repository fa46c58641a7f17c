"""A server's port is no other program's, and a server of another node is used while it is ours."""

import asyncio
import socket
from pathlib import Path

import pytest

from coderepairrl.errors import EngineError
from coderepairrl.files import write_json
from coderepairrl.inference.server import Server
from coderepairrl.inference.server_config import ServerConfig
from coderepairrl.inference.supervisor import NoServer, follow_others


def server_at(folder: Path, port: int = 0) -> Server:
    return Server(ServerConfig(port=port), folder, folder / "vllm.log")


def listener(port: int) -> socket.socket:
    """As vLLM makes its own."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    own.bind(("127.0.0.1", port))
    own.listen()
    return own


def test_port_is_no_other_programs_while_the_server_starts(tmp_path):
    """Found with 15 runs at once: a run asked another's server, and its probe said that it computes other weights."""
    server = server_at(tmp_path)
    with pytest.raises(EngineError, match=f"port {server.port} of 127.0.0.1 is in use"):
        server_at(tmp_path, server.port)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):  # as any other program asks for one
        other.bind(("127.0.0.1", server.port))
    for _ in range(2):  # it is restarted there
        with listener(server.port), socket.create_connection(("127.0.0.1", server.port)):
            pass


def test_port_that_someone_listens_on_is_refused(tmp_path):
    with listener(0) as taken, pytest.raises(EngineError, match="is in use"):
        server_at(tmp_path, taken.getsockname()[1])


class Client:
    """What the gateway does to one server's calls."""

    def __init__(self):
        self.did: list = []

    def pause(self) -> None:
        self.did.append("pause")

    def resume(self, version: int, url: str) -> None:
        self.did.append((version, url))


def test_a_server_of_another_node_is_used_while_its_file_is_there_and_its_weights_are_ours(tmp_path):
    (tmp_path / "policy").mkdir()
    file = tmp_path / "policy" / "engine_1.json"

    async def scenario():
        ours, clients = NoServer(server_at(tmp_path)), [Client(), Client()]
        other = clients[1].did

        async def until(did: list) -> None:
            async with asyncio.timeout(30):
                while other != did:
                    await asyncio.sleep(0.005)

        following = asyncio.create_task(follow_others(ours, clients))
        await until(["pause"])
        write_json(file, {"url": "there", "pid": 1, "version": 1})
        await asyncio.sleep(0.1)
        assert other == ["pause"]  # newer weights than ours serves
        ours.serving = {"version": 1, "step": 1}
        await until(["pause", (1, "there")])
        file.unlink()
        await until(["pause", (1, "there"), "pause"])
        write_json(file, {"url": "elsewhere", "pid": 2, "version": 1})  # restarted
        await until(["pause", (1, "there"), "pause", (1, "elsewhere")])
        following.cancel()
        assert not clients[0].did

    asyncio.run(scenario())
