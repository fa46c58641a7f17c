"""Defects4J: a bug of a project's history, in the form in which it is published; what shows it is in no checkout."""

import asyncio

import pytest
from environments_helpers import git
from sandbox_helpers import sandbox_config

from coderepairrl.curation.admission import validate
from coderepairrl.environments import BuildError, EnvironmentsConfig
from coderepairrl.errors import TaskError
from coderepairrl.tasks import Defects4JConfig, load_tasks
from coderepairrl.tasks.building import build_task

FIXED = (
    "package calc;\n\npublic class Calc {\n    public static int add(int a, int b) {\n        return a + b;\n    }\n}\n"
)
SHOWS = (
    "package calc;\n\nimport org.junit.*;\n\npublic class AddTest {\n    @Test\n    public void adds() {\n"
    "        Assert.assertEquals(5, Calc.add(2, Help.THREE));\n    }\n}\n"
)
KEEPS = SHOWS.replace("AddTest", "ZeroTest").replace("(5, Calc.add(2, Help.THREE))", "(0, Calc.add(0, 0))")
OTHERS = {
    "src/test/java/calc/Help.java": "package calc;\n\nclass Help {\n    static final int THREE = 3;\n}\n",
    "src/test/java/calc/OldTest.java": "package calc;\n\npublic class OldTest extends not.there.Case {\n}\n",
}
PATCH = """diff --git a/src/main/java/calc/Calc.java b/src/main/java/calc/Calc.java
--- a/src/main/java/calc/Calc.java
+++ b/src/main/java/calc/Calc.java
@@ -2,6 +2,6 @@

 public class Calc {
     public static int add(int a, int b) {
-        return a + b;
+        return a - b;
     }
 }
""".replace("@@\n\n", "@@\n \n")


@pytest.fixture
def given(tmp_path):
    """(its configuration, that of the mirror): one bug of a project that calls itself Csv."""
    project = tmp_path / "mirrors/commons-csv"
    texts = {"src/main/java/calc/Calc.java": FIXED, "src/test/java/calc/AddTest.java": SHOWS, **OTHERS}
    for path, text in (texts | {"src/test/java/calc/ZeroTest.java": KEEPS}).items():
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text(text)
    git(project, "init", "-q")
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "fixed")
    commit = git(project, "rev-parse", "HEAD")
    published = {
        "active-bugs.csv": "bug.id,revision.id.buggy,revision.id.fixed,report.id,report.url\n"
        f"1,{'0' * 40},{commit},CSV-1,https://example.org\n",
        "dir-layout.csv": f"{commit},src/main/java,src/test/java\n",
        "trigger_tests/1": "--- calc.AddTest::adds\njava.lang.AssertionError: expected:<5> but was:<-1>\n\tat calc\n",
        "relevant_tests/1": "calc.AddTest\ncalc.ZeroTest\ncalc.OldTest\n",
        "patches/1.src.patch": PATCH,
    }
    folder = tmp_path / "defects4j"
    for name, text in published.items():
        path = folder / "framework/projects/Csv" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    mirrors = EnvironmentsConfig(cache=str(tmp_path / "cache"), mirrors=(f"{tmp_path}/mirrors/{{name}}",))
    return Defects4JConfig(source=str(folder), projects=("Csv",)), mirrors


def test_a_bug_is_built_measured_and_admitted_and_what_shows_it_is_hidden(given, tmp_path):
    config, mirrors = given
    (task,) = load_tasks(config)["heldout"]
    assert "expected:<5> but was:<-1>" in task.problem_statement and task.task_id == "defects4j-csv-1"
    try:
        built = asyncio.run(build_task(task, mirrors))
    except BuildError as error:
        pytest.skip(str(error))
    checkout = {path.name for path in (tmp_path / "cache/built").glob("*/checkout/**/*.java")}
    assert checkout == {"Calc.java", "Help.java", "ZeroTest.java", "OldTest.java"}
    assert built.hidden_tests == {"src/test/java/calc/AddTest.java": SHOWS}
    assert "a - b" in built.files["src/main/java/calc/Calc.java"] and "+        return a + b;" in built.oracle_patch
    decision = asyncio.run(validate(task, mirrors, sandbox_config("bubblewrap", tmp_path), repeats=1))
    assert decision.admitted and decision.evidence == "junit+canary", decision
    assert decision.fail_to_pass == ("calc.AddTest::adds",) and decision.pass_to_pass == ("calc.ZeroTest::adds",)


def test_a_project_that_is_not_known_is_refused_by_name(given):
    with pytest.raises(TaskError, match="no project 'Chart': those there are: Cli"):
        load_tasks(given[0].model_copy(update={"projects": ("Chart",)}))
