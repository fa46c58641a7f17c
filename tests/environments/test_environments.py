"""Environments from recipes, built for real from repositories and distributions that the tests make."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from environments_helpers import INSTALL, PYTHON, built, git, in_sandbox
from sandbox_helpers import needs_apptainer

from coderepairrl.environments import BuildError, EnvironmentsConfig
from coderepairrl.types import Environment, Recipe


@pytest.fixture
def repository(tmp_path):
    """(mirror pattern, base commit): a history with the base in its middle, the fix after it on a branch, with a tag
    and a reflog."""
    folder = tmp_path / "mirrors/me+module/repo"
    (folder / "src").mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    for text, name in (("old", "before"), ("value = 1", "base"), ("value = 2  # the fix", "fix")):
        (folder / "src/module.py").write_text(text + "\n")
        (folder / ".gitignore").write_text("*.log\n")
        (folder / "kept.log").write_text("tracked although ignored\n")
        (folder / "run.sh").write_text("#!/bin/sh\n")
        (folder / "run.sh").chmod(0o755)
        git(folder, "add", "-A", "-f")
        git(folder, "commit", "-q", "-m", name)
    git(folder, "tag", "v2")
    return str(tmp_path / "mirrors/{owner}+{name}/repo"), git(folder, "rev-parse", "HEAD~1")


@pytest.fixture
def setting(repository, tmp_path):
    """(environment to build, configuration): no network is needed."""
    pattern, commit = repository
    recipe = Recipe("git:me/module", commit, PYTHON, build=(INSTALL,))
    environment = Environment("module", None, "", ("{python}",), recipe=recipe)
    return environment, EnvironmentsConfig(
        cache=str(tmp_path / "cache"), mirrors=(pattern,), pythons=(sys.base_prefix,)
    )


@pytest.mark.parametrize(
    "scheme, partial",
    [("", False), ("file://", False), ("", True)],
    ids=["a folder", "a URL", "a partial clone in a folder"],
)
def test_a_checkout_is_one_commit_and_nothing_else(setting, tmp_path, scheme, partial):
    environment, config = setting
    if partial:  # git copies all of its objects wherever it repacks what borrows from it
        mirror = tmp_path / "mirrors/me+module/repo"
        git(mirror, "repack", "-adq")
        for pack in (mirror / ".git/objects/pack").glob("*.pack"):
            pack.with_suffix(".promisor").touch()
    made = built(environment, config.model_copy(update={"mirrors": (scheme + config.mirrors[0],)}))
    base = Path(made.base)
    assert (base / "src/module.py").read_text() == "value = 1\n" and os.access(base / "run.sh", os.X_OK)
    assert (
        git(base, "rev-list", "--all", "--count") == "1"
        and git(base, "status", "--short") == ""
        and git(base, "ls-files").count("\n") == 3
    )
    assert git(base, "remote") == git(base, "tag") == git(base, "reflog") == git(base, "stash", "list") == ""
    every_object = subprocess.run(
        "git cat-file --batch-all-objects --batch", shell=True, cwd=base, capture_output=True
    ).stdout
    assert (
        b"value = 1" in every_object
        and b"the fix" not in every_object
        and environment.recipe.revision.encode() not in every_object
    )
    assert not list((base / ".git").rglob("alternates")) and "mirrors" not in (base / ".git/config").read_text()


@pytest.mark.parametrize("kind", ["bubblewrap", pytest.param("apptainer", marks=needs_apptainer)])
def test_what_is_built_works_in_a_sandbox_at_the_path_that_it_was_built_for(setting, tmp_path, kind):
    made = built(*setting)
    look = (
        "cd /; python -c 'import module, sys; print(module.__file__, module.value, sys.prefix)'; touch $(dirname "
        "$(which python))/x"
    )
    output = in_sandbox(made, look, tmp_path, kind)
    assert output.startswith(f"/repo/src/module.py 1 {Path(made.python).parents[1]}\n") and "Read-only" in output
    elsewhere = built(
        replace(
            setting[0],
            workdir="/testbed",
            recipe=replace(setting[0].recipe, build=(INSTALL.replace("/repo", "/testbed"),)),
        ),
        setting[1],
    )
    assert "/testbed/src/module.py" in in_sandbox(
        elsewhere, "cd /; python -c 'import module; print(module.__file__)'", tmp_path, kind
    )


def test_a_build_is_found_again_and_named_by_its_content(setting, tmp_path):
    environment, config = setting
    first, again = built(environment, config), built(environment, config)
    assert first == again and len(list((tmp_path / "cache/built").glob("[!.]*"))) == 1
    record = json.loads((Path(first.base).parent / "record.json").read_text())
    assert (
        record["lock"] == first.lock
        and record["python"].startswith(PYTHON)
        and record["seconds"] >= 0
        and (Path(first.base).parent / "lock.txt").exists()
    )
    other = built(replace(environment, recipe=replace(environment.recipe, build=(INSTALL, "true"))), config)
    assert other.base != first.base and other.lock != first.lock
    assert built(first, config) is first and built(Environment("plain", None, sys.executable, ()), config).base is None


def test_the_pinned_packages_are_shared_and_cannot_be_written(setting):
    environment, config = setting
    first = built(environment, config)
    spoil = (
        'for f in "$VIRTUAL_ENV"/bin/activate.*; do [ -w "$f" ] && [ $(stat -c %h "$f") -gt 1 ] && echo WRITABLE '
        '"$f"; done; true'
    )
    second = built(replace(environment, recipe=replace(environment.recipe, build=(INSTALL, spoil))), config)
    files = [Path(made.python).with_name("activate.ps1").stat() for made in (first, second)]
    assert files[0].st_ino == files[1].st_ino and files[0].st_nlink >= 3
    assert "WRITABLE" not in Path(second.base).parent.joinpath("build.log").read_text().replace(spoil, "")


def test_builders_at_once_make_one_environment(setting, tmp_path):
    environment, config = setting
    recipe = replace(environment.recipe, build=(INSTALL, "sleep 0.3"))
    program = f"""
import asyncio
from coderepairrl.environments import *
from coderepairrl.types import *
environment = Environment("module", None, "", (), recipe={recipe!r})
async def main():
    made = await asyncio.gather(*(build(environment, EnvironmentsConfig(**{config.model_dump()!r})) for _ in range(3)))
    print(*{{(m.base, m.lock) for m in made}})
asyncio.run(main())
"""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        for _ in range(3)
    ]
    assert len({process.communicate(timeout=120)[0] for process in running}) == 1 and not any(
        process.returncode for process in running
    )
    assert len(list((tmp_path / "cache/built").glob("[!.]*"))) == 1 and not list(tmp_path.glob("cache/*/.*.tmp"))


def test_what_a_killed_build_left_is_removed_by_the_next(setting, tmp_path):
    environment, config = setting
    made = built(environment, config)
    folder = Path(made.base).parent
    left = folder.with_name(f".{folder.name}.{socket.gethostname()}-4000000-abcd.tmp")
    folder.rename(left)
    assert built(environment, config).base == made.base and not left.exists()


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"build": ("echo starting", "echo 'error: no compiler' >&2; exit 3")}, "build: no compiler"),
        ({"revision": "0" * 40}, "no mirror has me/module at 000000000000"),
        ({"revision": "main"}, "'main' is no full commit id"),
        ({"source": "git:me/other"}, "no such repository"),
        ({"source": "hg:me/module"}, "write git:OWNER/NAME"),
        ({"python": "3.99"}, "Python 3.99 is not installed: uv python install 3.99"),
        ({"build": ("sleep 60",)}, "took longer than 1 s"),
    ],
)
def test_a_failure_is_one_line_with_its_cause_and_leaves_a_log(setting, tmp_path, change, cause):
    environment, config = setting
    wrong = replace(environment, recipe=replace(environment.recipe, **change))
    with pytest.raises(BuildError) as caught:
        built(wrong, config.model_copy(update={"timeout_s": 1.0}) if "longer" in cause else config)
    assert (
        cause in str(caught.value)
        and "\n" not in str(caught.value)
        and str(caught.value).startswith("environment module cannot be built: ")
    )
    if "build" in change:
        assert (
            caught.value.log.is_relative_to(tmp_path / "cache/logs")
            and change["build"][-1] in caught.value.log.read_text()
        )
    assert not list((tmp_path / "cache/built").glob("[!.]*")) and not list(tmp_path.glob("cache/*/.*.tmp"))


def test_nothing_has_network_in_a_build(setting, tmp_path):
    environment, config = setting
    server = socket.create_server(("127.0.0.1", 0))
    connect = f"python -c 'import socket; socket.create_connection((\"127.0.0.1\", {server.getsockname()[1]}))'"
    with pytest.raises(BuildError, match="refused|unreachable"):
        built(replace(environment, recipe=replace(environment.recipe, build=(connect,))), config)
    server.close()


def test_a_mirror_without_a_file_is_named_or_its_file_left_out(setting, repository):
    environment, config = setting
    folder = Path(config.mirrors[0].format(owner="me", name="module"))
    blob = git(folder, "rev-parse", f"{repository[1]}:run.sh")
    (folder / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(BuildError, match=r"lacks 1 files of .* \(run.sh\)"):
        built(environment, config)
    made = built(environment, config.model_copy(update={"incomplete_mirrors": True}))
    record = json.loads((Path(made.base).parent / "record.json").read_text())
    assert (
        record["absent"] == ["run.sh"]
        and not Path(made.base, "run.sh").exists()
        and Path(made.base, "kept.log").exists()
    )


def test_the_first_mirror_that_has_the_commit_serves(setting):
    environment, config = setting
    assert Path(
        built(environment, config.model_copy(update={"mirrors": ("/nowhere/{name}", *config.mirrors)})).base, "src"
    ).is_dir()
    with pytest.raises(BuildError, match=r"may hold \{owner\} and \{name\} only"):
        built(environment, config.model_copy(update={"cache": config.cache + "2", "mirrors": ("/{repo}",)}))


@pytest.mark.parametrize("digits", [7, 8, 12, 39, 40])
def test_a_commit_by_its_first_digits(setting, digits):
    environment, config = setting
    made = built(
        replace(environment, recipe=replace(environment.recipe, revision=environment.recipe.revision[:digits])), config
    )
    assert Path(made.base, "src/module.py").read_text() == "value = 1\n"


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("mirror", ["swesmith", "tagged"])
def test_what_no_server_gives_out_by_its_first_digits(setting, tmp_path, scheme, mirror):
    """The copy that SWE-smith keeps, with its bugs on other branches; or a branch or tag of the repository that is at
    this commit."""
    environment, config = setting
    commit, origin = environment.recipe.revision, tmp_path / "mirrors/me+module/repo"
    if mirror == "swesmith":
        copy = tmp_path / f"mirrors/swesmith+me__module.{commit[:8]}/repo"
        copy.mkdir(parents=True)
        git(copy, "init", "-q", "-b", "main")
        shutil.copytree(origin / "src", copy / "src")
        (copy / "src/module.py").write_text("value = 1\n")
        git(copy, "add", "-A")
        git(copy, "commit", "-q", "-m", "Initial commit")
        git(copy, "checkout", "-q", "-b", f"me__module.{commit[:8]}.func_basic__abc")
        (copy / "src/module.py").write_text("value = 3  # the bug\n")
        git(copy, "commit", "-qam", "Bug Patch")
        shutil.rmtree(origin)
    else:
        git(origin, "tag", "-a", "-m", "of the base", "v1", commit)
        git(origin, "branch", "old", commit)
    made = built(
        replace(environment, recipe=replace(environment.recipe, revision=commit[:8])),
        config.model_copy(update={"mirrors": (scheme + config.mirrors[0],)}),
    )
    assert (
        Path(made.base, "src/module.py").read_text() == "value = 1\n"
        and git(made.base, "rev-list", "--all", "--count") == "1"
    )


def test_a_source_distribution_with_pins_and_with_a_date(tmp_path):
    """From the package registry, like the admitted set of packages."""
    keep, sha256 = (
        ("toolz", "tlz", "setup.py", "versioneer.py", "setup.cfg", "README.rst", "PKG-INFO"),
        "2c86e3d9a04798ac556793bced838816296a2f085017664e4995cb40a1047a02",
    )
    config = EnvironmentsConfig(cache=str(tmp_path / "cache"), pythons=(sys.base_prefix,))
    install = "python -m pip install --no-deps --no-build-isolation -e ."
    recipe = Recipe(
        "sdist:toolz==1.0.0",
        sha256,
        PYTHON,
        pins=("pip==24.0", "setuptools==70.0.0", "wheel==0.43.0", "six==1.16.0"),
        build=(install,),
        keep=keep,
    )
    pinned = built(Environment("toolz", None, "", (), recipe=recipe), config)
    assert "/repo/toolz/__init__.py" in in_sandbox(
        pinned, "cd /tmp; python -c 'import toolz; print(toolz.__file__)'", tmp_path
    )
    assert set(recipe.pins) <= set((Path(pinned.base).parent / "lock.txt").read_text().split("\n"))
    dated = replace(
        recipe,
        pins=(),
        requirements=("six", "pip", "setuptools<72", "wheel"),
        exclude_newer="2021-06-01T00:00:00Z",
        build=(),
    )
    frozen = built(Environment("toolz", None, "", (), recipe=dated), config)
    assert "six==1.16.0" in (Path(frozen.base).parent / "lock.txt").read_text()
    with pytest.raises(BuildError, match="toolz==1.0.0 could not be downloaded"):
        built(Environment("toolz", None, "", (), recipe=replace(recipe, revision="0" * 64)), config)
