"""Git as the judge uses it: outside the sandbox, on a git directory that no agent ever saw.

The checkout has its own .git, which the agent may wreck. What changed is decided by a second git directory beside the
template: its configuration is ours, its info/attributes (the file of highest precedence) unsets every attribute that could
convert, filter or hide a file, and ignore rules come from the base commit, not from the checkout.
"""
import os
import re
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from coderepairrl import cause
from coderepairrl.errors import SandboxError
from coderepairrl.sandboxes.overlay import Worktree
from coderepairrl.sandboxes.process import capture

EPOCH_S = 1577836800  # 2020-01-01: date of the one commit and of every file of a template
MAX_FILE_BYTES = 4 << 20  # a changed file beyond this is not a source file
MAX_FILES = 2000  # changed files of one diff
ARTEFACTS = ("__pycache__/", "*.pyc", "*.pyo", ".pytest_cache/", "*.egg-info/", ".eggs/", ".coverage", ".mypy_cache/", ".ruff_cache/")
_NEUTRAL = "* !text !crlf !eol !filter !ident !working-tree-encoding !diff !merge !whitespace !export-subst\n"
_CONFIG = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tcheckStat = minimal\n\ttrustctime = false\n"
_NAME = {"NAME": "base", "EMAIL": "base@localhost", "DATE": f"{EPOCH_S} +0000"}
_VARIABLES = {
    "PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": "/nonexistent", "LC_ALL": "C", "TZ": "UTC",
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0",
    **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in _NAME.items()},
}


async def git(*arguments: str, git_dir: Path, checkout: Path | Worktree, stdin: bytes = b"", **variables: str) -> tuple[int, bytes, str]:
    """(exit code, stdout, stderr). Runs no hook, reads no configuration but git_dir's own."""
    place, enter = (checkout.path, checkout.enter) if isinstance(checkout, Worktree) else (checkout, ())
    environment = _VARIABLES | {"GIT_DIR": str(git_dir), "GIT_WORK_TREE": str(place)} | variables
    code, out, err = await capture([*enter, "git", "-C", str(place), *arguments], environment=environment, cwd="/", stdin=stdin)
    return code, out, err.decode(errors="replace").strip()


async def must(*arguments: str, **keywords) -> bytes:
    """Like `git`, for commands whose failure can only be the machine's."""
    code, out, err = await git(*arguments, **keywords)
    if code:
        raise SandboxError(f"git {arguments[0]} failed ({cause.of_text(err) or f'exit {code}'}): check the scratch folder's disk")
    return out


def init(git_dir: Path) -> None:
    """What `git init` writes, less hooks, templates and anything of this user."""
    for name in ("objects", "refs/heads", "info"):
        (git_dir / name).mkdir(parents=True)
    (git_dir / "HEAD").write_text("ref: refs/heads/main\n")
    (git_dir / "config").write_text(_CONFIG)
    (git_dir / "info/exclude").write_text("".join(f"{pattern}\n" for pattern in ARTEFACTS))


async def commit_base(git_dir: Path, checkout: Path, forced: list[str], *, ignored: bool) -> None:
    """The one commit that the agent sees. `forced` are paths that belong to it although rules ignore them; `ignored`: all ignored files
    but build artefacts do, as in a base without git, whose .gitignore speaks of the author's machine, not of what was published."""
    init(git_dir)
    where = {"git_dir": git_dir, "checkout": checkout}
    await must("add", "-A", **where)
    names = b"".join(os.fsencode(name) + b"\0" for name in forced)
    if ignored:
        names += await must("ls-files", "-z", "-o", f"--exclude-from={git_dir}/info/exclude", **where)
    if names:
        await must("add", "-f", "--pathspec-from-file=-", "--pathspec-file-nul", stdin=names, GIT_LITERAL_PATHSPECS="1", **where)
    await must("-c", "gc.auto=0", "-c", "core.logAllRefUpdates=false", "commit", "-q", "--allow-empty", "--no-verify", "-m", "base",
               git_dir=git_dir, checkout=checkout)
    # as few files as possible: each is copied and removed with every sandbox
    await must("-c", "pack.threads=1", "repack", "-adnq", git_dir=git_dir, checkout=checkout)
    (git_dir / "COMMIT_EDITMSG").unlink()


async def tracked_files(base: str | None) -> list[str] | None:
    """What the base's own git tracks: these files belong to the commit although rules ignore some of them. None where it has no git."""
    if base is None or not os.path.isdir(f"{base}/.git"):
        return None
    listed = await must("-c", "safe.directory=*", "ls-files", "-z", git_dir=Path(base, ".git"), checkout=Path(base))
    return [os.fsdecode(name) for name in listed.split(b"\0") if name]


@dataclass(frozen=True)
class Judge:
    """The git directory that decides what changed. Read-only once built, shared by all sandboxes of a task."""
    git_dir: Path

    @classmethod
    async def build(cls, git_dir: Path, checkout: Path) -> "Judge":
        visible = await must("ls-files", "-z", git_dir=checkout / ".git", checkout=checkout)
        init(git_dir)
        (git_dir / "info/attributes").write_text(_NEUTRAL)
        await must("update-index", "--add", "-z", "--stdin", git_dir=git_dir, checkout=checkout, stdin=visible)
        tree = await must("write-tree", git_dir=git_dir, checkout=checkout)
        (git_dir / "tree").write_bytes(tree.strip())
        found = await must("ls-files", "-z", "-c", "-o", ":(glob)**/.gitignore", git_dir=checkout / ".git", checkout=checkout)  # one may ignore itself
        ignores = sorted({os.fsdecode(name) for name in found.split(b"\0") if name}, key=lambda name: (name.count("/"), name))
        rules = [rule for name in ignores for rule in _anchored(name, (checkout / name).read_text(errors="surrogateescape"))]
        text = "".join(f"{rule}\n" for rule in [*rules, *ARTEFACTS])
        (git_dir / "info/exclude").write_text(text, errors="surrogateescape")
        return cls(git_dir)

    async def diff(self, checkout: Worktree, scratch: Path) -> tuple[str, tuple[str, ...]]:
        """(unified diff, paths left out). No process of the sandbox may run meanwhile."""
        listed = await must("ls-files", "-z", "-o", "-m", "-d", f"--exclude-from={self.git_dir}/info/exclude", git_dir=self.git_dir, checkout=checkout)
        names = sorted({name for name in listed.split(b"\0") if name})
        if not names:
            return "", ()
        kept = [name for name in names if _is_source(checkout.view, name)][:MAX_FILES]
        dropped = [os.fsdecode(name) for name in sorted(set(names) - set(kept))]
        sections = await self._sections(checkout, scratch, kept) if kept else []
        texts = []
        for section in sections:
            readable = _decoded(section)
            if readable is None:
                dropped.append(section.split(b"\n", 1)[0].decode(errors="replace").removeprefix("diff --git "))
            else:
                texts.append(readable)
        return "".join(texts), tuple(path.encode(errors="replace").decode() for path in dropped)

    async def _sections(self, checkout: Worktree, scratch: Path, names: list[bytes]) -> list[bytes]:
        with tempfile.TemporaryDirectory(prefix="diff-", dir=scratch) as own:
            # new blobs and the changed index go to a folder of this diff: the judge itself stays as it was built
            shutil.copyfile(self.git_dir / "index", f"{own}/index")
            variables = {"GIT_INDEX_FILE": f"{own}/index", "GIT_OBJECT_DIRECTORY": own, "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(self.git_dir / "objects")}
            where = {"git_dir": self.git_dir, "checkout": checkout, **variables}
            # removals first: a file that became a folder must leave before the folder's files enter
            missing = [name for name in names if not _is_file(checkout.view, name)]
            ordered = missing + [name for name in names if name not in set(missing)]
            await must("update-index", "--add", "--remove", "--replace", "-z", "--stdin", stdin=b"\0".join(ordered), **where)
            out = await must("diff-index", "--cached", "-p", "--no-color", "--no-renames", "--no-ext-diff", "--no-textconv", "--src-prefix=a/",
                             "--dst-prefix=b/", (self.git_dir / "tree").read_text(), **where)
        return [b"diff --git " + part for part in re.split(rb"(?m)^diff --git ", out)[1:]]

    async def apply(self, checkout: Worktree, diff: str) -> str:
        """Empty, or why the diff does not apply. `git apply` refuses paths outside, beyond symlinks and in .git by itself."""
        data = diff.encode(errors="surrogateescape")
        code, _, err = await git("apply", "-p1", "--whitespace=nowarn", "-", git_dir=self.git_dir, checkout=checkout,
                                 stdin=data if data.endswith(b"\n") else data + b"\n")
        if code and re.search("No space left|Disk quota|Read-only file system|Cannot allocate|Input/output error", err):
            raise SandboxError(f"git apply failed ({cause.of_text(err)}): free space in the scratch folder")
        return (err.splitlines() or [f"git apply: exit {code}"])[0][:300] if code else ""

    async def touched(self, checkout: Worktree, diff: str) -> tuple[list[str], str]:
        """(paths that `git apply` would write, why it cannot read the diff): git's own reading, not ours."""
        code, out, err = await git("apply", "-p1", "--numstat", "-z", "-", git_dir=self.git_dir, checkout=checkout,
                                   stdin=diff.encode(errors="surrogateescape"))
        paths = [os.fsdecode(row.split(b"\t", 2)[2]) for row in out.split(b"\0") if row.count(b"\t") >= 2]
        return paths, (err.splitlines() or [f"git apply: exit {code}"])[0][:300] if code else ""


def _is_source(checkout: Path, name: bytes) -> bool:
    """A regular UTF-8 file of sane size that no symlink leads to, or one that is gone: what a diff may hold."""
    parts = name.rstrip(b"/").split(b"/")
    here = os.fsencode(checkout)
    for part in parts[:-1]:
        here = os.path.join(here, part)
        if os.path.islink(here):
            return False
    path = os.path.join(here, parts[-1])
    try:
        name.decode()
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            return not name.endswith(b"/")  # "x/" is a nested repository; "x" a file that became a folder
        if not stat.S_ISREG(mode) or os.path.getsize(path) > MAX_FILE_BYTES:
            return False
        with open(path, "rb") as file:
            data = file.read()
        data.decode()
        return b"\0" not in data
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (UnicodeDecodeError, PermissionError):
        return False


def _is_file(checkout: Path, name: bytes) -> bool:
    return os.path.isfile(os.path.join(os.fsencode(checkout), name))


def _decoded(section: bytes) -> str | None:
    """None when the base's side is binary or not UTF-8, which no text diff can carry."""
    if re.search(rb"(?m)^Binary files .* differ$", section.split(b"\n@@", 1)[0]):
        return None
    try:
        return section.decode()
    except UnicodeDecodeError:
        return None


def _anchored(name: str, text: str) -> list[str]:
    """The rules of one .gitignore as rules of the root: a pattern with an inner slash is relative to its file's folder."""
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
