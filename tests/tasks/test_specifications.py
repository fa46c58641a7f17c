"""Published specifications: where they are read from, what becomes of them, and that each is translated or refused with
a reason."""

import hashlib
import json
import re
import zipfile
from pathlib import Path

import pytest

from coderepairrl.errors import TaskError
from coderepairrl.tasks import SweBenchConfig, SweGymConfig, load_tasks, specifications
from coderepairrl.tasks.build_rows import INSTALL, Correction
from coderepairrl.tasks.repository_recipes import repositories
from coderepairrl.tasks.translation import WRITTEN, Untranslatable, translate

TABLES = '''
"""Its own words."""
from enum import Enum  # the real one imports no more than the standard library
SPECIFICATIONS = {
    "Some/Thing": {
        k: {
            "python": "3.9",
            "packages": "requirements.txt",
            "pre_install": [
                "apt-get update && apt-get install -y graphviz",
                "sed -i 's/a>=1,<2/a<2/' setup.py",
                "[ -f setup.cfg ] && sed -i 's/x;y/z/' setup.cfg",
            ],
            "install": "python -m pip install -e '.[test]' --verbose",
            "pip_packages": ["tox==4.16.0", "tox-current-env==0.0.11", "Jinja2==3.0.3", "pytest"],
            "eval_commands": ["export LANG=en_US.UTF-8", "export PATH=$PATH:/x", "sed -i 's/a/b/' /etc/locale.gen"],
            "test_cmd": "tox --current-env -epy39 -v --",
        }
        for k in ["1.0", "v2.1"]
    },
    "some/scientific": {
        "0.1": {
            "python": "3.10", "packages": "environment.yml", "install": "python -m pip install -e .",
            "pip_packages": ["numpy==1.23.0"], "test_cmd": "pytest -rA",
        },
        "0.2": {"packages": "environment.yml", "install": "pip install -ve . -Ceditable-verbose=true",
                "test_cmd": "pytest -rA"},
        "0.3": {"python": "3.6", "packages": "'numpy=1.19' scipy", "pip_packages": ["numpy==1.19.2"],
                "install": "python setup.py build; python setup.py install", "test_cmd": "pytest"},
    },
    "some/made": {"1": {"python": "3.9", "install": "make init", "test_cmd": "pytest"}},
    "some/tool": {"1": {"python": "3.9", "test_cmd": "python"}},
    "some/nowhere": {"1": {"python": "3.9", "packages": "requirements.txt", "install": "pip install .",
                           "test_cmd": "pytest"}},
    "some/parts": {"1": {
        "python": "3.9", "test_cmd": "pytest -n0 -rA",
        "install": "pip install -r reqs/test.txt; pip install --upgrade wheel \\"x<3\\"; pip install -e lib/; hash -r;",
    }},
}
MAP_REPO_VERSION_TO_SPECS_PY = SPECIFICATIONS
MAP_REPO_TO_REQS_PATHS = {"Some/Thing": ["dev.txt", "requirements.txt"]}
MAP_REPO_TO_ENV_YML_PATHS = {"some/scientific": ["ci/environment.yml", "environment.yml"]}
'''
ROW = {
    "instance_id": "some__thing-1",
    "repo": "some/thing",
    "base_commit": "a" * 40,
    "version": "1.0",
    "created_at": "2019-10-13T11:35:29Z",
    "problem_statement": "It breaks.",
    "patch": "diff --git a/lib.py b/lib.py\n--- a/lib.py\n+++ b/lib.py\n@@ -1 +1 @@\n-a = 1\n+a = 2\n",
    "test_patch": "diff --git a/tests/test_a.py b/tests/test_a.py\n--- a/tests/test_a.py\n+++ b/tests/test_a.py\n"
    "@@ -1 +1,2 @@\n a = 1\n+b = 2\n",
    "FAIL_TO_PASS": ["tests/test_a.py::test_b"],
    "PASS_TO_PASS": ["tests/test_a.py::test_c"],
}


@pytest.fixture
def folder(tmp_path):
    """A swebench with specifications of our own."""
    path = tmp_path / "unpacked/swebench/harness/constants/python.py"
    path.parent.mkdir(parents=True)
    path.write_text(TABLES)
    return str(tmp_path / "unpacked")


@pytest.fixture
def translated(folder):
    return lambda repository, version, correction=None: translate(
        specifications.tables(folder), repository, version, correction
    )


def task_of(folder, tmp_path, kind=SweBenchConfig, **changes):
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps(ROW | changes) + "\n")
    (task,) = [t for tasks in load_tasks(kind(source=str(source), specifications=folder)).values() for t in tasks]
    return task


# ---- what a row becomes


@pytest.mark.parametrize("kind", [SweBenchConfig, SweGymConfig])
def test_a_row_without_a_recipe_of_ours_is_built_as_its_publishers_say(folder, tmp_path, kind):
    environment = task_of(folder, tmp_path, kind).environment
    recipe = environment.recipe
    assert (recipe.python, recipe.source, recipe.revision) == ("3.9", "git:some/thing", "a" * 40)
    assert recipe.requirements[:2] == (".[test]", "--first-of dev.txt requirements.txt")
    assert recipe.preferred == ("Jinja2==3.0.3",) and {"Jinja2", "pytest", "pip"} <= set(recipe.requirements)
    assert recipe.build == (f"SETUPTOOLS_SCM_PRETEND_VERSION=1.0 LANG=C.UTF-8 {INSTALL}",)
    assert environment.log_parser is None and "pytest" in environment.test_command


@pytest.mark.parametrize("created, day", [("2019-01-01", WRITTEN), ("2025-02-03", "2025-02-03T00:00:00Z")])
def test_requirements_are_of_the_rows_day_but_of_none_before_the_specifications_were_written(
    folder, tmp_path, created, day
):
    assert task_of(folder, tmp_path, created_at=created).environment.recipe.exclude_newer == day


def test_recipes_yaml_wins_where_it_has_an_entry(folder, tmp_path):
    recipe = task_of(folder, tmp_path, repo="sqlfluff/sqlfluff", version="0.6").environment.recipe
    assert recipe.requirements[0] == "." and recipe.preferred == () and recipe.exclude_newer == ROW["created_at"]


def test_a_repository_that_nobody_specifies_is_refused_with_the_way_out(folder, tmp_path):
    with pytest.raises(TaskError, match="no recipe for some/other: .*specifies no some/other '1.0': add one, or use"):
        task_of(folder, tmp_path, repo="some/other")


def test_a_row_with_an_image_needs_no_specification(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps(ROW) + "\n")
    config = SweBenchConfig(source=str(source), specifications="/nowhere", environments="images")
    assert load_tasks(config)["heldout"][0].environment.image


# ---- translation


def test_edits_stay_commands_before_the_requirements_are_read_and_what_root_does_is_left_out_by_name(translated):
    built = translated("some/thing", "1.0")
    assert built.prepare == ("sed -i 's/a>=1,<2/a<2/' setup.py", "[ -f setup.cfg ] && sed -i 's/x;y/z/' setup.cfg")
    assert {"apt-get update", "apt-get install -y graphviz", "tox==4.16.0", "export PATH=$PATH:/x"} <= set(
        built.left_out
    )
    assert built.variables["LANG"] == "C.UTF-8" and "PATH" not in built.variables


def test_a_version_is_told_to_setuptools_scm(translated):
    assert translated("Some/Thing", "v2.1").variables["SETUPTOOLS_SCM_PRETEND_VERSION"] == "2.1"


def test_the_later_pin_of_a_package_wins_and_old_ways_to_install_are_an_editable_installation(translated):
    built = translated("some/scientific", "0.3")
    assert built.preferred == ("numpy==1.19.2",) and built.requirements == (".", "numpy", "scipy")
    assert built.build == (INSTALL,) and built.python == "3.6"


def test_commands_in_one_line_are_taken_one_by_one(translated):
    built = translated("some/parts", "1")
    assert built.requirements == ("./lib", "--first-of reqs/test.txt", "wheel", "x<3")
    assert built.build == (INSTALL.removesuffix(".") + "lib",) and built.left_out == ("hash -r",)


def test_a_correction_leaves_out_packages_and_says_so(translated):
    whole = translated("some/scientific", "0.1")
    assert whole.requirements[1] == "--conda ci/environment.yml environment.yml"
    less = translated("some/scientific", "0.1", Correction(without=("cdms2",), requirements=("lxml",), python="3.11"))
    assert less.requirements[1].endswith(" --without cdms2") and less.left_out == ("cdms2",)
    assert less.requirements[-1] == "lxml" and less.python == "3.11"
    none = translated("some/scientific", "0.1", Correction(packages=()))
    assert none.requirements == (".", "numpy")


@pytest.mark.parametrize(
    "repository, version, cause",
    [
        ("some/scientific", "0.2", "leaves the Python of some/scientific 0.2 to conda"),
        ("some/scientific", "9", "specifies no some/scientific '9'"),
        ("some/made", "1", "only its publishers' image runs `make init`"),
        ("some/tool", "1", "test command 'python' is none of"),
        ("some/nowhere", "1", "doesn't say where some/nowhere has its requirements.txt"),
    ],
)
def test_what_pip_alone_cannot_do_is_refused_by_name(translated, repository, version, cause):
    with pytest.raises(Untranslatable, match=cause):
        translated(repository, version)


# ---- where they are read from


def test_a_folder_without_tables_is_refused(tmp_path):
    with pytest.raises(TaskError, match=r"has no swebench/harness/constants/python.py .*name a clone"):
        specifications.tables(str(tmp_path))


def test_tables_that_do_not_run_are_refused_with_their_own_words(folder):
    (Path(folder) / "swebench/harness/constants/python.py").write_text("raise ValueError('of five')")
    with pytest.raises(TaskError, match=r"cannot be read \(ValueError: of five\)"):
        specifications.tables(folder)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The pinned package is one of ours, which the index has in a folder; the cache is empty."""
    name = tmp_path / "index/swebench-4.1.0-py3-none-any.whl"
    name.parent.mkdir()
    with zipfile.ZipFile(name, "w") as file:
        file.writestr("swebench/__init__.py", "raise ImportError('never imported')")
        file.writestr("swebench/harness/constants/python.py", TABLES)
        file.writestr("swebench-4.1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: swebench\nVersion: 4.1.0\n")
        file.writestr(
            "swebench-4.1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr("swebench-4.1.0.dist-info/RECORD", "")
    monkeypatch.setattr(specifications, "SHA256", hashlib.sha256(name.read_bytes()).hexdigest())
    for variable, value in {
        "XDG_CACHE_HOME": tmp_path / "cache",
        "UV_CACHE_DIR": tmp_path / "uv",
        "UV_FIND_LINKS": name.parent,
        "UV_NO_INDEX": 1,
    }.items():
        monkeypatch.setenv(variable, str(value))
    specifications.tables_or_cause.cache_clear()
    yield name
    specifications.tables_or_cause.cache_clear()


def test_the_pinned_wheel_is_fetched_once_and_then_needs_no_index(wheel):
    assert specifications.tables(None).of("SOME/thing", "1.0")["python"] == "3.9"
    wheel.unlink()
    specifications.tables_or_cause.cache_clear()
    assert specifications.tables(None).of("some/thing", "1.0")["python"] == "3.9"


def test_another_wheel_of_that_version_is_refused(wheel, monkeypatch):
    monkeypatch.setattr(specifications, "SHA256", "0" * 64)
    with pytest.raises(TaskError, match=r"cannot be fetched .*see (\S+)\)") as caught:
        specifications.tables(None)
    assert "Hash mismatch" in Path(re.search(r"see (\S+)\)", str(caught.value))[1]).read_text()


def test_without_network_and_cache_the_way_out_is_named(wheel):
    wheel.unlink()
    with pytest.raises(TaskError, match=r"cannot be fetched .*run this once where swebench==4.1.0 can be had.*`specif"):
        specifications.tables(None)


def test_a_row_that_needs_them_is_refused_with_both_causes(wheel, tmp_path):
    wheel.unlink()
    with pytest.raises(TaskError, match=r"some__thing-1, field repo: recipes.yaml has no recipe .* cannot be fetched"):
        task_of(None, tmp_path)


# ---- the real ones


@pytest.fixture(scope="module")
def published():
    specifications.tables_or_cause.cache_clear()
    try:
        return specifications.tables(None)
    except TaskError as error:
        pytest.skip(str(error))


def test_each_published_specification_is_translated_or_refused_with_a_reason(published):
    refused = {}
    for repository, versions in published.specifications.items():
        for version in versions:
            try:
                built = translate(published, repository, version, None)
            except Untranslatable as error:
                refused[repository] = str(error)
                continue
            assert built.requirements and built.build and built.not_before == WRITTEN, (repository, version)
            assert not any("tox" in name or "&" in name for name in built.requirements), (repository, version)
            assert all("sed" in command for command in built.prepare), (repository, version)
    assert sum(map(len, published.specifications.values())) == 300 and list(refused) == ["swe-bench/humaneval"]


def test_every_repository_of_ours_that_is_corrected_is_specified(published):
    corrected = {name: entry.corrections for name, entry in repositories().items() if entry.corrections}
    for name in corrected:
        assert name.lower() in published.specifications
