"""The gateway in several processes: to a session and its agent it is the same, and a process that ends is heard of."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from gateway_helpers import USER, Upstream, ids_of
from gateway_tokenizer import END, renderer, unmakeable, unsendable
from sandbox_helpers import make_task

from coderepairrl.errors import ConfigError, GatewayError
from coderepairrl.gateway import GatewayConfig, SamplingConfig, SessionLimits, Workers, make_gateway
from coderepairrl.gateway.worker import brief, whole
from coderepairrl.rewards import Grader, RewardConfig
from coderepairrl.rollout.episode import Services, run_episode
from coderepairrl.sandboxes import SandboxConfig
from coderepairrl.scaffolds.endpoint import chat
from coderepairrl.types import Outcome

LIMITS = SessionLimits(max_turns=4, max_total_tokens=100_000)


async def post(session, http, messages=(USER,), key=None):
    async with http.post(
        session.base_url + "/chat/completions",
        json={"messages": list(messages)},
        headers={"Authorization": f"Bearer {key or session.key}"},
    ) as response:
        return response.status, await response.json()


@asynccontextmanager
async def world(path: Path | None = None, processes: int = 2, make_renderer=renderer, **config):
    upstream = Upstream()
    gateway = make_gateway(
        GatewayConfig(processes=processes, **config), [await upstream.start()], 10.0, make_renderer, path
    )
    try:
        await gateway.start()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            yield upstream, gateway, http
    finally:
        await gateway.stop()
        await upstream.stop()


def test_sessions_are_spread_and_each_is_recorded_as_in_one_process(tmp_path):
    async def main():
        async with world(tmp_path / "socket") as (upstream, gateway, http):
            assert isinstance(gateway, Workers)
            sessions = [
                gateway.open_session(LIMITS, SamplingConfig(temperature=0.7), cache_salt=f"salt {number}")
                for number in range(6)
            ]
            homes = {session.base_url for session in sessions}
            assert len(homes) == 2 and all(sum(session.base_url == home for session in sessions) == 3 for home in homes)
            for session in sessions:
                assert await session.calls_begun() == 0
                status, body = await post(session, http)
                assert status == 200 and await session.calls_begun() == 1
                status, _ = await post(session, http, [USER, body["choices"][0]["message"], USER])
                assert status == 200
            stranger = next(session for session in sessions if session.base_url != sessions[0].base_url)
            # the other process knows no more of it than anybody
            assert (await post(sessions[0], http, key=stranger.key))[0] == 401
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(sessions[0].socket_path))) as inside:
                async with inside.get(
                    "http://localhost/v1/models", headers={"Authorization": f"Bearer {sessions[0].key}"}
                ) as response:
                    assert response.status == 200
            closed = [await gateway.close_session(session.key) for session in sessions]
            assert (await post(sessions[0], http))[0] == 401
            return upstream, closed, sorted(path.name for path in tmp_path.iterdir()), gateway.counters

    upstream, closed, sockets, counters = asyncio.run(main())
    assert sockets == ["socket-0", "socket-1"] and not list(tmp_path.iterdir())
    assert [session.close_reason for session in closed] == [Outcome.SUBMITTED] * 6 and not counters["rerendered_roots"]
    for session in closed:
        first, second = session.calls
        assert (
            second.prompt_ids[: len(first.prompt_ids) + len(first.completion_ids)]
            == first.prompt_ids + first.completion_ids
            and second.parent == 0
        )
        assert [event["kind"] for event in session.events] == ["call", "call", "closed"]
    recorded = sorted((call.prompt_ids, call.completion_ids) for session in closed for call in session.calls)
    assert recorded == sorted(upstream.answered)
    assert {body["sampling_params"]["temperature"] for body in upstream.requests} == {0.7} and len(
        {body["cache_salt"] for body in upstream.requests}
    ) == 6


def test_a_limit_closes_the_session_and_the_rollout_process_hears_of_it():
    async def main():
        async with world() as (_, gateway, http):
            session = gateway.open_session(SessionLimits(max_turns=1), SamplingConfig())
            assert (await post(session, http))[0] == 200 and session.close_reason is None
            status, body = await post(session, http, [USER, USER])
            assert status == 400 and body["error"]["code"] == "context_length_exceeded"
            while session.close_reason is None:
                await asyncio.sleep(0.01)
            with pytest.raises(GatewayError, match="is open"):
                gateway.open_session(LIMITS, SamplingConfig(), key=session.key)
            return await gateway.close_session(session.key)

    session = asyncio.run(main())
    assert session.close_reason is Outcome.TURN_LIMIT and "1 calls" in session.close_detail and len(session.calls) == 1


class UntilItIsToldTheEnd:
    """A scaffold that ends in the moment in which its gateway closes its session."""

    calls_model = True

    async def run(self, task, sandbox, endpoint):
        history = [USER]
        try:
            while answer := await chat(endpoint, history):
                history += [answer.message, USER]
        finally:
            assert endpoint.closed()


@pytest.mark.parametrize("outcome", [Outcome.TURN_LIMIT, Outcome.INFRASTRUCTURE_ERROR])
def test_an_episode_ends_as_its_session_did_however_fast_its_agent_stops(outcome, tmp_path):
    async def main():
        async with world() as (upstream, gateway, http):
            if outcome is Outcome.INFRASTRUCTURE_ERROR:
                upstream.reply = lambda prompt: 400
            sandbox = SandboxConfig(scratch=str(tmp_path))
            services = Services(
                gateway,
                UntilItIsToldTheEnd(),
                sandbox,
                Grader(sandbox),
                RewardConfig(weights={"patch": 1.0}),
                SessionLimits(max_turns=2),
                http,
            )
            return await asyncio.gather(
                *(
                    run_episode(
                        services,
                        make_task(),
                        trajectory_id="x",
                        group_id="x",
                        split="train",
                        attempt=0,
                        sampling=SamplingConfig(),
                        cache_salt="s",
                    )
                    for _ in range(40)
                )
            )

    done = asyncio.run(asyncio.wait_for(main(), 120))
    assert [trajectory.outcome for trajectory in done] == [outcome] * 40


def test_prompts_go_through_the_pipe_once_and_come_out_whole():
    async def main():
        async with world() as (_, gateway, http):
            session = gateway.open_session(SessionLimits(max_turns=20), SamplingConfig())
            history = [USER]
            for _ in range(4):
                _, body = await post(session, http, history)
                history += [body["choices"][0]["message"], USER]
            for other in (
                [USER],
                [{"role": "user", "content": "a root"}],
                [*history[:2], {"role": "user", "content": "a fork"}],
            ):
                await post(session, http, other)
            return await gateway.close_session(session.key)

    calls = asyncio.run(main()).calls
    assert [(call.parent, call.parent_part) for call in calls] == [
        (None, None),
        (0, "completion"),
        (1, "completion"),
        (2, "completion"),
        (0, "prompt"),
        (None, None),
        (4, "completion"),
    ]
    sent = brief(calls)
    assert (
        whole(sent) == list(calls)
        and sum(len(call.prompt_ids) for call in sent) < sum(len(call.prompt_ids) for call in calls) / 2
    )


def test_the_supervisors_word_reaches_every_process():
    async def main():
        async with world() as (upstream, gateway, http):
            sessions = [gateway.open_session(LIMITS, SamplingConfig()) for _ in range(2)]
            gateway.clients[0].pause()
            waiting = [asyncio.create_task(post(session, http)) for session in sessions]
            await asyncio.sleep(0.3)
            assert not upstream.requests
            moved = Upstream()
            gateway.clients[0].resume(7, await moved.start())
            assert [status for status, _ in await asyncio.gather(*waiting)] == [200, 200]
            assert not upstream.requests and len(moved.requests) == 2
            await moved.stop()
            return [await gateway.close_session(session.key) for session in sessions]

    for session in asyncio.run(main()):
        assert set(session.calls[0].policy_versions) == {7}


def test_hundreds_at_once_with_long_records_wait_for_nobody():
    """More than a pipe holds in both directions."""

    async def main():
        async with world() as (upstream, gateway, http):
            upstream.reply = lambda prompt: (ids_of("ok " * 300 + END), "stop")
            sessions = [gateway.open_session(LIMITS, SamplingConfig()) for _ in range(300)]
            long = {"role": "user", "content": "a word of many " * 1000}
            assert {
                status for status, _ in await asyncio.gather(*(post(session, http, [long]) for session in sessions))
            } == {200}
            closing = [asyncio.create_task(gateway.close_session(session.key)) for session in sessions]
            await asyncio.sleep(0)  # all are asked for; nothing of them was read
            more = [gateway.open_session(LIMITS, SamplingConfig()) for _ in range(600)]
            time.sleep(0.5)  # the processes' answers fill the pipes
            more += [gateway.open_session(LIMITS, SamplingConfig()) for _ in range(600)]
            closed = await asyncio.gather(*closing)
            assert (await post(more[-1], http))[0] == 200
            return closed, [await gateway.close_session(session.key) for session in more]

    closed, more = asyncio.run(asyncio.wait_for(main(), 120))
    assert all(len(session.calls) == 1 and len(session.calls[0].completion_ids) > 300 for session in closed)
    assert len({session.key for session in [*closed, *more]}) == 1500


def test_a_killed_process_is_an_error_for_who_watches_and_for_who_waits(tmp_path):
    async def main():
        async with world() as (upstream, gateway, http):
            session = gateway.open_session(LIMITS, SamplingConfig())
            watch = asyncio.create_task(gateway.watch())
            upstream.gate.clear()
            request = asyncio.create_task(post(session, http))
            while not upstream.requests:
                await asyncio.sleep(0.01)
            os.kill(gateway._homes[session.key]._process.pid, signal.SIGKILL)
            with pytest.raises(
                GatewayError,
                match=r"gateway process \d ended \(exit code -9\) and what its 1 sessions recorded is lost",
            ):
                await watch
            with pytest.raises(GatewayError, match="exit code -9"):
                await gateway.close_session(session.key)
            with pytest.raises(GatewayError, match="exit code -9"):
                gateway.clients[0].pause()
            with pytest.raises(aiohttp.ClientError):
                await request

    asyncio.run(asyncio.wait_for(main(), 60))


def test_what_the_user_must_mend_is_said_as_in_one_process():
    async def main(make_renderer, cause):
        gateway = make_gateway(GatewayConfig(processes=2), ["http://127.0.0.1:1"], 1.0, make_renderer)
        with pytest.raises(cause[0], match=cause[1]):
            await gateway.start()
        await gateway.stop()  # as the rollout process does once more
        assert all(worker._process is None for worker in gateway._workers)

    asyncio.run(main(unmakeable, (ConfigError, "no such family: name another")))
    asyncio.run(main(lambda: renderer(), (Exception, "pickle")))


def test_a_close_that_is_given_up_harms_nobody():
    async def main():
        async with world() as (upstream, gateway, http):
            sessions = [gateway.open_session(LIMITS, SamplingConfig()) for _ in range(4)]
            closing = asyncio.create_task(gateway.close_session(sessions[0].key))
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])
            for session in sessions[1:]:
                assert (await post(session, http))[0] == 200
            return [await gateway.close_session(session.key) for session in sessions[1:]]

    assert [len(session.calls) for session in asyncio.run(main())] == [1, 1, 1]


def test_a_record_that_cannot_be_sent_ends_its_process_and_is_not_waited_for():
    async def main():
        async with world(make_renderer=unsendable) as (_, gateway, http):
            session = gateway.open_session(LIMITS, SamplingConfig())
            with pytest.raises(GatewayError, match="exit code 1.*recorded is lost"):
                await gateway.close_session(session.key)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_who_waits_for_a_record_while_the_gateway_stops_hears_of_it():
    async def main():
        async with world() as (upstream, gateway, http):
            session = gateway.open_session(LIMITS, SamplingConfig())
            upstream.gate.clear()
            request = asyncio.create_task(post(session, http))
            while not upstream.requests:
                await asyncio.sleep(0.01)
            closing = asyncio.create_task(gateway.close_session(session.key))
            await asyncio.sleep(0)
            await gateway.stop()
            for refused in (lambda: closing, lambda: gateway.watch()):
                with pytest.raises(GatewayError, match="has stopped"):
                    await refused()
            with pytest.raises(GatewayError, match="has stopped"):
                gateway.open_session(LIMITS, SamplingConfig())
            await asyncio.gather(request, return_exceptions=True)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_port_that_is_taken_is_said_and_nothing_stays():
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            gateway = make_gateway(
                GatewayConfig(processes=2, port=taken.getsockname()[1] - 1), ["http://127.0.0.1:1"], 1.0, renderer
            )
            with pytest.raises(GatewayError, match="is in use"):
                await gateway.start()
            assert all(worker._process is None for worker in gateway._workers)

    asyncio.run(main())


PROGRAM = """
import asyncio, os, sys
from gateway_tokenizer import renderer
from coderepairrl.gateway import GatewayConfig, make_gateway

async def main():
    gateway = make_gateway(GatewayConfig(processes=2), ["http://127.0.0.1:1"], 1.0, renderer)
    await gateway.start()
    print(*(worker._process.pid for worker in gateway._workers), flush=True)
    if sys.argv[1] == "forgets":
        return
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["killed", "forgets"])
def test_the_processes_end_with_the_program_however_it_ends(end, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    }
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), end], stdout=subprocess.PIPE, text=True, env=environment
    ) as program:
        pids = [int(word) for word in program.stdout.readline().split()]
        assert len(pids) == 2
        if end == "killed":
            program.kill()
        program.wait(60)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "they stay"
        time.sleep(0.1)


def test_one_process_is_the_rollout_process_itself():
    async def main():
        async with world(processes=1) as (_, gateway, http):
            session = gateway.open_session(LIMITS, SamplingConfig())
            assert not isinstance(gateway, Workers) and (await post(session, http))[0] == 200
            await gateway.watch()
            return await gateway.close_session(session.key)

    assert len(asyncio.run(main()).calls) == 1
