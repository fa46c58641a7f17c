"""Acts as the turns of each scaffold's model: its edit format, its tool, its code block. One function a scaffold.

turns = speak(AiderConfig(), acts)       in the order in which the agent asks for them; with the last, it is done
"""

import difflib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coderepairrl.config import Config
from coderepairrl.demonstrations.acts import Act, Edit, Look, RunTests, Slip, Submit, lines_of
from coderepairrl.errors import ConfigError
from coderepairrl.lines import split_lines
from coderepairrl.scaffolds.aider import AiderConfig
from coderepairrl.scaffolds.codex import CodexConfig
from coderepairrl.scaffolds.mini_swe_agent import MiniSweAgentConfig
from coderepairrl.scaffolds.single_pass import DIVIDER, REPLACE, SEARCH, SinglePassConfig
from coderepairrl.scaffolds.terminal import TerminalConfig
from coderepairrl.scaffolds.terminal_text import TerminalTextConfig

SED_SPECIAL = re.compile(r"[\\/.*\[\]^$]")  # of a pattern; of a replacement: \, / and &


@dataclass(frozen=True)
class AssistantMessage:
    """`message` is an assistant's, in OpenAI's form. Not `trained`: it is shown, never learnt."""

    message: dict
    trained: bool = True


def _say(text: str, trained: bool = True) -> AssistantMessage:
    return AssistantMessage({"role": "assistant", "content": text}, trained)


def _call(name: str, trained: bool = True, **arguments: str) -> AssistantMessage:
    call = {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return AssistantMessage({"role": "assistant", "content": "", "tool_calls": [call]}, trained)


def terminal(config: TerminalConfig, acts: Sequence[Act]) -> list[AssistantMessage]:
    out = []
    for act in acts:
        match act:
            case Look(path):
                out.append(_call("shell", command=f"cat {path}"))
            case Edit(path, None, _, new):
                out.append(_call("shell", command=_write(path, new)))
            case Edit(path, _, old, new):
                out.append(_call("edit", path=path, old=old, new=new))
            case Slip(Edit(path, _, _, new)):
                out.append(_call("edit", trained=False, path=path, old=new, new=new))
            case RunTests(command):
                out.append(_call("shell", command=command))
            case Submit():
                out.append(_call("submit"))
    return out


def terminal_text(config: TerminalTextConfig, acts: Sequence[Act]) -> list[AssistantMessage]:
    out = []
    for act in acts:
        match act:
            case Look(path):
                out.append(_block("bash", f"cat {path}"))
            case Edit():
                out.append(_block("edit", _search_replace(act)))
            case Slip(Edit(path, _, _, new) as edit):
                out.append(_block("edit", _search_replace(Edit(path, edit.after, new, new)), trained=False))
            case RunTests(command):
                out.append(_block("bash", command))
            case Submit():
                out.append(_block("bash", "submit"))
    return out


def _block(kind: str, text: str, trained: bool = True) -> AssistantMessage:
    """Between fences that none of the text can be mistaken for."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`{3,}", text)), default=0))
    return _say(f"{fence}{kind}\n{text.rstrip(chr(10))}\n{fence}", trained)


def _search_replace(edit: Edit) -> str:
    old, new = lines_of(edit)
    return f"{edit.path}\n{SEARCH}\n{old}{DIVIDER}\n{new}{REPLACE}\n"


def commands(acts: Sequence[Act]) -> list[tuple[str, bool]]:
    """(shell command, learnt) of each act but the submission, for agents whose only tool is a shell."""
    out = []
    for act in acts:
        match act:
            case Look(path):
                out.append((f"cat {path}", True))
            case Edit():
                out.append((_command(act), True))
            case Slip(Edit(path, _, _, new) as edit):
                out.append((_command(Edit(path, edit.after, new, new)), False))
            case RunTests(command):
                out.append((command, True))
    return out


def _command(edit: Edit) -> str:
    """sed for text within a line, else a patch. Both say when nothing was changed: sed's q leaves 1 unless the line was
    there."""
    if edit.before is None:
        return _write(edit.path, edit.new)
    if "\n" not in edit.old + edit.new and "'" not in edit.old + edit.new:
        old, new = SED_SPECIAL.sub(r"\\\g<0>", edit.old), re.sub(r"[\\/&]", r"\\\g<0>", edit.new)
        return f"sed -i 's/{old}/{new}/' {edit.path}"
    lines = difflib.unified_diff(*map(split_lines, (edit.before, edit.after)), f"a/{edit.path}", f"b/{edit.path}")
    diff = "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
    return f"git apply <<'EOF'\n{diff}EOF"


def _write(path: str, text: str) -> str:
    return f"mkdir -p $(dirname {path}) && cat > {path} <<'EOF'\n{text}{'' if text.endswith(chr(10)) else chr(10)}EOF"


def mini_swe_agent(config: MiniSweAgentConfig, acts: Sequence[Act]) -> list[AssistantMessage]:
    lines = [*commands(acts), ("echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT", True)]
    if config.mode == "text":
        return [_say(f"```mswea_bash_command\n{line}\n```", trained) for line, trained in lines]
    return [_call("bash", trained, command=line) for line, trained in lines]


def codex(config: CodexConfig, acts: Sequence[Act]) -> list[AssistantMessage]:
    return [*(_call("exec_command", trained, cmd=line) for line, trained in commands(acts)), _say("It is repaired.")]


def first_answer(acts: Sequence[Act]) -> tuple[list[Edit], list[Edit]]:
    """(slips, edits) until the first test or the submission: for scaffolds that run nothing."""
    slips, edits = [], []
    for act in acts:
        match act:
            case Slip(edit):
                slips.append(edit)
            case Edit():
                edits.append(act)
            case RunTests() | Submit():
                break
    return slips, edits


def aider(config: AiderConfig, acts: Sequence[Act]) -> list[AssistantMessage]:
    """First the files that have to be in the chat, then the edits; a slip is answered by aider with what is wrong."""
    slips, edits = first_answer(acts)
    asked = dict.fromkeys(edit.path for edit in edits if edit.before is not None and edit.path not in config.files)
    answer = {"diff": _blocks, "whole": _listings, "udiff": _udiffs}[config.edit_format]
    # which quotes nothing
    taken_for_edited = [
        Edit(edit.path, edit.after, edit.new, edit.old) for edit in slips if config.edit_format != "whole"
    ]
    return [
        *([_say("\n".join(asked))] if asked else []),
        *(_say(answer([edit]), False) for edit in taken_for_edited),
        _say(answer(edits)),
    ]


def single_pass(config: SinglePassConfig, acts: Sequence[Act]) -> list[AssistantMessage]:
    return [_say(_blocks(first_answer(acts)[1]))]


def _blocks(edits: Sequence[Edit]) -> str:
    return "\n".join(
        f"{edit.path}\n```\n{SEARCH}\n{old}{DIVIDER}\n{new}{REPLACE}\n```\n"
        for edit in edits
        for old, new in [lines_of(edit)]
    )


def _listings(edits: Sequence[Edit]) -> str:
    return "\n".join(
        f"{path}\n```\n{text}{'' if text.endswith(chr(10)) else chr(10)}```\n"
        for path, text in {edit.path: edit.after for edit in edits}.items()
    )


def _udiffs(edits: Sequence[Edit]) -> str:
    out = []
    for edit in edits:
        old, new = (
            "".join(mark + line for line in split_lines(text)) for mark, text in zip("-+", lines_of(edit), strict=True)
        )
        was = "/dev/null" if edit.before is None else edit.path
        out.append(f"```diff\n--- {was}\n+++ {edit.path}\n@@ ... @@\n{old}{new}```\n")
    return "\n".join(out)


SPEAKERS: dict[type[Config], Callable[..., list[AssistantMessage]]] = {
    TerminalConfig: terminal,
    TerminalTextConfig: terminal_text,
    AiderConfig: aider,
    MiniSweAgentConfig: mini_swe_agent,
    CodexConfig: codex,
    SinglePassConfig: single_pass,
}


def speak(config: Config, acts: Sequence[Act]) -> list[AssistantMessage]:
    if type(config) not in SPEAKERS:
        raise ConfigError(
            f"scaffold {config.name}: no demonstrator speaks its language: write a function for it in tasks/dialects.py"
        )
    return SPEAKERS[type(config)](config, acts)
