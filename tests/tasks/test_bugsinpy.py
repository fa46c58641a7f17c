"""BugsInPy's form: what becomes of a bug's two commits, its commands and its requirements, and that its tests judge."""

import asyncio
import sys
from dataclasses import replace

import pytest
from environments_helpers import git
from sandbox_helpers import sandbox_config

from coderepairrl.curation.measuring import measured
from coderepairrl.errors import TaskError
from coderepairrl.rewards import grade
from coderepairrl.tasks import load_tasks
from coderepairrl.tasks.bugsinpy import BugsInPyConfig, corrections
from coderepairrl.tasks.building import resolve_patches

BUGGY = {
    "setup.py": "from setuptools import setup\nsetup(name='twice', py_modules=['twice'])\n",
    "twice.py": "def twice(n):\n    return n + n + 1\n",
    "notes.txt": "of the bug\n",
    "tests/test_twice.py": "from twice import twice\n\n\ndef test_type():\n    assert isinstance(twice(2), int)\n",
    "tests/data/cases.txt": "2 5\n",
}
FIXED = {
    "twice.py": "def twice(n):\n    return n + n\n",
    "notes.txt": "of the repair\n",
    "tests/test_twice.py": "import pathlib\nimport unittest\n\nfrom twice import twice\n\n\n"
    "def test_type():\n    assert isinstance(twice(2), int)\n\n\n"
    "class TwiceTest(unittest.TestCase):\n    def test_cases(self):\n"
    "        given, expected = pathlib.Path(__file__).with_name('data').joinpath('cases.txt').read_text().split()\n"
    "        self.assertEqual(twice(int(given)), int(expected))\n",
    "tests/data/cases.txt": "2 4\n",
    "tests/data/odd.bin": b"\xff\0\1",
}
MESSAGE = "Twice is n and n (#7)\n\nNot one more.\n\nCo-authored-by: Some One <a@b>\n"
NAMED = "tests.test_twice.TwiceTest.test_cases"
REQUIREMENTS = "\r\n".join(
    ("attrs==19.3.0", "-e git+https://github.com/Some/twice@26c9465#egg=Twice", "pywin32==227", "pkg-resources==0.0.0")
)
SETUP = "touch tests/__init__.py\r\npip3 install mock\npython setup.py install\n"


def commit(folder, files, message):
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", message)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def bug(tmp_path):
    """The folder of the one bug of a benchmark in tmp_path/benchmark, whose project is cloned in tmp_path/clones."""
    clone, folder = tmp_path / "clones/Some/twice", tmp_path / "benchmark/projects/twice/bugs/1"
    clone.mkdir(parents=True)
    folder.mkdir(parents=True)
    git(clone, "init", "-q")
    buggy, fixed = commit(clone, BUGGY, "before"), commit(clone, FIXED, MESSAGE)
    (folder.parents[1] / "project.info").write_text('github_url="https://github.com/Some/twice/"\nstatus="OK" \n')
    (folder / "bug.info").write_text(
        f'python_version="3.7.3"\nbuggy_commit_id="{buggy}"\nfixed_commit_id = "{fixed}"\n'
        'test_file="tests/test_twice.py;tests/data/cases.txt"'
    )
    patch = git(clone, "diff", buggy, fixed, "--", "twice.py", "tests/test_twice.py")
    (folder / "bug_patch.txt").write_text(f"{patch}\n\n")
    (folder / "run_test.sh").write_text(f"python -m unittest -q {NAMED}")
    (folder / "requirements.txt").write_bytes(REQUIREMENTS.encode("utf-16"))
    (folder / "setup.sh").write_text(SETUP)
    return folder


def config(bug, **fields):
    folder = bug.parents[4]
    return BugsInPyConfig(source=str(folder / "benchmark"), clones=str(folder / "clones/{owner}/{name}"), **fields)


def test_a_bug_is_its_two_commits(bug):
    (task,) = load_tasks(config(bug))["heldout"]
    recipe = task.environment.recipe
    assert task.task_id == "bugsinpy-twice-1" and task.test_selection == ("tests/test_twice.py",)
    assert (recipe.source, recipe.python) == ("git:Some/twice", "3.7")
    assert recipe.revision == task.metadata["base_commit"] and "+    return n + n\n" in task.oracle_patch
    assert "tests/" not in task.oracle_patch and "notes.txt" not in task.oracle_patch + task.test_patch
    assert {"tests/data/cases.txt", "tests/data/odd.bin"} <= {
        line.split(" b/")[1] for line in task.test_patch.split("\n") if line.startswith("diff --git")
    }
    assert "Not one more." in task.problem_statement and NAMED in task.problem_statement
    assert "Co-authored-by" not in task.problem_statement


def test_its_requirements_are_what_its_authors_had_less_what_no_index_has(bug):
    recipe = load_tasks(config(bug))["heldout"][0].environment.recipe
    assert recipe.preferred == ("attrs==19.3.0",) and recipe.requirements[:3] == (".", "attrs", "mock")
    assert set(recipe.left_out) == {"pywin32", "pkg-resources", "touch tests/__init__.py"}
    assert not {"twice", "pywin32"} & set(recipe.requirements)
    assert len(recipe.build) == 1 and "pytest" in recipe.requirements


def test_its_own_tests_with_their_data_judge_it(bug, tmp_path):
    (task,) = load_tasks(config(bug))["heldout"]
    base = tmp_path / "base"
    git(tmp_path, "clone", "-q", str(tmp_path / "clones/Some/twice"), str(base))
    git(base, "checkout", "-q", task.metadata["base_commit"])
    place = replace(task.environment, base=str(base), python=sys.executable, recipe=None)
    task = resolve_patches(replace(task, environment=place))
    assert "tests/data/cases.txt" in task.hidden_tests and "odd.bin" in task.test_patch

    async def main():
        own = sandbox_config("bubblewrap", tmp_path)
        found = await measured(task, own)
        return found, await grade(found, found.oracle_patch, own), await grade(found, "", own)

    found, gold, empty = asyncio.run(main())
    assert found.fail_to_pass == ("tests.test_twice.TwiceTest::test_cases",)
    assert found.pass_to_pass == ("tests.test_twice::test_type",)
    assert gold.resolved and not gold.tampered and not empty.resolved, (gold, empty)


@pytest.mark.parametrize(
    "file, text, cause",
    [
        ("run_test.sh", "pytest", "names no test of tests/test_twice.py"),
        ("requirements.txt", "-e git+https://github.com/other/thing#egg=thing", "it installs -e git"),
        ("setup.sh", "make init", "only its publishers' image runs `make init`"),
        ("bug.info", 'buggy_commit_id="1"', "no 'fixed_commit_id'"),
        (
            "bug.info",
            f'python_version="3.7"\nbuggy_commit_id="{"1" * 40}"\nfixed_commit_id="2"\ntest_file="t.py"',
            "git",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(bug, capsys, file, text, cause):
    (bug / file).write_text(text)
    with pytest.raises(TaskError, match=f"bugsinpy-twice-1.*{cause}"):
        load_tasks(config(bug))
    assert load_tasks(config(bug, skip_unusable=True))["heldout"] == []
    assert "left out: bugsinpy-twice-1" in capsys.readouterr().out


def test_a_project_without_a_clone_is_one_refusal(bug):
    refused = []
    (bug.with_name("2")).mkdir()
    assert load_tasks(config(bug).model_copy(update={"clones": "nowhere/{owner}/{name}"}), refused)["heldout"] == []
    assert len(refused) == 1 and "git clone --bare https://github.com/Some/twice nowhere/Some/twice" in refused[0]


def test_corrections_are_of_projects():
    assert all(name and found for name, found in corrections().items())
