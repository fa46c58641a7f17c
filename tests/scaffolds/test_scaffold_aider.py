"""aider as it is shipped, in real sandboxes, through the real gateway: every trap of it that is known. The model's
words are scripted."""

import asyncio
import dataclasses
import json
from pathlib import Path

import aiohttp
import pytest
from gateway_helpers import Upstream, tokenizer
from scaffold_helpers import LIMITS, episodes, running

from coderepairrl.demonstrations.expert import candidate_edits
from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.errors import GatewayError, SandboxError
from coderepairrl.gateway import Gateway, GatewayConfig, Renderer
from coderepairrl.sandboxes import SandboxConfig, start_sandbox
from coderepairrl.scaffolds import Endpoint, ready
from coderepairrl.scaffolds.aider import Aider, AiderConfig, ForkServer
from coderepairrl.scaffolds.repo_map import RepoMapCache
from coderepairrl.tasks.functions import puzzles
from coderepairrl.training import batch
from coderepairrl.types import Outcome

PUZZLE = next(puzzles("train", "aider"))
OLD, NEW = candidate_edits(PUZZLE)[0][0]
LINE = next(line for line in PUZZLE.broken.split("\n") if OLD in line)
FIXED = PUZZLE.broken.replace(OLD, NEW)


def block(path: str, old: str, new: str) -> str:
    return f"{path}\n```python\n<<<<<<< SEARCH\n{old}=======\n{new}>>>>>>> REPLACE\n```\n"


DIFF = block("lib.py", LINE + "\n", LINE.replace(OLD, NEW) + "\n")
ESCAPES = (
    "../outside.py",
    "/outside.py",
    "/usr/outside.py",
    "/etc/outside.py",
    "../../tmp/../repo/../outside2.py",
    "/agent/outside.py",
    ".git/hooks/pre-commit",
)
WIDE = {
    f"pkg/m{number}.py": "".join(
        f"def f{number}_{i}(x):\n    return f{(number + i) % 9}_{i}(x) + g{i}(x)\n\n\n" for i in range(6)
    )
    for number in range(9)
}


class Several(Aider):
    """One fork server for episodes of different configurations: Task.metadata holds them. Afterwards `after` runs in
    the sandbox."""

    seen: dict[str, str] = {}

    def command(self, task, place):
        self.config = AiderConfig(**json.loads(task.metadata.get("aider", "{}")))
        return super().command(task, place)

    async def run(self, task, sandbox, endpoint):
        try:
            await super().run(task, sandbox, endpoint)
        finally:
            self.seen[task.task_id] = (
                await sandbox.run(
                    "git log --oneline | wc -l; git status --short --ignored; ls -A /repo; echo home; ls -A /agent"
                )
            ).output


def job(name: str, texts: list, limits=LIMITS, statement: str = PUZZLE.task.problem_statement, checkout=None, **config):
    task = dataclasses.replace(
        PUZZLE.task,
        task_id=name,
        problem_statement=statement,
        metadata={"aider": json.dumps(config)},
        files=PUZZLE.task.files | (checkout or {}),
    )
    return task, texts, limits


INCHAT = {"files": ["lib.py"]}
COMMAND = "/run touch /repo/commanded"
JOBS = [
    job("diff", ["It is in lib.py.", DIFF]),
    job("sibling", ["It is in lib.py.", DIFF]),
    job("whole", [f"lib.py\n```\n{FIXED}```\n"], edit_format="whole", **INCHAT),
    job(
        "udiff",
        [f"```diff\n--- lib.py\n+++ lib.py\n@@ ... @@\n-{LINE}\n+{LINE.replace(OLD, NEW)}\n```\n"],
        edit_format="udiff",
        **INCHAT,
    ),
    job("reflect", [block("lib.py", "    nothing like it\n", "    x\n"), DIFF], **INCHAT),
    job("mistakes", [block("lib.py", "    nothing like it\n", "    x\n")] * 5, max_reflections=2, **INCHAT),
    job("slash", [DIFF], statement=COMMAND + "\nfails", **INCHAT),
    job("bang", [DIFF], statement="!touch /repo/commanded", **INCHAT),
    job("url", [DIFF], statement="see http://127.0.0.1:61001/v1/models and https://example.com/issue", **INCHAT),
    job("shell", [DIFF + "\n```bash\ntouch /repo/shellran\n```\n"], **INCHAT),
    job("cut", [(DIFF, "length")], **INCHAT),
    job("closed", ["It is in lib.py.", DIFF], LIMITS.model_copy(update={"max_turns": 1})),
    job("long", ["It is in lib.py.", DIFF], LIMITS.model_copy(update={"max_total_tokens": 300})),
    job(
        "outside",
        ["\n".join(block(path, "", "x = 1\n") for path in ESCAPES) + block("new/file.py", "", "y = 2\n")],
        max_reflections=0,
        **INCHAT,
    ),
    job("idle", ["I don't know."]),
    job("broken", []),
    *(job(f"wide{number}", ["No idea."], checkout=WIDE) for number in range(2)),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Name -> trajectory, of all jobs, one after the other through one fork server."""
    done = asyncio.run(episodes(Several(AiderConfig()), JOBS, tmp_path_factory.mktemp("aider")))
    return {task.task_id: trajectory for (task, *_), trajectory in zip(JOBS, done, strict=True)}


def prompt(trajectory, number: int) -> str:
    return tokenizer().decode(trajectory.calls[number].prompt_ids)


def added(trajectory) -> list[str]:
    return [line[1:] for line in trajectory.diff.splitlines() if line.startswith("+") and not line.startswith("+++")]


@pytest.mark.parametrize("name", ["diff", "whole", "udiff", "reflect", "slash", "bang", "url", "shell"])
def test_the_bug_is_repaired_in_every_edit_format(outcomes, name):
    trajectory = outcomes[name]
    assert trajectory.outcome == Outcome.SUBMITTED and trajectory.verdict.resolved, trajectory.outcome_detail
    assert added(trajectory) == [LINE.replace(OLD, NEW)]


def test_the_model_asks_for_a_file_that_repomap_shows_and_then_history_is_rewritten(outcomes):
    trajectory = outcomes["diff"]
    first, second = trajectory.calls
    assert "lib.py:\n│def " in prompt(trajectory, 0) and LINE not in prompt(trajectory, 0)
    assert PUZZLE.broken in prompt(trajectory, 1) and "I added these files to the chat: lib.py" in prompt(trajectory, 1)
    assert first.parent is None and second.parent is None and second.rerendered  # a tree of two roots
    samples = batch.samples(trajectory, [1.0] * 2)
    assert len(samples) == 2 and sum(map(lambda sample: sum(sample.loss_mask), samples)) == len(
        first.completion_ids
    ) + len(second.completion_ids)


def test_an_edit_that_does_not_apply_is_shown_its_error_and_so_often_as_is_configured(outcomes):
    assert "# 1 SEARCH/REPLACE block failed to match!" in prompt(outcomes["reflect"], 1)
    mistakes = outcomes["mistakes"]
    assert len(mistakes.calls) == 3 and mistakes.outcome == Outcome.SUBMITTED and not mistakes.diff


def test_siblings_and_a_plain_process_see_equal_prompts(outcomes, tmp_path):
    """RepoMap goes over sets of words: without a fixed hash seed its order differs between processes. No date, kernel
    or host is in them."""
    for one, other in (("diff", "sibling"), ("wide0", "wide1")):
        assert [call.prompt_ids for call in outcomes[one].calls] == [call.prompt_ids for call in outcomes[other].calls]
    (plain,) = asyncio.run(episodes(Aider(AiderConfig(fork_server=False)), JOBS[-1:], tmp_path))
    assert plain.calls[0].prompt_ids == outcomes["wide0"].calls[0].prompt_ids
    assert "│def f0_" in prompt(plain, 0) and "Current date" not in prompt(plain, 0)


@pytest.mark.parametrize("name, text", [("slash", COMMAND), ("bang", "!touch /repo/commanded")])
def test_a_problem_statement_that_looks_like_a_command_is_text(outcomes, name, text):
    assert f"Resolve this issue:\n\n{text}" in prompt(outcomes[name], 0) and len(outcomes[name].calls) == 1
    assert "commanded" not in outcomes[name].diff + Several.seen[name]


def test_a_shell_command_in_an_answer_is_not_run(outcomes):
    assert "shellran" not in outcomes["shell"].diff + Several.seen["shell"]


def test_the_weak_model_is_never_asked_and_nothing_is_committed(outcomes):
    """Commit messages and summaries would be calls of their own; a commit would hide the edit from who compares with
    HEAD."""
    for name, calls in (("diff", 2), ("whole", 1), ("udiff", 1), ("reflect", 2), ("idle", 1), ("url", 1)):
        assert len(outcomes[name].calls) == calls
        assert Several.seen[name].splitlines()[0] == "1"
    assert Several.seen["diff"].splitlines()[1] == " M lib.py"


def test_nothing_of_aiders_lies_in_the_checkout(outcomes):
    """Its chat, its caches: they are in its home."""
    for name, seen in Several.seen.items():
        checkout, home = seen.split("home\n")
        assert ".aider" not in checkout and "chat.md" in home and "tags" in home, name


def test_it_sends_no_sampling_parameters(outcomes):
    for trajectory in outcomes.values():
        assert "ignored_params" not in trajectory.stats and "forced_tool_choice" not in trajectory.stats


def test_an_answer_that_was_cut_off_is_not_applied(outcomes):
    trajectory = outcomes["cut"]
    assert trajectory.calls[0].finish_reason == "length" and len(trajectory.calls) == 1
    assert trajectory.outcome == Outcome.SUBMITTED and not trajectory.diff


@pytest.mark.parametrize("name, outcome, calls", [("closed", Outcome.TURN_LIMIT, 1), ("long", Outcome.TOKEN_LIMIT, 0)])
def test_it_stops_at_once_when_its_session_is_closed(outcomes, name, outcome, calls):
    trajectory = outcomes[name]
    assert (
        trajectory.outcome == outcome
        and len(trajectory.calls) == calls
        and not trajectory.diff
        and trajectory.seconds < 30
    )


def test_paths_outside_of_the_checkout_are_not_written(outcomes):
    trajectory = outcomes["outside"]
    assert trajectory.outcome == Outcome.SUBMITTED
    assert (
        added(trajectory) in (["y = 2"], [])
        and "outside" not in trajectory.diff + Several.seen["outside"].split("home\n")[0]
    )
    for path in ("/outside.py", "/usr/outside.py", "/etc/outside.py", "/outside2.py"):
        assert not Path(path).exists()


def test_a_server_that_breaks_is_no_failure_of_the_agent(outcomes):
    assert outcomes["broken"].outcome == Outcome.INFRASTRUCTURE_ERROR and outcomes["broken"].verdict is None


def test_a_gateway_that_does_not_know_it_is_no_failure_of_the_agent_though_aider_ends_with_success(tmp_path):
    """And another fork server is started where the first was killed."""

    async def main():
        scaffold, found = Several(AiderConfig()), []
        async with ready(scaffold, EnvironmentsConfig()) as socket, aiohttp.ClientSession() as http:
            gateway = Gateway(GatewayConfig(), [], Renderer(tokenizer(), {}), socket)
            await gateway.start()
            for kill in (False, True):
                if kill:
                    scaffold.server.process.kill()
                    await scaffold.server.process.wait()
                async with start_sandbox(SandboxConfig(scratch=str(tmp_path)), PUZZLE.task) as sandbox:
                    with pytest.raises(GatewayError) as caught:
                        await scaffold.run(
                            PUZZLE.task, sandbox, Endpoint(gateway.base_url, "a key of nobody", http, socket)
                        )
                    found.append(str(caught.value))
            await gateway.stop()
        return found

    for cause in asyncio.run(main()):
        assert "no answer from the gateway" in cause and "no open session has this API key" in cause


def test_a_fork_server_for_which_the_machine_has_no_room_is_a_sandboxes_error(monkeypatch):
    """An OSError would end the whole run. The next episode tries again, and nothing is left."""

    async def no_process(*arguments, **keywords):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    async def main():
        server = ForkServer("python")
        server.process = await asyncio.create_subprocess_exec("true")
        await server.process.wait()
        monkeypatch.setattr(asyncio, "create_subprocess_exec", no_process)
        for method in (server.start, server.keep, server.keep):
            with pytest.raises(SandboxError, match="could not be started"):
                await method()
        await server.stop()
        return server.socket.parent

    assert not asyncio.run(main()).exists()


def test_the_kind_that_isolates_nothing_runs_a_plain_process(tmp_path):
    (trajectory,) = asyncio.run(
        episodes(Aider(AiderConfig(files=("lib.py",))), [(PUZZLE.task, [DIFF])], tmp_path, kind="local")
    )
    assert trajectory.verdict.resolved and added(trajectory) == [LINE.replace(OLD, NEW)]


def test_prompts_can_be_others(tmp_path):
    config = AiderConfig(
        files=("lib.py",),
        map_tokens=0,
        prompts={
            "main_system": "Repair the code.",
            "system_reminder": "",
            "example_messages": [],
            "files_content_prefix": "",
            "files_content_assistant_reply": "Ok.",
        },
    )
    (trajectory,) = asyncio.run(episodes(Aider(config), [(PUZZLE.task, [DIFF])], tmp_path))
    assert trajectory.verdict.resolved
    assert prompt(trajectory, 0) == (
        f"<|im_start|>system\nRepair the code.<|im_end|>\n<|im_start|>user\n\nlib.py\n```\n{PUZZLE.broken}```\n"
        "<|im_end|>\n<|im_start|>assistant\n"
        f"Ok.<|im_end|>\n<|im_start|>user\nResolve this issue:\n\n{PUZZLE.task.problem_statement}\n\n<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    (wrong,) = asyncio.run(
        episodes(Aider(AiderConfig(prompts={"main_sistem": "x"})), [(PUZZLE.task, [DIFF])], tmp_path)
    )
    assert wrong.outcome == Outcome.AGENT_ERROR and "prompts.main_sistem" in wrong.outcome_detail


class Counting(Aider):
    """Knows how often a checkout was read, and what of the cache was new after the agent."""

    read = 0

    async def _read_all(self, sandbox, command):
        self.read += 1
        await super()._read_all(sandbox, command)

    async def run(self, task, sandbox, endpoint):
        await super().run(task, sandbox, endpoint)
        said = await sandbox.run(
            'cd /agent/tags && python3 -c "import sqlite3; print(sorted(k for k, in '
            "sqlite3.connect('cache.db').execute('select key from Cache')))\""
        )
        self.cached = [*getattr(self, "cached", []), said.output]


def test_siblings_read_a_large_checkout_once_and_see_equal_prompts(tmp_path):
    base = tmp_path / "base"
    for name, text in (WIDE | PUZZLE.task.files).items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(text)
    task = dataclasses.replace(
        PUZZLE.task, files={}, environment=dataclasses.replace(PUZZLE.task.environment, base=str(base))
    )
    scaffold = Counting(AiderConfig())

    async def siblings():
        async with running(scaffold, tmp_path / "scratch", Upstream()) as episode:
            return await asyncio.gather(*(episode(task, ["No idea."] * 3) for _ in range(3)))

    done = asyncio.run(siblings())
    assert (
        scaffold.read == 1
        and all("/repo/pkg/m8.py" in cached for cached in scaffold.cached)
        and len(scaffold.cached) == 3
    )
    assert len({trajectory.calls[0].prompt_ids for trajectory in done}) == 1 and "pkg/m8.py" in prompt(done[0], 0)
    alone = asyncio.run(
        episodes(
            Aider(AiderConfig()),
            [(dataclasses.replace(PUZZLE.task, files=WIDE | PUZZLE.task.files), ["No idea."], LIMITS)],
            tmp_path / "other",
        )
    )
    assert alone[0].calls[0].prompt_ids == done[0].calls[0].prompt_ids  # as without a cache
    assert not scaffold.repo_map._folder.name or not Path(scaffold.repo_map._folder.name).exists()


def test_of_many_tasks_the_last_caches_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("coderepairrl.scaffolds.repo_map.KEPT", 2)

    async def main():
        tags, read = RepoMapCache(), []

        async def give(number: int, home: str):
            task = dataclasses.replace(PUZZLE.task, task_id=str(number))

            async def read_it():
                read.append(number)
                (tmp_path / home / "tags").mkdir(parents=True)
                (tmp_path / home / "tags" / "cache.db").write_text(str(number))

            (tmp_path / home).mkdir(exist_ok=True)
            await tags.give(task, tmp_path / home, read_it)
            return (tmp_path / home / "tags" / "cache.db").read_text()

        said = [await give(number, f"home{i}") for i, number in enumerate((1, 1, 2, 3, 1, 3))]
        kept = len(list(Path(tags._folder.name).iterdir()))
        tags.close()
        return said, read, kept

    assert asyncio.run(main()) == (["1", "1", "2", "3", "1", "3"], [1, 2, 3, 1], 2)
