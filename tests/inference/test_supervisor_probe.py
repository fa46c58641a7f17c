"""A server is only used once it has shown what weights it has."""

import asyncio
from pathlib import Path

import pytest
from supervisor_helpers import Run

from coderepairrl.errors import EngineError
from coderepairrl.weights.probe import Probe, write

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
