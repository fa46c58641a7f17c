"""Benchmarks of Java's programs: read in the form in which they are published, measured, judged, the known answer in no
checkout."""

import asyncio

import pytest
from sandbox_helpers import sandbox_config

from coderepairrl.curation.measuring import measured
from coderepairrl.environments import BuildError, EnvironmentsConfig
from coderepairrl.errors import TaskError
from coderepairrl.rewards import grade
from coderepairrl.tasks import HumanEvalJavaConfig, QuixBugsJavaConfig, load_tasks
from coderepairrl.tasks.building import build_task

BUGGY = (
    "package java_programs;\npublic class INC {\n    public static int inc(int n) {\n        return n + 2;\n    }\n}\n"
)
VALUE = (
    "package java_programs;\npublic class VALUE {\n"
    "    public static int value(Node node) {\n        return 0;\n    }\n}\n"
)
TEST = """package java_testcases.junit;
public class INC_TEST {
    @org.junit.Test(timeout = 3000)
    public void test_0() throws java.lang.Exception {
        int result = java_programs.INC.inc((int) 1);
        org.junit.Assert.assertEquals(QuixFixOracleHelper.format(2), QuixFixOracleHelper.format(result));
    }

    @org.junit.Test(timeout = 3000)
    public void test_1() throws java.lang.Exception {
        org.junit.Assert.assertEquals((int) 8, java_programs.INC.inc((int) 7));
    }
}
"""


def laid(folder, texts):
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return str(folder)


@pytest.fixture
def quixbugs(tmp_path):
    """A clone of two programs: one whose tests have a helper, one with nodes."""
    correct = {
        "INC": BUGGY.replace("n + 2", "n + 1"),
        "VALUE": VALUE.replace("0;", "node.value;").replace(";\n", ";\nimport java_programs.Node;\n", 1),
    }
    texts = {f"correct_java_programs/{name}.java": text for name, text in correct.items()}
    texts = {path: text.replace("package java", "package correct_java") for path, text in texts.items()}
    texts |= {
        "java_programs/INC.java": BUGGY,
        "java_programs/VALUE.java": VALUE,
        "java_programs/Node.java": "package java_programs;\npublic class Node { public int value = 3; }\n",
        "java_programs/WeightedEdge.java": "package java_programs;\npublic class WeightedEdge { }\n",
        "python_programs/inc.py": "def inc(n):\n    return n + 2\n\n\n'''\nOne more.\n'''\n",
        "python_programs/value.py": "def value(node):\n    return 0\n\n\n'''\nOf a node.\n'''\n",
        "java_testcases/junit/INC_TEST.java": TEST,
        "java_testcases/junit/VALUE_TEST.java": "package java_testcases.junit;\npublic class VALUE_TEST { }\n",
        "java_testcases/junit/QuixFixOracleHelper.java": "package java_testcases.junit;\n"
        'public class QuixFixOracleHelper { public static String format(Object o) { return o + "!"; } }\n',
    }
    return laid(tmp_path / "QuixBugs", texts)


@pytest.fixture
def humaneval(tmp_path):
    code = (
        "package humaneval.buggy;\n\n/* One more. */\npublic class INC {\n"
        "    public static int inc(int n) {\n        return n + 2;\n    }\n}\n"
    )
    test = TEST.replace("java_testcases.junit", "humaneval").replace("INC_TEST", "TEST_INC")
    texts = {
        "src/main/java/humaneval/buggy/INC.java": code,
        "src/main/java/humaneval/correct/INC.java": code.replace(".buggy", ".correct").replace("n + 2", "n + 1"),
        "src/test/java/humaneval/TEST_INC.java": test.replace("java_programs", "humaneval.buggy").replace(
            "QuixFixOracleHelper.format", ""
        ),
    }
    return laid(tmp_path / "human-eval-java", texts)


def test_quixbugs_shows_the_program_its_helpers_and_what_it_should_do(quixbugs):
    inc, value = load_tasks(QuixBugsJavaConfig(source=quixbugs))["heldout"]
    assert inc.task_id == "quixbugs-java-inc" and inc.files == {"java_programs/INC.java": BUGGY}
    assert value.files.keys() == {f"java_programs/{name}.java" for name in ("VALUE", "Node", "WeightedEdge")}
    assert inc.test_selection == tuple(
        f"java_testcases/junit/{name}.java" for name in ("INC_TEST", "QuixFixOracleHelper")
    )
    assert "One more." in inc.problem_statement and "correct_" not in inc.oracle_patch + value.oracle_patch
    assert inc.environment.language == "java" and inc.environment.tools == ("jdk:17", "junit:4.13.2")


@pytest.mark.parametrize("name", ["quixbugs", "humaneval"])
def test_a_program_is_measured_and_judged(name, request, tmp_path):
    config = {"quixbugs": QuixBugsJavaConfig, "humaneval": HumanEvalJavaConfig}[name]
    task = load_tasks(config(source=request.getfixturevalue(name)))["heldout"][0]

    async def main():
        sandbox = sandbox_config("bubblewrap", tmp_path)
        built = await measured(await build_task(task, EnvironmentsConfig()), sandbox)
        return built, await grade(built, built.oracle_patch, sandbox), await grade(built, "", sandbox)

    try:
        built, gold, empty = asyncio.run(main())
    except BuildError as error:
        pytest.skip(str(error))
    assert len(built.fail_to_pass) == 2 and not built.pass_to_pass
    assert gold.resolved and not gold.tampered and gold.evidence == "junit+canary" and not empty.resolved, (gold, empty)


@pytest.mark.parametrize("config", [QuixBugsJavaConfig, HumanEvalJavaConfig])
def test_a_folder_that_is_no_clone_is_refused_with_its_address(tmp_path, config):
    with pytest.raises(TaskError, match="give the folder of a clone of https://github.com/"):
        load_tasks(config(source=str(tmp_path)))
