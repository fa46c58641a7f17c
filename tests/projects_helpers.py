"""Shared by several tests: test_rewards_projects.py and others."""

from dataclasses import replace

from judge_helpers import LOG_TASK, PYTEST, PYTEST_TASK, UNITTEST_TASK

BROKEN_LATER = "\n\ndef test_other():\n    assert False, 'needs the network'\n"


MARKED = PYTEST.replace("from lib", "pytestmark = pytest.mark.unit\nfrom lib", 1)


MARKERS = "markers =\n    unit: fast\n"


ALONE = (
    PYTEST + "\n\ndef test_alone():\n    import os\n"
    "    assert not [name for name in os.listdir('.') if name.startswith('test_')]\n"
)


def project(files, hidden=PYTEST, task=PYTEST_TASK):
    """`files` are the project's own, at the base."""
    return replace(task, files=task.files | files, hidden_tests={"tests/test_hidden.py": hidden})


def arguments(task, *more):
    command = task.environment.test_command
    return replace(task, environment=replace(task.environment, test_command=(*command[:3], *more, *command[3:])))


def unlisted(task, code):
    return replace(task, hidden_tests={"test_hidden.py": task.hidden_tests["test_hidden.py"] + code})


PROJECTS = {
    "stops at the first failure": project({"pytest.ini": "[pytest]\naddopts = --maxfail=1\n"}, PYTEST + BROKEN_LATER),
    "stops, by pyproject.toml": project(
        {"pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-x'\n"}, PYTEST + BROKEN_LATER
    ),
    "stops, and runs the root's tests first": project(
        {
            "pytest.ini": "[pytest]\naddopts = -x\n",
            "conftest.py": "def pytest_collection_modifyitems(items):\n"
            "    items.sort(key=lambda item: item.nodeid.count('/'))\n",
        }
    ),
    "a marker filter": project({"pytest.ini": f"[pytest]\naddopts = -m unit\n{MARKERS}"}, MARKED),
    "a keyword filter": project({"setup.cfg": "[tool:pytest]\naddopts = -k 'TestHidden or keep'\n"}),
    "a hook that filters by marker": project(
        {
            "pytest.ini": f"[pytest]\n{MARKERS}",
            "conftest.py": "def pytest_collection_modifyitems(items):\n"
            "    items[:] = [item for item in items if item.get_closest_marker('unit')]\n",
        },
        MARKED,
    ),
    "a hook that filters by folder": project(
        {
            "conftest.py": "def pytest_collection_modifyitems(items):\n"
            "    items[:] = [item for item in items if not item.nodeid.startswith('test_')]\n"
        }
    ),
    "a hook that refuses what has no marker": project(
        {
            "pytest.ini": f"[pytest]\n{MARKERS}",
            "conftest.py": "import pytest\n\n\ndef pytest_collection_modifyitems(items):\n"
            "    if not all(item.get_closest_marker('unit') for item in items):\n"
            "        raise pytest.UsageError('mark it')\n",
        },
        MARKED,
    ),
    "a fixture that skips": project(
        {
            "pytest.ini": f"[pytest]\n{MARKERS}",
            "conftest.py": "import pytest\n\n\n@pytest.fixture(autouse=True)\ndef fast(request):\n"
            "    if request.node.get_closest_marker('unit') is None:\n        pytest.skip('slow')\n",
        },
        MARKED,
    ),
    "a hook that expects failures": project(
        {
            "conftest.py": "import pytest\n\n\ndef pytest_collection_modifyitems(items):\n    for item in items:\n"
            "        if '/' not in item.nodeid:\n            item.add_marker(pytest.mark.xfail)\n"
        }
    ),
    "a hook that forgives": project(
        {
            "conftest.py": "import pytest\n\n\n@pytest.hookimpl(hookwrapper=True)\n"
            "def pytest_runtest_makereport(item):\n"
            "    report = (yield).get_result()\n    if '/' not in item.nodeid and report.failed:\n"
            "        report.outcome, report.longrepr = 'passed', None\n"
        }
    ),
    "no unittest": project({"pytest.ini": "[pytest]\naddopts = -p no:unittest\n"}),
    "a root that can't be imported": project(
        {
            "conftest.py": "import pytest\n\n\ndef pytest_pycollect_makemodule(module_path, parent):\n"
            "    if module_path.parent == parent.config.rootpath:\n        raise ImportError('no host application')\n"
        }
    ),
    "an exit code of its own": project(
        {"conftest.py": "def pytest_sessionfinish(session):\n    session.exitstatus = 0\n"}
    ),
    "a threshold of coverage": project(
        {
            "conftest.py": "def pytest_sessionfinish(session):\n    session.exitstatus = 1\n",
            "pytest.ini": "[pytest]\naddopts = -p no:unittest\n",
        }
    ),
    "a test that looks at the root": replace(
        project({}, ALONE), pass_to_pass=(*PYTEST_TASK.pass_to_pass, "tests.test_hidden::test_alone")
    ),
    "a log and a filter": project({"pytest.ini": f"[pytest]\naddopts = -m unit\n{MARKERS}"}, MARKED, LOG_TASK),
    "unittest that stops": arguments(
        unlisted(
            UNITTEST_TASK, "\n\nclass Other(unittest.TestCase):\n    def test_other(self):\n        self.fail()\n"
        ),
        "-f",
    ),
}
