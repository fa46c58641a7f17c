"""The tools of other languages that an environment names: found on this machine, shown to its sandboxes read-only.

    Environment(tools=("jdk:17", "junit:4.13.2"), ...)
    -> tool_folders=("/usr/lib/jvm/...", "<cache>/tools/junit-...")

A toolchain is an installation of whoever runs this: `environments.tools` names folders, then PATH is asked. JUnit is a
folder in the cache: its jars, and the runner that writes its report, compiled there by the environment's own JDK.
Nothing of it can be written in a sandbox.
"""

import functools
import glob
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coderepairrl.environments.cache import BuildError, EnvironmentsConfig, StepError, Steps, cache_of, digest, once
from coderepairrl.types import Environment

LAYOUT = 1  # part of every name: raise it when what is made changes
RUNNER = Path(__file__).with_name("java") / "JUnitXmlRunner.java"
SYSTEM = Path("/usr/share/java")  # of Debian's packages, which build jars anew
_QUESTIONS = {  # what says its version, and how it is asked
    "jdk": ("javac", "-version"),
    "go": ("go", "version"),
    "node": ("node", "--version"),
    "rust": ("rustc", "--version"),
}
_VERSION = re.compile(r"\d+(?:\.\d+)+|\d+")


@dataclass(frozen=True)
class Jar:
    """One of Maven Central's, by its content; `system`: its name where a distribution has built it."""

    file: str
    sha256: str
    system: str


JUNIT = {
    "4.13.2": (
        Jar("junit-4.13.2.jar", "8e495b634469d64fb8acfa3495a065cbacc8a0fff55ce1e31007be4c16dc57d3", "junit4.jar"),
        Jar(
            "hamcrest-core-1.3.jar",
            "66fdef91e9739348df7a096aa384a5685f4e875584cce89386a7a47251c4d8e9",
            "hamcrest-core.jar",
        ),
    )
}


def with_tools(environment: Environment, config: EnvironmentsConfig) -> Environment:
    """With the tools' folders, and a lock that names what they are. A second the first time. Raises BuildError."""
    folders: list[str] = []
    made_of: list[Any] = [LAYOUT]
    try:
        for tool in environment.tools:
            name, _, version = tool.partition(":")
            is_junit = name == "junit"
            jdk = _of("jdk", environment.tools, folders) if is_junit else ""
            folder, *what = _junit(version, jdk, config) if is_junit else find_tool(name, version, config)
            folders.append(folder)
            made_of.append([tool, *what])
    except StepError as error:
        raise BuildError(environment.name, str(error)) from error
    return replace(environment, tool_folders=tuple(folders), lock=digest(*made_of))


def _of(name: str, tools: tuple[str, ...], folders: list[str]) -> str:
    """The folder of an earlier tool of that name."""
    found = [folder for tool, folder in zip(tools, folders, strict=False) if tool.partition(":")[0] == name]
    if not found:
        raise StepError(f"{tools[len(folders)]} needs a {name}, named before it in `tools`")
    return found[0]


@functools.lru_cache(maxsize=64)
def find_tool(name: str, version: str, config: EnvironmentsConfig) -> tuple[str, str]:
    """(folder, full version) of an installed one, "jdk" "17" or "17.0.9". Raises StepError."""
    if name not in _QUESTIONS:
        raise StepError(f"no tool {name!r}: those there are: {', '.join(['junit', *_QUESTIONS])}")
    program, question = _QUESTIONS[name]
    for path in _candidates(program, config):
        full = _answer(path, question)
        if (full + ".").startswith(version + "."):
            return os.path.dirname(os.path.dirname(path)), full
    raise StepError(
        f"{name} {version} is not installed ({program} in no folder of environments.tools, nor on PATH): install it, "
        "or name its folder in environments.tools"
    )


def _candidates(program: str, config: EnvironmentsConfig) -> Iterator[str]:
    for pattern in config.tools:
        for folder in sorted(glob.glob(os.path.expanduser(pattern)), reverse=True):
            yield os.path.realpath(f"{folder}/bin/{program}")
    if path := shutil.which(program):
        yield os.path.realpath(path)  # /usr/bin/javac is a link to a link into an installation


def _answer(path: str, question: str) -> str:
    """Its version; empty for what is no such program. Java 8 calls itself 1.8."""
    if not os.access(path, os.X_OK) or os.path.isdir(path):
        return ""
    done = subprocess.run([path, question], capture_output=True, text=True, cwd="/")
    found = _VERSION.search(done.stdout + done.stderr) if done.returncode == 0 else None
    if found is None:
        return ""
    return found[0].removeprefix("1.") if os.path.basename(path) == "javac" else found[0]


def _junit(version: str, jdk: str, config: EnvironmentsConfig) -> tuple[str, str]:
    """(folder of the jars and the runner, a hash of what it is made of). Raises StepError."""
    if version not in JUNIT:
        raise StepError(f"no pinned junit {version!r}: those there are: {', '.join(JUNIT)}")
    jars = [find_jar(jar, config) for jar in JUNIT[version]]
    runner = RUNNER.read_text()
    made_of = [*(_sha256(path) for path in jars), digest(runner)]
    folder = cache_of(config) / "tools" / f"junit-{digest(LAYOUT, *made_of)[:16]}"
    folder.parent.mkdir(exist_ok=True)

    def make(own: Path, steps: Steps) -> dict[str, Any]:
        for jar, path in zip(JUNIT[version], jars, strict=True):
            shutil.copyfile(path, own / jar.file)
        classpath = ":".join(str(own / jar.file) for jar in JUNIT[version])
        argv = [f"{jdk}/bin/javac", "-nowarn", "-cp", classpath, "-d", str(own / "classes"), str(RUNNER)]
        release = ["-source", "8", "-target", "8"]  # an older JDK may run it, too
        steps.run("compiling the runner", [*argv[:1], *release, *argv[1:]])
        steps.run("packing the runner", [f"{jdk}/bin/jar", "cf", str(own / "runner.jar"), "-C", f"{own}/classes", "."])
        shutil.rmtree(own / "classes")
        return {"jars": [str(path) for path in jars], "made_of": made_of}

    once(folder, f"of junit {version}", config, make)
    return str(folder), digest(*made_of)


def find_jar(jar: Jar, config: EnvironmentsConfig) -> Path:
    """The jar with the pinned content in a folder of `environments.jars`, else the distribution's. Raises
    StepError."""
    wrong = []
    for folder in map(os.path.expanduser, config.jars):
        for path in sorted(Path(folder).rglob(jar.file)):
            if _sha256(path) == jar.sha256:
                return path
            wrong.append(str(path))
    if (SYSTEM / jar.system).is_file():
        return SYSTEM / jar.system
    other = f" ({', '.join(wrong)}: other content)" if wrong else ""
    raise StepError(
        f"{jar.file} is in no folder of environments.jars{other}: take Maven Central's (sha256 {jar.sha256}), or "
        f"install the distribution's {jar.system} (Debian: apt install junit4 libhamcrest-java)"
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
