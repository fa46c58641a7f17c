"""What changed in a checkout, as one diff in git's own format, and by name what that leaves out.

The checkout has its own .git, which the agent may wreck. What changed is decided by a second git directory beside the
template: ignore
rules come from the base commit, not from the checkout. A diff is text: what is not UTF-8 travels as git's binary
patch. What git does not track is nothing of a diff: empty folders, pipes, sockets.
"""

import json
import os
import re
import shutil
import signal
import stat
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from coderepairrl.errors import SandboxError
from coderepairrl.sandboxes.diff_bounds import MAX_PATH_BYTES, exceeded, limited, too_large, too_many
from coderepairrl.sandboxes.git import (
    EPOCH_S,
    GONE,
    NEUTRAL,
    answered,
    differences,
    git,
    ignore_rules,
    init,
    must,
    refuse_machine,
)
from coderepairrl.sandboxes.overlay import Worktree
from coderepairrl.sandboxes.pipes import WHY, look, unblock
from coderepairrl.sandboxes.running import in_thread

MAX_FILE_BYTES = 4 << 20  # a changed file beyond this is not a source file
MAX_BINARY_BYTES = 512 << 10  # what no source is, and agents leave behind: builds, archives, core files
LOOKED_AT = 8000  # bytes of a file, by which git tells a binary one
MAX_BYTES = 32 << 20  # of the changed files of one diff together
MAX_FILES = 2000  # new files of one diff; changes of the base's own files come first and are not counted
NAMED = 20  # files of a folder that are left out by name; of more, the folder is
IGNORED = "a new file that the base's .gitignore or the rules for build artefacts hide"
NESTED = "a repository of its own: its files are in the diff, its history is not"
BLOCKED = (
    "in the place of what no diff can remove: what the base's .gitignore hides, a repository, "
    "a name or a link that is not UTF-8"
)
REFUSED = "a name that git does not take"


@dataclass(frozen=True)
class Judge:
    """The git directory that decides what changed. Read-only once built, shared by all sandboxes of a task."""

    git_dir: Path

    @classmethod
    async def build(cls, git_dir: Path, checkout: Path) -> "Judge":
        visible = await must("ls-files", "-z", git_dir=checkout / ".git", checkout=checkout)
        init(git_dir)
        await must("update-index", "--add", "-z", "--stdin", git_dir=git_dir, checkout=checkout, stdin=visible)
        tree = await must("write-tree", git_dir=git_dir, checkout=checkout)
        (git_dir / "tree").write_bytes(tree.strip())
        (git_dir / "info/exclude").write_text(await ignore_rules(checkout / ".git", checkout), errors="surrogateescape")
        nested = (await in_thread(look, checkout)).repositories
        _, hidden = await differences(git_dir=git_dir, checkout=checkout, index=git_dir / "index", repositories=nested)
        # of the base, and not in its commit: files, and the folders with a repository of their own
        for name, names in (("hidden", hidden), ("nested", nested)):
            (git_dir / name).write_bytes(b"".join(entry + b"\0" for entry in names))
        return cls(git_dir)

    async def diff(self, checkout: Worktree, scratch: Path, written: Path) -> tuple[str, dict[str, str]]:
        """(unified diff, path left out -> why). `written`: where what the sandbox's commands wrote lies. No process of
        the
        sandbox may run meanwhile."""
        found = await in_thread(unblock, written, checkout.view)
        of_base = self._of_base("nested")
        repositories = [*{*found.repositories, *of_base}]
        where = {"git_dir": self.git_dir, "checkout": checkout, "repositories": repositories}
        async with _folder(scratch) as own:
            # new blobs and the changed index go to a git directory of this diff: the judge itself stays as it was built
            mine = Path(own, "git")
            init(mine)
            shutil.copyfile(self.git_dir / "index", mine / "index")
            (mine / "objects/info/alternates").write_bytes(os.fsencode(self.git_dir / "objects") + b"\n")
            rules = f"--exclude-from={self.git_dir}/info/exclude"
            changed, new = await differences(index=mine / "index", **where)
            seen = set(new) - self._of_base("hidden")
            if seen:  # which of them are ignored; mostly there are none
                _, visible = await differences(rules, index=mine / "index", **where)
                seen = set(new) & set(visible)
            left_out = await in_thread(self._hidden, checkout.view, set(new) - seen)
            all_hidden = _folders(set(new) - seen) - _folders(seen.union(changed)) if repositories else set()
            left_out |= {name: _why_nested(name) for name in {*repositories} - of_base if name[:-1] not in all_hidden}
            stays = self._of_base("hidden") | {folder + b".git" for folder in of_base}
            stays |= {name for name in changed if not _is_utf8(name)}
            blocked = await in_thread(_blocked, seen, stays) if seen else set()
            left_out |= dict.fromkeys(blocked, BLOCKED)
            left_out |= dict.fromkeys(found.pipes, WHY)
            kept = await in_thread(_choose, checkout.view, [*changed, *(seen - blocked)], set(new), left_out)
            sections = await self._sections(checkout, mine, kept, left_out) if kept else []
        return await in_thread(_told, sections, left_out)

    def _of_base(self, what: str) -> set[bytes]:
        return {name for name in (self.git_dir / what).read_bytes().split(b"\0") if name}

    def _hidden(self, view: Path, ignored: set[bytes]) -> dict[bytes, str]:
        """The ignored files that are new or not as the base has them."""
        of_base = self._of_base("hidden")
        found = {name: IGNORED for name in ignored - of_base}
        for name in of_base:
            path = os.path.join(os.fsencode(view), name)
            if not os.path.lexists(path):
                found[name] = "removed, but hidden by the base's .gitignore"
            elif os.lstat(path).st_mtime != EPOCH_S:
                found[name] = "changed, but hidden by the base's .gitignore"
        return found

    async def _sections(
        self, checkout: Worktree, mine: Path, kept: list[bytes], left_out: dict[bytes, str]
    ) -> list[tuple[bytes, bytes]]:
        """(name where it is needed, its part of the diff), of a name whose kind changed its two parts as one. Each call
        of git costs as much
        as the rest of a small diff, so none is made for what isn't there."""
        where = {"git_dir": mine, "checkout": checkout}
        # removals first: a file that became a folder must leave before the folder's files enter
        if gone := await in_thread(_gone, checkout.view, kept):
            rows = b"".join(GONE + name + b"\0" for name in sorted(gone))
            await must("update-index", "-z", "--index-info", stdin=rows, **where)
        if there := sorted(set(kept) - gone):
            names = b"".join(name + b"\0" for name in there)
            _, said = await answered("update-index", "--add", "--replace", "-z", "--stdin", stdin=names, **where)
            if "Ignoring path " in said:
                left_out |= {name: REFUSED for name in there if f"Ignoring path {name.decode()}\n" in f"{said}\n"}
        what = ["--cached", "--no-renames", (self.git_dir / "tree").read_text()]

        async def parts() -> list[bytes]:
            plainly = ["--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/"]
            out = await must("diff-index", "-p", "--binary", *plainly, *what, **where)
            return await in_thread(_parts, out)

        found = await parts()
        if await in_thread(lambda: all(map(_is_utf8, found))):
            return [(b"", section) for section in found]
        listed = await must("diff-index", "--name-only", "-z", *what, **where)
        changed = [name for name in listed.split(b"\0") if name]
        odd = [name for name, section in zip(changed, found, strict=True) if not _is_utf8(section)]
        no_text = b"".join(_pattern(name) + b" -diff\n" for name in odd)
        (mine / "info/attributes").write_bytes(NEUTRAL.encode() + no_text)
        return list(zip(changed, await parts(), strict=True))

    async def apply(self, checkout: Worktree, diff: str) -> str:
        """Empty, or why the diff, which `touched` found nothing wrong with, does not apply."""
        return (await self._git_apply(checkout, diff))[1]

    async def touched(self, checkout: Worktree, diff: str) -> tuple[list[str], str]:
        """(paths that `git apply` would write, why it cannot): git's own reading, not ours, with all that it does but
        the writing. Git refuses paths outside, beyond symlinks and in .git by itself."""
        if problem := await in_thread(too_large, diff):
            return [], problem
        out, problem = await self._git_apply(checkout, diff, "--numstat", "-z", "--check")
        rows = (row.split(b"\t", 2) for row in out.split(b"\0") if row.count(b"\t") >= 2)
        paths = [os.fsdecode(path) for _, _, path in rows]
        return paths, problem or await in_thread(too_many, paths)

    async def _git_apply(self, checkout: Worktree, diff: str, *options: str) -> tuple[bytes, str]:
        """The one reading of a diff. Its last line may lack its end, as in patches that somebody stripped."""
        try:
            data = (diff if diff.endswith("\n") else f"{diff}\n").encode(errors="surrogateescape")
        except UnicodeEncodeError:
            return b"", "the diff is not valid Unicode: it holds a lone surrogate"
        words = ("apply", "-p1", "--whitespace=nowarn", *options, "-")
        under = limited(writes=not options)
        code, out, err = await git(*words, git_dir=self.git_dir, checkout=checkout, stdin=data, under=under)
        if not code:
            return out, ""
        if problem := exceeded(code, err):
            return b"", problem
        if code == -signal.SIGKILL:
            raise SandboxError("git apply was killed by this machine: free some memory")
        # what is but asked writes nothing, and says with 1 that a diff does not apply, by any name
        if not options or code != 1:
            refuse_machine("git apply", err)
        said = [line for line in err.split("\n") if line and not line.startswith("warning: ")]
        return out, (said or [f"git apply: exit {code}"])[0][:300]


@asynccontextmanager
async def _folder(scratch: Path) -> AsyncIterator[str]:
    """Thousands of files may lie in it at the end."""
    own = tempfile.mkdtemp(prefix="diff-", dir=scratch)
    try:
        yield own
    finally:
        await in_thread(shutil.rmtree, own)


def _parts(out: bytes) -> list[bytes]:
    """One for each file; the two of a file whose kind changed are one. Not by a pattern, which takes a second for tens
    of megabytes, and lets no thread run meanwhile."""
    found = [b"diff --git " + part + b"\n" for part in (b"\n" + out).removesuffix(b"\n").split(b"\ndiff --git ")[1:]]
    return [b"".join(same) for _, same in groupby(found, key=lambda part: part.split(b"\n", 1)[0])]


def _told(sections: list[tuple[bytes, bytes]], left_out: dict[bytes, str]) -> tuple[str, dict[str, str]]:
    """(the diff, path left out -> why)."""
    odd = {name for name, section in sections if not _is_utf8(section)}
    blocked = _blocked({name for name, _ in sections} - odd, odd) if odd else set()
    left_out = left_out | dict.fromkeys(odd, "git's patch of it is not UTF-8") | dict.fromkeys(blocked, BLOCKED)
    text = "".join(section.decode() for name, section in sections if name not in odd | blocked)
    return text, {path.encode(errors="replace").decode(): why for path, why in _by_folder(left_out).items()}


def _why_nested(folder: bytes) -> str:
    return REFUSED if b".git" in folder.lower().split(b"/") else NESTED


def _folders(names: Iterable[bytes]) -> set[bytes]:
    """On the way to them."""
    folders: set[bytes] = set()
    for name in names:
        while (name := os.path.dirname(name)) and name not in folders:
            folders.add(name)
    return folders


def _blocked(names: set[bytes], hidden: set[bytes]) -> set[bytes]:
    """Those that cannot be written where the hidden files are: a folder with one became a file, or one a folder."""
    folders = _folders(hidden)
    above = {name: [name[: at.start()] for at in re.finditer(b"/", name)] for name in names}
    return {name for name in names if name in folders or not hidden.isdisjoint(above[name])}


def _choose(view: Path, names: list[bytes], new: set[bytes], left_out: dict[bytes, str]) -> list[bytes]:
    """The names that the diff can hold; what it can't goes to `left_out`. The base's own files come first: a flood of
    new ones must not hide a repair."""
    kept: list[bytes] = []
    files = size = 0
    gone = _gone(view, names)
    for name in sorted(names, key=lambda name: (name in new, name)):
        why, bytes_ = _why_not(view, name, name in gone)
        if not why and size + bytes_ > MAX_BYTES:
            why = f"beyond the {MAX_BYTES >> 20} MiB of one diff"
        if not why and name in new and files == MAX_FILES:
            why = f"beyond the {MAX_FILES} new files of one diff"
        if why:
            left_out[name] = why
            continue
        kept.append(name)
        size, files = size + bytes_, files + (name in new)
    return kept


def _why_not(view: Path, name: bytes, is_gone: bool) -> tuple[str, int]:
    """(empty, or why a diff cannot hold it; its size)."""
    path = os.path.join(os.fsencode(view), name)
    if len(name) > MAX_PATH_BYTES:
        return f"a name of more than {MAX_PATH_BYTES} bytes", 0
    try:
        name.decode()
    except UnicodeDecodeError:
        return "a name that is not UTF-8", 0
    if is_gone:
        return "", 0
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        return _unsafe(name, os.readlink(path)), 0
    if not stat.S_ISREG(found.st_mode):
        return "neither a file nor a link", 0
    if found.st_size > MAX_FILE_BYTES:
        return f"more than {MAX_FILE_BYTES >> 20} MiB", 0
    if not os.access(path, os.R_OK):
        return "not readable", 0
    if found.st_size > MAX_BINARY_BYTES and _is_binary(path):
        return f"a binary file of more than {MAX_BINARY_BYTES >> 10} KiB", 0
    return "", found.st_size


def _is_binary(path: bytes) -> bool:
    with open(path, "rb") as file:
        return b"\0" in file.read(LOOKED_AT)


def _unsafe(name: bytes, target: bytes) -> str:
    """Empty, or why a link must stay behind: by its words alone, since whatever it leads over may change."""
    if target.startswith(b"/"):
        return "a link to an absolute path"
    parts = os.path.normpath(os.path.join(os.path.dirname(name), target)).split(b"/")
    if parts[0] == b"..":
        return "a link that leads out of the checkout"
    if any(part.lower() == b".git" for part in parts):
        return "a link into a git directory"
    return "" if _is_utf8(target) else "a link whose target is not UTF-8"


def _gone(view: Path, names: Iterable[bytes]) -> set[bytes]:
    """Those that are, as git sees it: nothing is there, or a folder is, or a link took the place of a folder on the
    way."""
    root = os.fsencode(view)
    real = {b"": True}  # folders that are some, and not behind a link: each is looked at once

    def is_real(folder: bytes) -> bool:
        below = []
        while folder not in real:
            below.append(folder)
            folder = os.path.dirname(folder)
        for name in reversed(below):
            path = os.path.join(root, name)
            real[name] = real[os.path.dirname(name)] and os.path.isdir(path) and not os.path.islink(path)
        return real[below[0] if below else folder]

    def is_gone(name: bytes) -> bool:
        path = os.path.join(root, name)
        return (
            not is_real(os.path.dirname(name))
            or not os.path.lexists(path)
            or os.path.isdir(path)
            and not os.path.islink(path)
        )

    return {name for name in names if is_gone(name)}


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _pattern(name: bytes) -> bytes:
    """The pattern of gitattributes that is this name and no other."""
    escaped = re.sub(rb"([\\*?\[\]])", rb"\\\1", name)
    # JSON quotes as C does, but for control characters
    return json.dumps("/" + escaped.decode(), ensure_ascii=False).encode()


def _by_folder(left_out: dict[bytes, str]) -> dict[str, str]:
    """Many names of one folder that are left out for one reason are one entry, with their number."""
    top = {name: name[: name.index(b"/") + 1] if b"/" in name else name for name in left_out}
    count = Counter((top[name], why) for name, why in left_out.items())
    found: dict[str, dict[str, None]] = {}
    for name, why in sorted(left_out.items()):
        many = count[top[name], why]
        said = found.setdefault(os.fsdecode(top[name] if many > NAMED else name), {})
        said[f"{why}, {many} files" if many > NAMED else why] = None
    return {name: "; ".join(said) for name, said in found.items()}
