"""Whatever happens to the server: it comes back with the newest weights, nothing is released before, and the reason is
on record."""

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest
import requests

from coderepairrl.errors import EngineError
from coderepairrl.files import read_json, write_json
from coderepairrl.inference.server import Server, shared_memory_of
from coderepairrl.inference.server_config import ServerConfig
from coderepairrl.inference.supervisor import NoServer, Supervisor, follow_others
from coderepairrl.rollout import ledger
from coderepairrl.weights.probe import Probe, write

KILLED = (
    "it ended with code -9: ended by SIGKILL, from outside: where nobody sent it, the kernel did, for want of memory"
)
PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "small_server.py"


class SmallServer(Server):
    """Real processes, ports and signals; only the program is small."""

    def _command(self, model: str) -> list[str]:
        (self.run / "started").open("a").write(model + "\n")
        return [sys.executable, str(PROGRAM), str(self.port), model]


class Run:
    """A run folder with exports, a trainer's files, and a supervisor that notes what it holds and releases."""

    def __init__(self, folder: Path, **config):
        self.folder = folder
        (folder / "policy").mkdir()
        self.calls: list = []
        server = SmallServer(
            ServerConfig(**{"start_timeout_s": 60.0, "update_timeout_s": 10.0} | config), folder, folder / "vllm.log"
        )
        self.supervisor = Supervisor(server, lambda: self.calls.append("hold"), self.calls.append)
        self.publish(0)

    def publish(self, version: int, **fields) -> None:
        self.export(version)
        write_json(
            self.folder / "policy" / "current.json",
            {"version": version, "step": version, "path": self.path(version), "live": True} | fields,
        )

    def export(self, version: int) -> None:
        Path(self.path(version)).mkdir(exist_ok=True)

    def path(self, version: int) -> str:
        return str(self.folder / "policy" / f"v{version:06d}")

    def update(self, version: int) -> None:
        """A trainer's live update."""
        requests.post(
            f"{self.supervisor.server.url}/update_weight_version", json={"new_version": str(version)}, timeout=10
        ).raise_for_status()
        self.publish(version)

    @property
    def pid(self) -> int:
        return read_json(self.folder / "policy" / "engine_0.json")["pid"]

    def started(self) -> list[str]:
        return [Path(line).name for line in (self.folder / "started").read_text().splitlines()]

    def recoveries(self) -> list[str]:
        return [row["what"] for row in ledger.rows(self.folder / "policy" / "recoveries.jsonl")]

    async def until(self, holds) -> None:
        async with asyncio.timeout(60):
            while not holds():
                if self.watch.done():
                    self.watch.result()
                await asyncio.sleep(0.01)

    async def __aenter__(self) -> "Run":
        await self.supervisor.start()
        self.watch = asyncio.create_task(self.supervisor.watch())
        return self

    async def __aexit__(self, *_) -> None:
        self.watch.cancel()
        await asyncio.wait([self.watch])
        await self.supervisor.server.stop()


def test_killed_after_live_updates_it_comes_back_with_the_newest(tmp_path):
    async def scenario():
        async with Run(tmp_path) as run:
            assert run.calls == ["hold", 0] and run.supervisor.serving["step"] == 0
            for version in (1, 2):
                await asyncio.to_thread(run.update, version)
                await run.until(lambda: run.supervisor.serving["version"] == version)
            assert run.calls == ["hold", 0]  # a live update needs no restart
            os.kill(run.pid, signal.SIGKILL)
            await run.until(lambda: run.calls == ["hold", 0, "hold", 2])
            assert run.started() == ["v000000", "v000002"] and run.recoveries() == [f"vLLM restarted: {KILLED}"]
            assert run.supervisor.restarts == 1 and run.supervisor.serving["version"] == 2
            await asyncio.to_thread(run.update, 3)  # and takes updates as before
            await run.until(lambda: run.supervisor.serving["version"] == 3)
            assert run.supervisor.restarts == 1

    asyncio.run(scenario())


def test_what_the_trainer_did_meanwhile_is_sent_and_no_second_start(tmp_path):
    async def scenario():
        async with Run(tmp_path) as run:
            first = run.pid
            os.kill(first, signal.SIGKILL)
            await run.until(lambda: run.calls == ["hold", 0, "hold"])
            run.publish(1, live=False, reason="vLLM is being restarted")  # as a trainer does that finds no server
            await run.until(lambda: (run.folder / "policy" / "engine_0.json").exists() and run.pid != first)
            if read_json(run.folder / "policy" / "engine_0.json")["version"] == 0:
                assert run.calls == ["hold", 0, "hold"]  # nothing is sampled with the old ones
                await asyncio.to_thread(run.update, 1)
            await run.until(lambda: run.calls == ["hold", 0, "hold", 1])
            assert (
                read_json(run.folder / "policy" / "engine_0.json")["version"] == run.supervisor.serving["version"] == 1
            )
            assert run.supervisor.restarts == 1 and len(run.started()) == 2

    asyncio.run(scenario())


def test_what_a_killed_server_had_in_shared_memory_is_removed(tmp_path):
    async def scenario():
        async with Run(tmp_path) as run:
            files = shared_memory_of(run.pid)
            assert (
                any("/psm_" in file for file in files)
                and any("/sem.mp-" in file for file in files)
                and all(Path(file).exists() for file in files)
            )
            os.killpg(run.pid, signal.SIGKILL)  # with what would have removed it
            await run.until(lambda: run.calls == ["hold", 0, "hold", 0])
            assert not any(Path(file).exists() for file in files)
            later = shared_memory_of(run.pid)
        assert later and not any(Path(file).exists() for file in later)

    asyncio.run(scenario())


def test_a_failed_update_restarts_it_with_the_export(tmp_path):
    async def scenario():
        async with Run(tmp_path) as run:
            run.publish(1, live=False, reason="the broadcast broke")
            await run.until(lambda: run.calls == ["hold", 0, "hold", 1])
            assert run.started() == ["v000000", "v000001"] and run.recoveries() == [
                "vLLM restarted: weight update 1 failed: the broadcast broke"
            ]

    asyncio.run(scenario())


def test_an_update_that_went_to_a_server_that_is_no_more(tmp_path):
    """current.json says live, but the server was restarted in between, from the older export: its own word counts."""

    async def scenario():
        async with Run(tmp_path) as run:
            run.publish(1)
            await run.until(lambda: run.calls == ["hold", 0, "hold", 1])
            assert (
                run.recoveries() == ["vLLM restarted: it has weights default instead of 1"]
                and run.supervisor.serving["version"] == 1
            )

    asyncio.run(scenario())


def test_a_stopped_server_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr("coderepairrl.inference.supervisor.HEALTH_EVERY_S", 0.1)

    async def scenario():
        async with Run(tmp_path, health_timeout_s=2.0) as run:
            stopped = run.pid
            os.kill(stopped, signal.SIGSTOP)
            await run.until(lambda: run.calls == ["hold", 0, "hold", 0])
            assert run.pid != stopped and not Path(f"/proc/{stopped}").exists()
            assert run.recoveries() == ["vLLM restarted: it did not say within 2 s that it is well"]

    asyncio.run(scenario())


def test_a_failed_update_into_a_stopped_server_is_not_waited_for(tmp_path, monkeypatch):
    """The look at its health, which hangs, does not hide what the trainer says."""
    monkeypatch.setattr("coderepairrl.inference.supervisor.HEALTH_EVERY_S", 0.0)

    async def scenario():
        async with Run(tmp_path, health_timeout_s=3600.0) as run:
            os.kill(run.pid, signal.SIGSTOP)
            await asyncio.sleep(0.5)
            run.publish(1, live=False, reason="no answer")
            await run.until(lambda: run.calls == ["hold", 0, "hold", 1])
            assert run.recoveries() == ["vLLM restarted: weight update 1 failed: no answer"]

    asyncio.run(scenario())


def test_a_resumed_run_starts_it_once_with_the_weights_that_agents_need(tmp_path):
    async def scenario():
        run = Run(tmp_path)
        start = asyncio.create_task(run.supervisor.start(updates=2))
        for version in (1, 2):
            await asyncio.sleep(0.1)
            assert run.calls == ["hold"] and not (tmp_path / "started").exists()
            run.publish(version, live=False, reason="vLLM is being restarted")
        await start
        assert run.calls == ["hold", 2] and run.started() == ["v000002"] and run.supervisor.restarts == 0
        await run.supervisor.server.stop()

    asyncio.run(scenario())


def test_weights_that_were_not_exported_are_asked_for(tmp_path):
    """Nothing is started, and nothing released, with older weights than the newest."""

    async def scenario():
        async with Run(tmp_path) as run:
            wish = tmp_path / "policy" / "export_wanted.json"
            await asyncio.to_thread(run.update, 1)
            run.publish(1, path=run.path(0), path_version=0)  # the trainer exports now and then only
            await run.until(lambda: run.supervisor.serving["version"] == 1)
            os.kill(run.pid, signal.SIGKILL)
            await run.until(wish.exists)
            assert read_json(wish) == {"version": 1}
            run.publish(2, path=run.path(0), path_version=0, live=False)  # it went on before it saw the wish
            await run.until(lambda: read_json(wish) == {"version": 2})
            assert run.calls == ["hold", 0, "hold"] and run.started() == ["v000000"]
            run.publish(2, path_version=2, live=False)
            await run.until(lambda: run.calls == ["hold", 0, "hold", 2])
            assert run.started() == ["v000000", "v000002"] and not wish.exists() and run.supervisor.restarts == 1

    asyncio.run(scenario())


def test_an_export_that_never_comes(tmp_path):
    async def scenario():
        async with Run(tmp_path) as run:
            run.supervisor.server.config = ServerConfig(start_timeout_s=0.5)
            run.publish(1, path=run.path(0), path_version=0, live=False)
            with pytest.raises(EngineError, match="did not export weights 1 in 0 s: see trainer.log"):
                await run.until(lambda: False)

    asyncio.run(scenario())


def test_an_export_that_is_removed_while_the_server_starts(tmp_path):
    """The trainer keeps the newest exports only: where it went on meanwhile, the start is tried again with the newer
    one."""

    async def scenario():
        run = Run(tmp_path)
        shutil.rmtree(run.path(0))
        start = asyncio.create_task(run.supervisor.start())
        while not (tmp_path / "started").exists():
            await asyncio.sleep(0.001)
        run.publish(1)
        await start
        assert run.calls == ["hold", 1] and run.started() == ["v000000", "v000001"]
        await run.supervisor.server.stop()

    asyncio.run(scenario())


def test_a_model_that_is_not_there_is_an_error_with_its_cause(tmp_path):
    async def scenario():
        run = Run(tmp_path)
        shutil.rmtree(run.path(0))
        with pytest.raises(EngineError, match="not ready before it ended with code 1: FileNotFoundError"):
            await run.supervisor.start()
        assert run.calls == ["hold"] and not (tmp_path / "policy" / "engine_0.json").exists()

    asyncio.run(scenario())


def test_it_is_not_restarted_for_ever(tmp_path):
    async def scenario():
        async with Run(tmp_path, max_restarts=2) as run:
            for restarts in (1, 2):
                os.kill(run.pid, signal.SIGKILL)
                await run.until(lambda: len(run.calls) == 2 + 2 * restarts)
            os.kill(run.pid, signal.SIGKILL)
            with pytest.raises(
                EngineError, match="more than 2 times, at last because: it ended with code -9: ended by SIGKILL"
            ):
                await run.until(lambda: False)
            assert len(run.recoveries()) == 3

    asyncio.run(scenario())


def test_rows_on_record_are_json_with_a_time(tmp_path):
    async def scenario():
        async with Run(tmp_path) as run:
            os.kill(run.pid, signal.SIGKILL)
            await run.until(lambda: run.supervisor.restarts == 1 and len(run.calls) == 4)

    asyncio.run(scenario())
    row = json.loads((tmp_path / "policy" / "recoveries.jsonl").read_text())
    assert row.keys() == {"time", "what"} and row["time"] > 1e9


def test_weights_that_were_sent_once_more_in_vain_restart_every_server_that_they_went_to(tmp_path):
    """They go to all when one was behind: also to a server that had them, which is paused now. Once: the word stays
    there."""

    async def scenario():
        async with Run(tmp_path) as run:
            await asyncio.to_thread(run.update, 1)
            await run.until(lambda: run.supervisor.serving["version"] == 1)
            run.publish(1, live=False, tried=[run.pid], reason="the broadcast broke")
            await run.until(lambda: run.calls == ["hold", 0, "hold", 1])
            await asyncio.sleep(0.3)
            assert run.recoveries() == ["vLLM restarted: weight update 1 failed: the broadcast broke"]
            assert run.started() == ["v000000", "v000001"]

    asyncio.run(scenario())


def test_a_server_that_began_with_older_weights_and_did_not_get_the_newest_is_restarted_at_once(tmp_path):
    async def scenario():
        async with Run(tmp_path) as run:
            first = run.pid
            os.kill(first, signal.SIGKILL)
            await run.until(lambda: run.calls == ["hold", 0, "hold"])
            run.publish(1, live=False, reason="vLLM is being restarted", tried=[])
            await run.until(lambda: (run.folder / "policy" / "engine_0.json").exists() and run.pid != first)
            # the trainer sees it, and sends them
            if read_json(run.folder / "policy" / "engine_0.json")["version"] == 0:
                run.publish(2, live=False, reason="the probe", tried=[run.pid])
                await run.until(lambda: run.calls[-1] == 2)
                assert run.started() == ["v000000", "v000000", "v000002"]
                assert run.recoveries()[-1] == "vLLM restarted: weight update 2 failed: the probe"

    asyncio.run(scenario())


ROW = (5, 3, 9)


def says(run: Run, version: int, logprob: float = -1.0) -> None:
    """The trainer: what the weights compute."""
    write(run.folder, Probe(version, ROW, (logprob, logprob), 1e-4))


def test_nothing_is_released_before_the_server_has_shown_what_weights_it_has(tmp_path):
    """The trainer may still be starting; the same holds for every restart."""

    async def scenario():
        run = Run(tmp_path)
        run.publish(0, proven=True)
        start = asyncio.create_task(run.supervisor.start())
        while not (tmp_path / "started").exists():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        assert run.calls == ["hold"] and not (tmp_path / "policy" / "engine_0.json").exists()
        says(run, 0)
        await start
        assert run.calls == ["hold", 0]
        run.watch = asyncio.create_task(run.supervisor.watch())
        says(run, 1, -3.0)
        run.export(1)
        (Path(run.path(1)) / "logprob").write_text("-3.00005")
        run.publish(1, proven=True, live=False, reason="the probe")
        await run.until(lambda: run.calls == ["hold", 0, "hold", 1])
        await run.__aexit__()

    asyncio.run(scenario())


@pytest.mark.parametrize("logprob", ["-1.002", "-7", "nan", "-inf"])
def test_a_server_that_computes_other_weights_from_the_start_ends_the_run(tmp_path, logprob):
    """No second start: the same would come of it. What was started is gone."""

    async def scenario():
        run = Run(tmp_path)
        run.publish(0, proven=True)
        says(run, 0)
        (Path(run.path(0)) / "logprob").write_text(logprob)
        said = (
            r"does not compute what weights 0 do: .* off in the mean .*server.probe_bound.*just loaded them from disk"
        )
        with pytest.raises(EngineError, match=said) as raised:
            await run.supervisor.start()
        assert "\n" not in str(raised.value) and run.started() == ["v000000"] and run.calls == ["hold"]
        assert run.supervisor.server.process is None and not (tmp_path / "policy" / "engine_0.json").exists()

    asyncio.run(scenario())


def test_a_trainer_that_says_nothing_is_not_waited_for_without_end(tmp_path):
    async def scenario():
        run = Run(tmp_path, start_timeout_s=2.0)
        run.publish(0, proven=True)
        with pytest.raises(EngineError, match="in 2 s the trainer did not say what weights 0 compute: see trainer.log"):
            await run.supervisor.start()
        assert run.supervisor.server.process is None

    asyncio.run(scenario())


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
