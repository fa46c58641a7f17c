"""Java: a JUnit 4 class as the canary, tests turned by tree-sitter's syntax tree (java_expectations.py)."""

import random
import re
import secrets
from collections.abc import Callable, Collection

from coderepairrl.diffs import FileChange
from coderepairrl.grading.canary import Canary
from coderepairrl.grading.ids import to_junit
from coderepairrl.grading.languages import java_expectations, java_scan
from coderepairrl.grading.scan import Marks
from coderepairrl.grading.turns import TurnedExpectation
from coderepairrl.types import Task

SUFFIX = ".java"
# what javac, the machine and the builds of Java's projects read by themselves
PROTECTED: tuple[str, ...] = (
    "*.class",
    "*.jar",
    "*.jmod",
    "META-INF/",
    "junit-platform.properties",
    ".hotspotrc",
    ".hotspot_compiler",
    "pom.xml",
    "mvnw*",
    ".mvn",
    "*.gradle",
    "*.gradle.kts",
    "gradle.properties",
    "gradlew*",
    "build.xml",
    "ivy.xml",
    "BUILD",
    "BUILD.bazel",
    "WORKSPACE",
)
_ROOTS = ("", "src/test/java/", "src/test/", "src/", "test/", "tests/")  # of packages of tests


def canary() -> Canary:
    case, name = f"Test{secrets.token_hex(8)}", f"test_{secrets.token_hex(8)}"
    source = (
        f"public class {case} {{\n    @org.junit.Test\n    public void {name}() {{\n"
        "        org.junit.Assert.assertEquals(1, 2);\n    }\n}\n"
    )
    return Canary(f"{case}.java", case, case, name, source)


def places(test: str) -> list[str]:
    dotted = to_junit(test).rpartition("::")[0].partition("$")[0]
    return [f"{root}{dotted.replace('.', '/')}.java" for root in _ROOTS]


def helpers(path: str, text: str) -> list[str]:
    """None: the test command names all files that it compiles."""
    return []


def definition(name: str) -> re.Pattern[str]:
    return re.compile(rf"\bvoid\s+{re.escape(name)}\s*\(")


def turns(text: str, names: Collection[str], rng: random.Random) -> dict[str, list[TurnedExpectation]]:
    return java_expectations.turns(text, names, rng)


def scan(task: Task, change: FileChange, before: Callable[[str], str]) -> Marks:
    return java_scan.scan(task, change, before)
