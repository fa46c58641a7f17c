"""Whatever happens to the server: it comes back with the newest weights, nothing is released before, and the reason is
on record."""

import asyncio
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from supervisor_helpers import KILLED, Run

from coderepairrl.errors import EngineError
from coderepairrl.files import read_json
from coderepairrl.inference.server import shared_memory_of
from coderepairrl.inference.server_config import ServerConfig


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
