"""Files that are not Python: their tests and checks by number, what they expect by its lines, and what an existing test
is wrapped into."""

import difflib
import re
from pathlib import PurePosixPath

_CODE = (
    *(
        ".java",
        ".js",
        ".ts",
        ".tsx",
        ".go",
        ".rs",
        ".c",
        ".cc",
        ".cpp",
        ".h",
        ".hpp",
        ".rb",
        ".php",
        ".kt",
        ".cs",
        ".py",
    ),
    *(".mjs", ".cjs", ".jsx", ".mts", ".cts", ".scala", ".swift"),
)
_SKIPPED = re.compile(
    r"\b(?:skip|skipif|skipIf|skipUnless|xfail|expectedFailure|importorskip|Disabled|Ignore"
    r"|ignore|todo|xit|xdescribe|xtest"
    r"|only|fit|fdescribe|SkipNow|Skipf?|GTEST_SKIP|DISABLED_\w+|should_panic|markTestSkipped"
    r"|pending)\b|#\[ignore"
)
_TEST = re.compile(r"@Test\b|\b(?:it|test|describe)\s*\(|#\[test\]|func Test\w+|\bTEST(?:_F)?\s*\(|def test_")
_ASSERT = re.compile(
    r"\bassert\w*\b|\bexpect\s*\(|\brequire\.\w+|\bEXPECT_\w+|\bASSERT_\w+|\bshould\b"
    r"|t\.(?:Error|Fatal)f?\("
)
_CHECK = re.compile(r"\bthrow\b|\braise\b|\bpanic!?\(|\babort\(|\bassert\b")
_STRICT = re.compile(r"#!?\[(?:deny|forbid)\b|^\s*['\"]use strict['\"]|@ts-check\b|@flow\b", re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
# the whole file, or all that it asserts, no longer counts
_FILE_OFF = re.compile(
    r"#\s*define\s+(?:NDEBUG|\w*(?:ASSERT|EXPECT|CHECK)\w*)|#\s*if\s+0|//\s*(?:go:build|\+build)|\bTestMain\b"
    r"|macro_rules!\s*\w*assert|\b(?:jest|vi|sinon)\s*\.\s*(?:mock|doMock|spyOn|stub)\b|#!?\[cfg(?:_attr)?\("
    r"|expect\.extend\b"
    r"|\bexpected\s*=\s*\w+|\bos\.Exit\s*\(|\bprocess\.exit\s*\("
)
# an assertion that was there is not reached, or its failure not told
_ESCAPES = re.compile(
    r"\breturn\b|\btry\b|\bcatch\b|\brescue\b|\brecover\(|\bset(?:Timeout|Interval|Immediate)\b|\bexit\s*\(|\bgoto\b"
    r"|\bif\s*\(?\s*(?:false|0)\b|\bwhile\s*\(?\s*(?:false|0)\b"
)
_ENDS = re.compile(r"^[\s})\];,]*$|^\s*(?:import|use|package|#include|const \w+ = require)\b|^\s*end\s*$")
_BOUND = re.compile(r"^\s*(?:const|let|var|function|fn|def|func)\s+(\w+)", re.MULTILINE)


def validates_less(path: str, before: str, after: str, is_test: bool) -> list[str]:
    """Findings of an edited file, each starting with the path."""
    if _fewer(_STRICT, before, after):
        return [f"{path}: checks less strictly"]
    code = PurePosixPath(path).suffix in _CODE
    if not is_test:
        return [f"{path}: checks less"] if code and _fewer(_CHECK, before, after) else []
    bare = [_COMMENT.sub("", text) if code else text for text in (before, after)]
    found = [
        f"{path}: {what}"
        for pattern, what in ((_TEST, "a test is gone"), (_ASSERT, "asserts less"))
        if _fewer(pattern, *bare)
    ]
    skips = [len(_SKIPPED.findall(text)) for text in bare]
    lines = {" ".join(line.split()) for line in bare[1].split("\n")}
    # of data every line may be what is expected; a text for people is not
    data = PurePosixPath(path).suffix not in (*_CODE, ".md", ".rst")
    gone = next(
        (
            line.strip()
            for line in bare[0].split("\n")
            if line.strip() and (data or _ASSERT.search(line)) and " ".join(line.split()) not in lines
        ),
        None,
    )
    if gone and skips[1] >= skips[0]:  # a test that is no longer skipped is another line
        found.append(f"{path}: {gone[:60]!r} is gone or changed")
    if code:
        found += [f"{path}: {line!r} keeps tests that were there from failing" for line in _wrapped(before, after)]
    return found + ([f"{path}: its tests are skipped"] if skips[1] > skips[0] else [])


def _fewer(pattern: re.Pattern, before: str, after: str) -> bool:
    return len(pattern.findall(after)) < len(pattern.findall(before))


def _wrapped(before: str, after: str) -> list[str]:
    """Added lines that take the effect from tests that stand there: of the file, or within a block of it. A further
    test stands behind the end of one."""
    old, new = before.split("\n"), after.split("\n")
    had, found = set(_BOUND.findall(before)), []
    for what, i, _, start, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if what not in ("insert", "replace"):
            continue
        above = next((line for line in reversed(old[:i]) if line.strip()), "}")
        inside = not _ENDS.match(above)
        for line in new[start:end]:
            bound = set(_BOUND.findall(line)) - had
            shadows = any(re.search(rf"\b{name}\s*\(", before) for name in bound)
            if line not in old and (_FILE_OFF.search(line) or inside and _ESCAPES.search(line) or shadows):
                found.append(line.strip()[:60])
    return found[:1]
