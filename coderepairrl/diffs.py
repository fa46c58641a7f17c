"""Reading a unified diff the way `git apply` does: one FileChange a file, hunks by their counted lines.

Counting matters: inside a hunk a line such as `--- a/x` is the removal of `-- a/x`, not a header. Whatever git accepts
must be seen here, or it reaches the tests unread: numbers are read as C's strtoul does, quoted names as git's
unquote_c_style.
"""

import re
from dataclasses import dataclass, field

from coderepairrl.sandboxes.diff_bounds import too_large

_HUNK = re.compile(r"@@ -[0-9]+(?:,([0-9]+))? \+[0-9]+(?:,([0-9]+))? @@")
_START = re.compile(r"@@ -([0-9]+)")
_QUOTED = re.compile(r'"((?:[^"\\]++|\\(?:[abfnrtv"\\]|[0-3][0-7][0-7]))*+)"')
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)")
_NAMES = re.compile(r"(?:rename|copy) (?:from|to|old|new) (.*)")
_MODE = re.compile(r"(new file mode|deleted file mode|old mode|new mode)\s+\+?([0-9]+)|(index) \S+\s+\+?([0-9]+)")
_DIGITS = 18  # of a number: more than that are more lines than there are
_SINGLE = {
    b"n": b"\n",
    b"t": b"\t",
    b"r": b"\r",
    b"a": b"\a",
    b"b": b"\b",
    b"f": b"\f",
    b"v": b"\v",
    b'"': b'"',
    b"\\": b"\\",
}


@dataclass
class FileChange:
    """`paths` are all paths that the section names, without a/ and b/; an absolute one keeps its slash."""

    text: str = ""
    paths: set[str] = field(default_factory=set)
    modes: set[str] = field(default_factory=set)  # such as 100644; 120000 is a symlink, 160000 a submodule
    made: set[str] = field(default_factory=set)  # those that the file has afterwards
    binary: bool = False
    content: bool = False  # of a binary file: whether the section holds it, or says no more than that it differs
    removed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        return min(self.paths, default="")


def split_diff(diff: str) -> list[FileChange]:
    """Text that belongs to no file is left out. A diff without any section gives an empty list, as does one that is
    beyond what one may be (bounds.py): it applies nowhere, and what tries to apply it says why."""
    if too_large(diff):
        return []
    lines = diff.split("\n")
    if lines[-1] == "":
        lines.pop()
    changes: list[FileChange] = []
    starts: list[int] = []
    i, in_header = 0, False
    while i < len(lines):
        line = lines[i]
        plain = line.startswith("--- ") and i + 1 < len(lines) and lines[i + 1].startswith("+++ ")
        if line.startswith("diff --git ") or (plain and not in_header):
            changes.append(FileChange())
            starts.append(i)
            in_header = True
        if not changes:
            i += 1
            continue
        hunk = _HUNK.match(line)
        if hunk:
            in_header = False
            i = _read_hunk(lines, i + 1, changes[-1], *(1 if n is None else _number(n) for n in hunk.groups()))
            continue
        if in_header:
            _read_header(line, changes[-1])
            in_header = not changes[-1].binary  # what follows is content, or the next file
        i += 1
    for change, start, end in zip(changes, starts, [*starts, len(lines)][1:], strict=True):
        change.text = "\n".join(lines[start:end]) + "\n"
    return changes


def _read_hunk(lines: list[str], i: int, change: FileChange, old: int, new: int) -> int:
    """Consumes the hunk's lines; returns the index of the line after it."""
    while i < len(lines) and (old > 0 or new > 0 or lines[i].startswith("\\")):
        kind, text = lines[i][:1], lines[i][1:]
        if kind == "-":
            change.removed.append(text)
            old -= 1
        elif kind == "+":
            change.added.append(text)
            new -= 1
        elif kind in (" ", ""):  # some mailers cut the space of an empty context line
            old, new = old - 1, new - 1
        elif kind != "\\":
            break
        i += 1
    return i


def _read_header(line: str, change: FileChange) -> None:
    if line.startswith("diff --git "):
        change.paths |= _both(line.removeprefix("diff --git ").rstrip("\r")) - {""}
    elif line.startswith(("--- ", "+++ ")):
        name = _name(line[4:].split("\t")[0])
        if name != "/dev/null":
            change.paths.add(_strip(name))
    elif match := _NAMES.match(line):
        change.paths.add(_name(match[1]))
    elif match := _MODE.match(line):
        mode = (match[2] or match[4]).lstrip("0") or "0"
        change.modes.add(mode)
        if not line.startswith(("deleted", "old")):
            change.made.add(mode)
    elif line.startswith("GIT binary patch") or re.match(r"Binary files .* differ", line):
        change.binary, change.content = True, line.startswith("GIT")


def _both(rest: str) -> set[str]:
    """The two names of a `diff --git` line. Names with spaces of which none is quoted are told apart only when both are
    the same: of others each word is taken for a name, which is too many rather than too few."""
    if rest.startswith('"') and (first := _QUOTED.match(rest)):
        second = rest[first.end() :].strip()
        return {_strip(_name(first[0])), _strip(_name(second))} if second else {_strip(_name(first[0]))}
    plain, quote, quoted = rest.partition(' "')
    if quote and _QUOTED.fullmatch(f'"{quoted.rstrip()}'):
        return {_strip(plain), _strip(_name(f'"{quoted.rstrip()}'))}
    half = (len(rest) - 1) // 2
    if len(rest) % 2 and rest[half] == " " and _strip(rest[:half]) == _strip(rest[half + 1 :]):
        return {_strip(rest[:half])}
    return {_strip(name) for name in rest.split(" ") if name and name != "/dev/null"}


def _strip(name: str) -> str:
    """-p1: the first folder (a/ or b/) goes."""
    return name if name.startswith("/") else name.partition("/")[2] or name


def _name(name: str) -> str:
    """Undoes git's C-style quoting; what is not so quoted is a name as it stands, quotes included."""
    quoted = _QUOTED.match(name)
    if not quoted:
        return name.partition("\r")[0]  # which ends a name, as a line feed does
    # half of a character is in no name: git gets to read no diff that holds one
    data = quoted[1].encode(errors="surrogateescape" if is_unicode(quoted[1]) else "replace")
    plain = _ESCAPE.sub(lambda m: _SINGLE.get(m[1]) or bytes([int(m[1], 8)]), data)
    return plain.decode(errors="surrogateescape")


def is_unicode(text: str) -> bool:
    """Whether it can be bytes. Those that are no UTF-8 are read as lone surrogates of a range of their own; others are
    no file's."""
    return not re.search("[\ud800-\udc7f\udd00-\udfff]", text)


def _number(digits: str) -> int:
    return int(digits.lstrip("0")[:_DIGITS] or "0")


def patched(change: FileChange, before: str) -> str | None:
    """The text file that a section makes of `before`; None where the hunks don't stand where they say (git may still
    find them)."""
    old, new, at = before.split("\n"), [], 0
    lines = change.text.split("\n")
    i = 0
    while i < len(lines):
        hunk = _HUNK.match(lines[i])
        if not hunk:
            i += 1
            continue
        one = FileChange()
        removed, made = (1 if n is None else _number(n) for n in hunk.groups())
        start = _number(_START.match(lines[i])[1]) - (removed > 0)  # of no line, it is the one after which others come
        end = _read_hunk(lines, i + 1, one, removed, made)
        body = [line for line in lines[i + 1 : end] if not line.startswith("\\")]
        gone = [line[1:] for line in body if line[:1] in ("-", " ", "")]
        if start < at or old[start : start + len(gone)] != gone:
            return None
        new += old[at:start] + [line[1:] for line in body if line[:1] != "-"]
        at, i = start + len(gone), end
    return "\n".join(new + old[at:])
