"""Does a file of commands (a Makefile, a workflow, a script) run less than before?

Each line that was there must be there still: forgiven no more than before (`|| true`, a dash before a recipe), and
without a word that narrows it. Of new lines those are named that turn a check off.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

# what makes a failure of what stands before it count for nothing, or hands it on to what can't fail
_FORGIVES = re.compile(
    r"\s*\|\|.*$|\s*;\s*(?:true|:|exit\b.*|echo\b.*|/bin/true|\(?exit 0\)?.*)$|\s*\|\s*(?:tee"
    r"|cat|head|tail|true|xargs|grep|sed|:)\b.*$"
    r"|\s*&\s*$|\s+--(?:exit-zero|no-verify|no-error[\w-]*|ignore\S*|deselect\S*|exclude\S*"
    r"|skip\S*|maxfail\S*)(?:[ =]\S+)?"
    r"|\s+-DskipTests\S*|\s*&&\s*(?:true|:)\s*$"
)
_PREFIX = re.compile(r"^\s*(?:-\s+)?(?:run:\s*|script:\s*)?[|>]?[-+]?\s*")
_LOOSENS = re.compile(
    r"\b(?:ignore|exclude|disable|skip|deselect|omit|allow_failure|xfail|fail_under\s*=\s*0"
    r"|no_strict|maven\.test\.skip"
    r"|skipTests|testFailureIgnore|failOnViolation|when:\s*(?:manual|never)|stages:\s*\[\s*manual"
    r"|EXCLUDE_FROM_ALL|WILL_FAIL"
    r"|DISABLED|ignoreFailures|ignoreExitValue|enabled\s*=\s*false|onlyIf)\b"
    r"|continue-on-error|\|\|\s*(?:true|:|exit|echo)|--(?:ignore|deselect|exclude|skip|no-verify"
    r"|exit-zero|keep-going)|-p\s+no:"
    r"|per-file-ignores|\bif:|-DskipTests|\bset\s+\+e\b|\bexit\s+0\b|^\s*\.(?:IGNORE|SHELLFLAGS"
    r"|DEFAULT_GOAL)\b"
    r"|^\s*(?:export\s+)?(?:MAKEFLAGS|SHELL|GNUMAKEFLAGS|MAKEFILES)\b|\btrap\b|;\s*(?:true|:)\s*$"
    r"|\balias\b|\bPYTEST_ADDOPTS\b|\bNODE_OPTIONS\b|\bscript-shell\b|cap-lints|^\s*exit\s*$"
    r"|\bif\s+(?:false|!?\s*true)\b|\bif\s*\(\s*(?:FALSE|OFF|NO|0)\s*\)|^\s*return\s*\(\s*\)"
    r"|(?:^|[\s;])(?:true|:)\s*(?:\|\||\\$)|<<-?\s*['\"]?\w|\brm\s+-\w*[rf]\w*\s+\S*tests?\b"
    r"|^\s*(?:export\s+)?PATH\s*[:+]?=|^\s*\.ONESHELL\b|^(?:ifdef|ifndef|ifeq|ifneq)\b|^[^\s#=:]+:\s*\w+\s*[:+?]?="
    r"|PASS_REGULAR_EXPRESSION|SKIP_RETURN_CODE|\b(?:function|macro)\s*\(\s*add_test|[\s(]-w\b|-Wno-"
    r"|should_fail|test_tag_filters|\btags\s*=.*manual|excludeTests?\w*|excludedTaskNames|\bactions\s*=\s*\["
    r"|org\.gradle\.continue|<phase>none|<fail\w+>false|<test>|testSourceDirectory|<(?:excluded)?groups>"
    r"|passWithNoTests|testPathIgnore\w*|expect\.extend|testIgnore|excludeSpecPattern|\bignores\b"
    r"|timeout-minutes:\s*0\b"
    r"|['\"][\w/-]+['\"]\s*:\s*\[?\s*(?:0|['\"]off['\"])",
    re.IGNORECASE,
)
# a hook that was there runs on less, or is another one, if no further hook comes with these lines
_NARROWS = re.compile(r"^\s*(?:files|entry|types(?:_or)?|language|always_run|pass_filenames)\s*:")
_HOOK = re.compile(r"^\s*-\s*(?:id|repo)\s*:")
_STEERS = re.compile(
    r"PYTEST_ADDOPTS|skipTests|maven\.test|script-shell|ignore-scripts|cap-lints|MAKEFLAGS|NODE_OPTIONS|^\s*runner\s*="
    r"|^\s*(?:test|check|clippy)\s*=|CTEST_CUSTOM_\w*IGNORE|org\.gradle\.continue|rustc-cfg"
)
_CHECKS = re.compile(
    r"\b(?:select|enable|strict|fail_under|fail-under|Werror|Wall|error|check|lint|tests?|pytest"
    r"|mypy|ruff|flake8|pylint|pyright"
    r"|unittest|failOnViolation|tox|nox|eslint|jest|go vet|clippy|enable_testing|add_test|session"
    r"|make|assert|useJUnit\w*|py_test|go_test|cc_test|recommended)\b|-W\w+|\btests?\(",
    re.IGNORECASE,
)
_FREE = re.compile(
    r"^\s*(?:#|//|$)|^\s*-?\s*(?:name|uses|python-version|node-version|rev|runs-on|timeout-minutes"
    r"|image|cache)\s*[:=]"
)
_STRICTER = re.compile(r"--strict[\w-]*|-W\w*|-v+|-W|error|--cov[\w=-]*|--fail-under=\d+|-D|warnings")
_TARGET = re.compile(r"^([^\s:=#][^:=#]*?)\s*::?(?!=)\s*([^=]*)$")
_VARIABLE = re.compile(r"^\s*(?:override\s+|export\s+)?([\w.-]+)\s*(?:[:+?!]|::)?=")
_LIST = re.compile(r"^([\w.-]+\s*:)\s*\[([^\[\]]*)\]$")
_MAKEFILE = re.compile(r"^(?:GNUm|BSDm|[Mm])akefile$|\.mk$")


def lines_loosen(path: str, before: str, after: str) -> Iterator[str]:
    """Findings in words, without the path."""
    old, now = (Counter(text.split("\n")) for text in (before, after))
    gone, new = list((old - now).elements()), list((now - old).elements())
    make = bool(_MAKEFILE.search(PurePosixPath(path).name))

    def counts(line: str) -> bool:
        return _all_lines_count(path) or bool(_CHECKS.search(line)) or make and bool(_VARIABLE.match(line))

    taken = []
    for line in gone:
        match = next((one for one in new if one not in taken and _same(line, one, make)), None)
        if match is not None:
            taken.append(match)
            if _forgiven(match, make) > _forgiven(line, make):
                yield f"'{match.strip()[:80]}' loosens a check"
        elif not _FREE.search(line) and counts(line) and _core(line, make) and not _only_loosens(line, make):
            yield f"'{line.strip()[:80]}' is gone: a check is taken out"
    narrows = path.endswith(".pre-commit-config.yaml") and not any(map(_HOOK.match, new))
    for line in new:
        if narrows and _NARROWS.match(line) or _redefines(line, before):
            yield f"'{line.strip()[:80]}' loosens a check"
        elif line not in taken and _LOOSENS.search(line) and not line.lstrip().startswith(("#", "//")):
            yield f"'{line.strip()[:80]}' loosens a check"


def lines_steer(text: str) -> Iterator[str]:
    """Of a new file of commands or variables, which nothing stood in before: what would turn checks off elsewhere."""
    for line in text.split("\n"):
        if _STEERS.search(line) and not line.lstrip().startswith(("#", "//")):
            yield f"'{line.strip()[:80]}' loosens a check"


def _redefines(line: str, before: str) -> bool:
    """A function of a shell in the place of a command that the script runs."""
    found = re.match(r"^\s*(?:function\s+)?([\w-]+)\s*\(\)", line)
    return bool(found) and re.search(rf"(?m)^\s*{re.escape(found[1])}\b", before) is not None


def makefile_steers(path: str, before: str, after: str) -> Iterator[str]:
    """Targets and variables that are defined once more: make takes the last."""
    if not _MAKEFILE.search(PurePosixPath(path).name):
        return
    for what, pattern in (("target", _TARGET), ("variable", _VARIABLE)):
        old, new = (
            Counter(
                found[1].strip()
                for line in text.split("\n")
                if not line.startswith("\t") and (found := pattern.match(line))
            )
            for text in (before, after)
        )
        yield from (
            f"the {what} {name} is defined again"
            for name in old
            if new[name] > old[name] and not name.startswith(".PHONY")
        )
        if what == "target" and (first := next((name for name in old if not name.startswith(".")), None)):
            now = next((name for name in new if not name.startswith(".")), None)
            if now != first and now not in old:
                yield f"the target {now} goes before {first}, which was made by default"
        yield from (
            f"the variable {name} is set, which is used"
            for name in new
            if what == "variable" and name not in old and re.search(rf"\$[({{]{re.escape(name)}[)}}]", before)
        )
    yield from (
        f"{line.strip()[:80]!r} takes in another file"
        for line in after.split("\n")
        if re.match(r"\s*-?s?include\s", line) and line not in before.split("\n")
    )


def _same(old: str, new: str, make: bool) -> bool:
    """Whether they run the same, however a failure counts; a line of prerequisites, or one with stricter options, may
    be longer."""
    had, has = _core(old, make), _core(new, make)
    if had == has:
        return bool(had)
    targets = _TARGET.match(old), _TARGET.match(new)
    if make and all(targets) and targets[0][1] == targets[1][1]:
        return ";" not in targets[1][2] and set(targets[0][2].split()) <= set(targets[1][2].split())
    lists = _LIST.match(had), _LIST.match(has)
    if all(lists) and lists[0][1] == lists[1][1]:
        return set(re.split(r"[,\s]+", lists[0][2])) <= set(re.split(r"[,\s]+", lists[1][2]))
    words, more = had.split(), has.split()
    if not words or more[:1] != words[:1]:
        return False
    extra = Counter(more) - Counter(words)
    return not Counter(words) - Counter(more) and all(_STRICTER.fullmatch(word) for word in extra)


def _core(line: str, make: bool) -> str:
    text = re.sub(r"^\t[-@+\s]*", "", line) if make else _PREFIX.sub("", line)
    while (less := _FORGIVES.sub("", text)) != text:
        text = less
    return text.strip()


def _forgiven(line: str, make: bool) -> int:
    dash = make and bool(re.match(r"\t[@+\s]*-", line))
    text, count = line, int(dash)
    while found := _FORGIVES.search(text):
        text, count = text[: found.start()] + text[found.end() :], count + 1
    return count


def _only_loosens(line: str, make: bool) -> bool:
    """A line without which no less is checked."""
    return bool(_LOOSENS.search(line)) and not _CHECKS.search(_LOOSENS.sub("", _core(line, make)))


def _all_lines_count(path: str) -> bool:
    """In a build's own language most lines are what is built, as in a file of values; in the others, what is run."""
    return not re.search(
        r"(?:[mM]akefile|\.mk|pom\.xml|build\.gradle[^/]*|gradle\.properties|CMakeLists\.txt|\.toml|\.cfg|\.ini"
        r"|\.json|(?:vite|babel|playwright|cypress)\.config\.\w+|\.setup\.\w+"
        r"|\.rs|\.ac|\.bazel|BUILD|WORKSPACE|meson\.build|Dockerfile[^/]*|compose[^/]*\.ya?ml|\.npmrc"
        r"|\.babelrc[^/]*|\.env[^/]*)$",
        path,
    )
