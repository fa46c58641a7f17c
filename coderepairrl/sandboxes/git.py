"""Git outside the sandbox: how it is run, and the one commit that a checkout starts from.

No hook runs, no configuration but ours counts, and info/attributes (the file of highest precedence) unsets every
attribute that could
convert, filter or hide a file.
"""

import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from coderepairrl.errors import CodeRepairError, SandboxError
from coderepairrl.processes import cause
from coderepairrl.sandboxes.overlay import Worktree
from coderepairrl.sandboxes.pipes import look
from coderepairrl.sandboxes.running import capture, in_thread

EPOCH_S = 1577836800  # 2020-01-01: date of the one commit and of every file of a template
ARTEFACTS = (
    "__pycache__/",
    "*.pyc",
    "*.pyo",
    ".pytest_cache/",
    "*.egg-info/",
    ".eggs/",
    ".coverage",
    ".mypy_cache/",
    ".ruff_cache/",
)
NEUTRAL = "* !text !crlf !eol !filter !ident !working-tree-encoding !diff !merge !whitespace !export-subst\n"
GONE = b"0 " + b"0" * 40 + b"\t"  # before a name, to update-index --index-info
_EMPTY_BLOB = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
# where an error's words stand, not a file's name: at the end of a line, or after git's own "fatal"
_MACHINE = re.compile(
    ": (?:No space left on device|Disk quota exceeded|Read-only file system|Cannot allocate memory|Input/output error"
    "|Too many open files(?: in system)?)(?:,.*)?$"
    # of what stands in the way the disk knows nothing
    "|^(?:error|fatal): unable to write(?!.*(?:Directory not empty|Is a directory|Not a directory|File exists|File "
    "name too long))",
    re.MULTILINE,
)
_CONFIG = (
    "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n"
    "\tcheckStat = minimal\n\ttrustctime = false\n"
)
_NAME = {"NAME": "base", "EMAIL": "base@localhost", "DATE": f"{EPOCH_S} +0000"}
VARIABLES = {
    "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "TZ": "UTC",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in _NAME.items()},
}


async def git(
    *arguments: str,
    git_dir: Path,
    checkout: Path | Worktree,
    stdin: bytes = b"",
    under: Sequence[str] = (),
    **variables: str,
) -> tuple[int, bytes, str]:
    """(exit code, stdout, stderr). Runs no hook, reads no configuration but git_dir's own. `under`: a command that
    becomes git."""
    place, enter = (checkout.path, checkout.enter) if isinstance(checkout, Worktree) else (checkout, ())
    environment = VARIABLES | {"GIT_DIR": str(git_dir), "GIT_WORK_TREE": str(place)} | variables
    argv = [*enter, *under, "git", "-C", str(place), *arguments]
    code, out, err = await capture(argv, environment=environment, cwd="/", stdin=stdin)
    return code, out, err.decode(errors="replace").strip("\n")  # a name may end in a space


async def must(*arguments: str, **keywords) -> bytes:
    """Like `git`, for commands that fail only by the machine (SandboxError) or by what they read (GitError)."""
    return (await answered(*arguments, **keywords))[0]


async def answered(*arguments: str, **keywords) -> tuple[bytes, str]:
    """Like `must`: (stdout, stderr)."""
    code, out, err = await git(*arguments, **keywords)
    if code:
        refuse_machine(f"git {arguments[0]}", err)
        raise GitError(f"git {arguments[0]} failed ({cause.of_text(err) or f'exit {code}'})")
    return out, err


class GitError(CodeRepairError):
    """Git refuses what it is given; the caller knows whose that is."""


def refuse_machine(what: str, err: str) -> None:
    """Raises SandboxError where git says that the machine failed, not its input."""
    if _MACHINE.search(err):
        raise SandboxError(f"{what} failed ({cause.of_text(err)}): check the scratch folder's disk")


def init(git_dir: Path) -> None:
    """What `git init` writes, less hooks, templates and anything of this user. No attribute converts a file, whichever
    the
    checkout names: the commit holds what the base holds, byte for byte, and git writes that back."""
    for name in ("objects/info", "refs/heads", "info"):
        (git_dir / name).mkdir(parents=True)
    (git_dir / "HEAD").write_text("ref: refs/heads/main\n")
    (git_dir / "config").write_text(_CONFIG)
    (git_dir / "info/exclude").write_text("".join(f"{pattern}\n" for pattern in ARTEFACTS))
    (git_dir / "info/attributes").write_text(NEUTRAL)


async def differences(
    *rules: str, git_dir: Path, checkout: Path | Worktree, index: Path, repositories: Sequence[bytes]
) -> tuple[list[bytes], list[bytes]]:
    """(names of `index` that are changed or gone, names that it does not hold, those in nested repositories included).

    `repositories`: all folders with a .git, each with a slash at its end (pipes.py). Git would open what lies in them,
    and
    list each by its folder alone: but not where the index knows a file in it. So a copy of the index gets a name in
    each
    that is nowhere on the disk. What was changed counts as the whole index had it. Where no index can hold a name, as
    below
    .GIT, git does not look at all."""
    with tempfile.TemporaryDirectory(prefix="index-", dir=index.parent) as own:
        if index.exists():
            shutil.copyfile(index, f"{own}/index")
        where = {"git_dir": git_dir, "checkout": checkout, "GIT_INDEX_FILE": f"{own}/index"}
        place, changed = secrets.token_hex(8).encode(), set()
        passed_over = [name for name in repositories if b".git" in name.lower().split(b"/")]
        if known := sorted({*repositories} - {*passed_over}):
            changed = set(filter(None, (await must("ls-files", "-z", "-m", "-d", **where)).split(b"\0")))
            made = b"".join(f"100644 {_EMPTY_BLOB}\t".encode() + name + place + b"\0" for name in known)
            await must("-c", "core.protectNTFS=false", "update-index", "-z", "--index-info", stdin=made, **where)
        Path(own, "passed_over").write_bytes(b"".join(b"/" + _pattern(name) + b"\n" for name in passed_over))
        hidden = f"--exclude-from={own}/passed_over"
        listed = await must("ls-files", "-z", "-t", "-o", "-m", "-d", *rules, hidden, **where)
        rows = {(row[:1] == b"?", row[2:]) for row in listed.split(b"\0") if row}
        changed |= {name for is_new, name in rows if not is_new and not name.endswith(place)}
        return sorted(changed), sorted(name for is_new, name in rows if is_new)


def _pattern(name: bytes) -> bytes:
    """The pattern of an ignore rule that is this name, where a line feed may be any letter: a rule is a line."""
    return re.sub(rb"([\\*?\[\] ])", rb"\\\1", name).replace(b"\n", b"?")


async def commit_base(git_dir: Path, checkout: Path, forced: list[str], *, ignored: bool) -> None:
    """The one commit that the agent sees: files of nested repositories are plain files of it. `forced` are paths that
    belong to it although rules ignore them; `ignored`: all ignored files but build artefacts do, as in a base without
    git,
    whose .gitignore speaks of the author's machine, not of what was published."""
    init(git_dir)
    where = {"git_dir": git_dir, "checkout": checkout}
    rules = [f"--exclude-from={git_dir}/info/exclude"] if ignored else ["--exclude-standard"]
    nested = (await in_thread(look, checkout)).repositories
    _, new = await differences(*rules, index=git_dir / "index", repositories=nested, **where)
    names = {*new, *map(os.fsencode, forced)}
    at = {name: os.path.join(os.fsencode(checkout), name) for name in sorted(names)}
    plain = [name for name, path in at.items() if os.path.islink(path) or os.path.isfile(path)]
    await must("update-index", "--add", "-z", "--stdin", stdin=b"".join(name + b"\0" for name in plain), **where)
    await must(
        "-c",
        "gc.auto=0",
        "-c",
        "core.logAllRefUpdates=false",
        "commit",
        "-q",
        "--allow-empty",
        "--no-verify",
        "-m",
        "base",
        **where,
    )
    # as few files as possible: each is copied and removed with every sandbox
    await must("-c", "pack.threads=1", "repack", "-adnq", **where)
    (git_dir / "COMMIT_EDITMSG").unlink()


async def tracked_files(base: str | None) -> list[str] | None:
    """What the base's own git tracks: these files belong to the commit although rules ignore some of them. None where
    it has no git."""
    if base is None or not os.path.isdir(f"{base}/.git"):
        return None
    listed = await must(
        "-c",
        "safe.directory=*",
        "-c",
        "core.fsmonitor=false",
        "ls-files",
        "-z",
        git_dir=Path(base, ".git"),
        checkout=Path(base),
    )
    return [os.fsdecode(name) for name in listed.split(b"\0") if name]


async def ignore_rules(git_dir: Path, checkout: Path) -> str:
    """The base's .gitignore files as one, of the root. Git reads regular files only; one may ignore itself."""
    found = await must("ls-files", "-z", "-c", "-o", ":(glob)**/.gitignore", git_dir=git_dir, checkout=checkout)
    names = {os.fsdecode(name) for name in found.split(b"\0") if name}
    regular = [name for name in names if stat.S_ISREG(os.lstat(checkout / name).st_mode)]
    ordered = sorted(regular, key=lambda name: (name.count("/"), name))
    rules = [
        rule for name in ordered for rule in _anchored(name, (checkout / name).read_text(errors="surrogateescape"))
    ]
    return "".join(f"{rule}\n" for rule in [*rules, *ARTEFACTS])


def _anchored(name: str, text: str) -> list[str]:
    """The rules of one .gitignore as rules of the root: a pattern with an inner slash is relative to its file's
    folder."""
    folder = os.path.dirname(name)
    rules = []
    for line in text.split("\n"):
        rule = line.rstrip("\r")
        if not rule.strip() or rule.startswith("#") or not folder:
            rules.append(rule)
            continue
        sign, body = ("!", rule[1:]) if rule.startswith("!") else ("", rule)
        anchored = "/" in body.rstrip().rstrip("/")
        rules.append(f"{sign}/{folder}/" + (body.lstrip("/") if anchored else f"**/{body}"))
    return rules
