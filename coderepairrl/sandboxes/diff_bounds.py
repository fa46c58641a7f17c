"""How large a diff may be: by its words before git reads it, by what git takes while it does.

What a diff says of its sizes may be a lie, and sixty bytes of it can stand for gigabytes (a delta of copies, a file
copied a thousand times). So its words are counted first, which costs one look at its text, and git then runs under
limits of the kernel. `git apply` holds all results in memory before it writes the first one: the limit of its memory is
that of the whole result. It is asked twice, the first time to write nothing and in half of the time, so nothing is
half-written. Whatever is beyond is the diff's own fault, never the machine's.
"""

import re
import signal

MAX_DIFF_BYTES = 64 << 20  # of its text: twice what the files of one diff may hold together, for both of their sides
MAX_LINES = 2_000_000
MAX_SECTIONS = 20_000
MAX_HEADER_BYTES = 8 << 20  # of the lines that name its files
MAX_DECLARED_BYTES = 64 << 20  # that its binary hunks say they inflate to, both directions together
MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 255  # between two slashes, as file systems have it
MAX_ENTRIES = 100_000  # files, and the folders on the way to them
MEMORY_BYTES = 512 << 20  # of git, which holds the patch and its results
CPU_S = 30  # of git: a second is much for the largest honest diff
_HEADER = re.compile(r"^(?:(?:diff --git|rename|copy) .*|--- .*\n\+\+\+ .*\n(?=@@ -))", re.MULTILINE)
# as strtoul reads it, by which a minus makes a very large number
_BINARY = re.compile(r"^(?:literal|delta)[ \t\v\f\r]*([+-]?)([0-9]+)", re.MULTILINE)
_DIGITS = 19  # more are beyond every limit, and beyond what int() reads


def too_large(diff: str) -> str:
    """Empty, or why the diff is not even read."""
    if len(diff) > MAX_DIFF_BYTES or len(diff.encode(errors="replace")) > MAX_DIFF_BYTES:
        return f"it has more than the {_mib(MAX_DIFF_BYTES)} of one diff"
    if diff.count("\n") > MAX_LINES:
        return f"it has more than the {MAX_LINES} lines of one diff"
    headers = [(diff[match.start()], match.end() - match.start()) for match in _HEADER.finditer(diff)]
    if sum(first in "d-" for first, _ in headers) > 2 * MAX_SECTIONS:  # a section may have both forms of a header
        return f"it has more than the {MAX_SECTIONS} files of one diff"
    if sum(size for _, size in headers) > MAX_HEADER_BYTES:
        return f"its headers have more than the {_mib(MAX_HEADER_BYTES)} of one diff"
    declared = 0
    for sign, digits in _BINARY.findall(diff) if "GIT binary patch" in diff else ():
        digits = digits.lstrip("0")
        declared += MAX_DECLARED_BYTES + 1 if len(digits) > _DIGITS or sign == "-" and digits else int(digits or 0)
    if declared > MAX_DECLARED_BYTES:
        return f"its binary parts come to more than the {_mib(MAX_DECLARED_BYTES)} of one diff"
    return ""


def too_many(paths: list[str]) -> str:
    """Empty, or why these files of a diff cannot be written."""
    entries: set[str] = set()
    for path in paths:
        if why := why_no_path(path):
            return f"{ascii(path[:60])}: {why}"
        while path and path not in entries:
            entries.add(path)
            path = path.rpartition("/")[0]
        if len(entries) > MAX_ENTRIES:
            return f"it makes more than the {MAX_ENTRIES} files and folders of one diff"
    return ""


def why_no_path(path: str) -> str:
    """Empty, or why no file of a checkout can have this name."""
    try:
        name = path.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return "a path with a lone surrogate"
    if len(name) > MAX_PATH_BYTES or max(map(len, name.split(b"/"))) > MAX_NAME_BYTES:
        return f"a path of more than {MAX_PATH_BYTES} bytes, or of {MAX_NAME_BYTES} between slashes"
    return "a path with a NUL" if b"\0" in name else ""


def limited(*argv: str, writes: bool = False) -> list[str]:
    """The command under the limits; `prlimit` becomes it, so that exit code and signals are its own. `writes`: what was
    found to be within them without, and may not be stopped halfway."""
    cpu_s = 2 * CPU_S if writes else CPU_S
    return ["prlimit", f"--data={MEMORY_BYTES}", f"--cpu={cpu_s}:{cpu_s + 1}", "--core=0", "--", *argv]


def exceeded(code: int, err: str) -> str:
    """Empty, or which limit a command's end (its exit code or minus a signal's number, its stderr) says that it met."""
    if code == -signal.SIGXCPU:
        return f"it takes more than {CPU_S} s to apply"
    # git's words, GNU patch's and the C library's; with 1 ends what does not apply, whose files may have any name
    if code not in (0, 1) and re.search("ut of memory|memory exhausted|Cannot allocate memory", err):
        return f"it takes more than {_mib(MEMORY_BYTES)} of memory to apply"
    return ""


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"
