"""Runs inside the sandbox, with aider's own Python: one message to aider's coder, through its Python interface.

    python aider_driver.py job.json        without -I and -E: they would make aider's prompts depend on the process
                                           (PYTHONHASHSEED)

Everything of aider is as it is shipped; switched off is what would ask a person, run a command, commit, or go to the
network: see `coder_of`.
A fork server (fork_server.py) calls `warm` once, and `main` in a fork for each task.
"""

import json
import os
import sys
from pathlib import Path

MODEL = "openai/policy"
FOREVER_S = 24 * 3600  # how long a request waits: the gateway ends sessions
RETRY_S = 4  # aider's longest pause between two tries of a request that failed: the gateway itself waits for the model
NO_ANSWER = 69  # exit code: the model could not be asked, which says nothing about the agent
PLATFORM = """- Platform: Linux
- Shell: SHELL=/bin/bash
- Language: English
- The user is operating inside a git repository
"""


def warm() -> None:
    """Loads what every task needs, and aider's lazy parts with it. Before any fork: no thread is left running."""
    import diskcache  # noqa: F401, E401
    import grep_ast.tsl
    import litellm.llms.openai.openai  # noqa: F401, E401
    import networkx
    import openai.resources.chat.completions
    import scipy.sparse
    from aider import coders, io, linter, models, repo, repomap  # noqa: F401
    from aider.coders import base_coder
    from aider.llm import litellm
    from pygments.lexers import guess_lexer_for_filename

    litellm._load_litellm()
    base_coder.RETRY_TIMEOUT = models.RETRY_TIMEOUT = RETRY_S
    models.MODEL_SETTINGS.append(
        models.ModelSettings(
            name=MODEL,
            weak_model_name=MODEL,
            editor_model_name=MODEL,
            use_repo_map=True,
            use_temperature=False,
            streaming=False,
            reminder="user",
            extra_params={"timeout": FOREVER_S},
        )
    )
    # known: nothing is looked up
    models.model_info_manager.local_model_metadata[MODEL] = {"litellm_provider": "openai", "mode": "chat"}
    models.Model(MODEL).token_count([{"role": "user", "content": "loads the tokenizer"}])
    grep_ast.tsl.get_parser("python")
    guess_lexer_for_filename("a.py", "a = 1\n")  # which RepoMap asks: it imports every lexer there is


def coder_of(job: dict):
    """Aider's coder, as for somebody who says yes to every question. `job`: the fields of AiderConfig, workdir, cache,
    message (None: only the cache is wanted)."""
    from aider import models, repomap
    from aider.coders import Coder
    from aider.io import InputOutput
    from aider.repo import GitRepo

    repomap.RepoMap.TAGS_CACHE_DIR = job["cache"]  # an absolute path: nothing of aider's lies in the checkout
    model, home = models.Model(MODEL), Path(os.environ["HOME"])
    model.reminder = job["reminder"]
    io = InputOutput(
        yes=True,
        pretty=False,
        fancy_input=False,
        chat_history_file=home / "chat.md",
        encoding="utf-8",
        line_endings="lf",
        root=job["workdir"],
    )
    io.offer_url = lambda *arguments, **keywords: False  # it would start a browser
    coder = Coder.create(
        main_model=model,
        edit_format=job["edit_format"],
        io=io,
        repo=GitRepo(io, [], job["workdir"], models=model.commit_message_models()),
        fnames=job["files"],
        stream=False,
        auto_commits=False,
        dirty_commits=False,
        auto_lint=False,
        auto_test=False,
        suggest_shell_commands=False,
        detect_urls=False,
        chat_language="English",
        map_tokens=job["map_tokens"],
        map_mul_no_files=job["map_multiplier"],
        map_refresh="auto",
    )
    coder.max_reflections = job["max_reflections"]
    coder.summarizer.max_tokens = 10**9  # a summary would be a call of the weak model
    # without the date and the kernel: siblings see equal prompts on every machine and day
    coder.get_platform_info = lambda: PLATFORM
    prompts = type(coder.gpt_prompts)()
    for name, text in job["prompts"].items():
        if not hasattr(prompts, name):
            raise SystemExit(f"prompts.{name}: aider's {job['edit_format']} format has no such prompt")
        setattr(prompts, name, text)
    coder.gpt_prompts = prompts
    if coder.repo_map is not None:
        coder.repo_map.repo_content_prefix = prompts.repo_content_prefix
    return coder


def main(path: str) -> None:
    job = json.loads(Path(path).read_text())
    os.chdir(job["workdir"])
    coder = coder_of(job)
    if job["message"] is None:
        coder.get_repo_map()  # which fills the cache
        return
    lost = asked(coder.main_model)
    coder.run(with_message=job["message"])
    if lost:
        why, code = lost[-1]
        print(f"the model did not answer: {why}", file=sys.stderr)
        sys.exit(code)


def asked(model) -> list[tuple[str, int]]:
    """Grows to hold why the latest request got no answer, and the exit code for it; empty once one did, or when the
    gateway had closed the session.
    Aider itself ends with success either way. What the gateway does not take once the model has spoken is the agent's
    failure."""
    from aider.llm import litellm

    send, lost, heard = model.send_completion, [], []

    def send_completion(*arguments, **keywords):
        try:
            answer = send(*arguments, **keywords)
        except litellm.ContextWindowExceededError:
            lost.clear()
            raise
        except Exception as error:
            lost[:] = [
                (
                    f"{type(error).__name__}: {error}",
                    1 if heard and isinstance(error, litellm.BadRequestError) else NO_ANSWER,
                )
            ]
            raise
        heard[:] = [True]
        lost.clear()
        return answer

    model.send_completion = send_completion
    return lost


if __name__ == "__main__":
    warm()
    main(sys.argv[1])
