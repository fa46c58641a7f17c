"""Defects4J: bugs of Java projects' histories. https://github.com/rjust/defects4j (MIT), Just et al. 2014.

    tasks: {name: defects4j, source: data/defects4j, projects: [Cli, Csv]}

The base is the fixed commit with the bug's own patch made undone (`src.patch` leads from fixed to buggy), so that
nothing but the bug is in it; the oracle is its reverse. The files of the tests that show the bug are hidden and the
other relevant tests stay. No issue's text is in it: the problem statement has what the tests say. Built by javac of one
JDK alone, without the command line of Defects4J: what does not compile so is refused by admission. Which tests must
pass is measured (docs/benchmarks.md).
"""

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import PositiveFloat

from coderepairrl.config import Config
from coderepairrl.errors import TaskError
from coderepairrl.tasks import javac, programs
from coderepairrl.types import Recipe, Task

URL = "https://github.com/rjust/defects4j"
REPOSITORIES = {
    "Cli": "apache/commons-cli",
    "Codec": "apache/commons-codec",
    "Collections": "apache/commons-collections",
    "Compress": "apache/commons-compress",
    "Csv": "apache/commons-csv",
    "Gson": "google/gson",
    "JacksonCore": "FasterXML/jackson-core",
    "Jsoup": "jhy/jsoup",
    "Lang": "apache/commons-lang",
    "Math": "apache/commons-math",
    "Time": "JodaOrg/joda-time",
}
LATIN = ("Lang", "Math", "Cli")  # projects whose older sources are no UTF-8; what is ASCII is both
SAID = 12  # lines of what a test says


class Defects4JConfig(Config):
    """Defects4J: a bug of a Java project, with the tests that showed it."""

    name: Literal["defects4j"] = "defects4j"
    source: str  # folder of a clone of its repository
    # as Defects4J calls them; besides Collections, Compress, Gson, JacksonCore, Math and Time
    projects: tuple[str, ...] = ("Cli", "Codec", "Csv", "Jsoup", "Lang")
    jdk: str = "17"  # version of the JDK, of environments.tools
    level: str = "8"  # of the language that its sources are taken for
    test_timeout_s: PositiveFloat = 300.0  # of a bug's relevant tests, all together


def load(config: Defects4JConfig) -> dict[str, list[Task]]:
    """Environments not built. Raises TaskError."""
    folder = programs.folder_of(config.source, "framework/projects", URL) / "framework/projects"
    tasks = []
    for project in config.projects:
        if project not in REPOSITORIES:
            raise TaskError(f"tasks.projects: no project {project!r}: those there are: {', '.join(REPOSITORIES)}")
        with (folder / project / "active-bugs.csv").open() as file:
            tasks += [to_task(config, folder / project, row) for row in csv.DictReader(file)]
    return {"train": [], "heldout": tasks}


def to_task(config: Defects4JConfig, folder: Path, row: dict[str, str]) -> Task:
    project, number, commit = folder.name, row["bug.id"], row["revision.id.fixed"]
    with (folder / "dir-layout.csv").open() as file:
        layouts = {line[0]: line[1:3] for line in csv.reader(file)}
    sources, tests = layouts.get(commit, ["src/main/java", "src/test/java"])
    trigger = programs.text_of(folder / "trigger_tests" / number)
    shown = list(dict.fromkeys(re.findall(r"^--- ([\w.]+)", trigger, re.M)))
    relevant = programs.text_of(folder / "relevant_tests" / number).split()
    hidden = tuple(path_of(tests, one) for one in shown)
    selection = tuple(dict.fromkeys([*hidden, *(path_of(tests, one) for one in relevant)]))
    options = ["-source", config.level, "-target", config.level]
    options += ["-encoding", "ISO-8859-1"] if project in LATIN else []
    resources = [sources, tests, "src/main/resources", "src/test/resources"]
    more = [word for one in resources for word in ("--resources", one)] + ["--test-sources", tests]
    more += [word for one in options for word in ("--javac", one)]
    place = javac.environment(
        f"defects4j-{project}-{number}",
        config.jdk,
        (sources,),
        more=tuple(more),
        protected=("src/test/",),
        timeout_s=config.test_timeout_s,
    )
    recipe = Recipe(f"git:{REPOSITORIES[project]}", commit, "", withheld=hidden)
    return Task(
        task_id=f"defects4j-{project.lower()}-{number}",
        problem_statement=statement(project, trigger),
        # its tests are of where they were written
        environment=replace(place, recipe=recipe, variables={"TZ": "America/Los_Angeles"}),
        files={},
        hidden_tests={},
        test_selection=selection,
        fail_to_pass=(),
        pass_to_pass=(),
        oracle_patch="",
        bug_patch=programs.text_of(folder / "patches" / f"{number}.src.patch"),
        metadata={"repo": REPOSITORIES[project], "base_commit": commit, "language": "java", "split": "heldout"},
    )


def path_of(tests: str, name: str) -> str:
    return f"{tests}/{name.partition('$')[0].replace('.', '/')}.java"


def statement(project: str, trigger: str) -> str:
    """What the tests that show the bug say, each in a few lines."""
    parts = [part.strip().split("\n")[:SAID] for part in re.split(r"^--- ", trigger, flags=re.M) if part.strip()]
    said = "\n\n".join("\n".join(lines) for lines in parts)
    return f"{project} has a bug. Tests that you don't see show it; this is what they say:\n\n{said}\n\nRepair it."
