"""What an agent did and its diff, or the judge, leaves out is named with the reason; what git's format can carry is
carried and judged."""

import asyncio
import dataclasses
import os

import pytest
from judge_helpers import PYTEST_TASK, RIGHT, WRONG, paths
from sandbox_helpers import make_task

from coderepairrl.grading.protected import select
from coderepairrl.rewards import grade
from coderepairrl.sandboxes import changes, start_sandbox
from coderepairrl.types import VerdictKind

FIXED = "sed -i 's/a + 2/a + 1/' lib.py"
LATIN1 = "# -*- coding: latin-1 -*-\n# \xe9\n".encode("latin-1")
BASE = {
    "lib.py": WRONG.encode(),
    "right.py": RIGHT.encode(),
    "tests/test_lib.py": b"",
    "data.txt": "\xe9\n".encode("latin-1"),
    "wide.txt": "wide\n".encode("utf-16"),
}
JUDGED = {  # name -> (base beside BASE, command, resolved, what the judge leaves out)
    "a source in Latin-1": ({"lib.py": LATIN1 + WRONG.encode()}, f"LC_ALL=C {FIXED}", True, ()),
    "a source in Latin-1 becomes UTF-8": (
        {"lib.py": LATIN1 + WRONG.encode()},
        f"printf '%s' '{RIGHT}' > lib.py",
        True,
        (),
    ),
    "a source becomes Latin-1": ({}, f"{FIXED}; LC_ALL=C sed -i '1i # coding: latin-1\\n# \\xe9' lib.py", True, ()),
    "a new source in Latin-1": (
        {},
        "printf '# coding: latin-1\\n# \\351\\nfrom right import f, g\\n' > more.py; echo 'from more import f, "
        "g' > lib.py",
        True,
        (),
    ),
    "a text in UTF-16": ({}, f"{FIXED}; printf 'x\\000\\n\\000' >> wide.txt", True, ()),
    "a binary file": ({}, f"{FIXED}; head -c 99 /dev/zero > zero.bin", True, ("zero.bin",)),
    "a source becomes a link to another": ({}, "rm lib.py; ln -s right.py lib.py", True, ()),
    "a new link to a new file": (
        {},
        "mkdir deep; mv right.py deep/other.py; rm lib.py; ln -s ./deep/../deep/other.py lib.py",
        True,
        (),
    ),
    "a link to the hidden tests": ({}, f"{FIXED}; ln -s tests/test_hidden.py seen.py", True, ("seen.py",)),
    "a link to a folder": ({}, f"{FIXED}; mkdir d; echo > d/x.py; ln -s d e", True, ("e",)),
    "a link to what becomes a folder": (
        {},
        f"{FIXED}; rm right.py; mkdir right.py; echo > right.py/x.py; ln -s right.py e",
        True,
        ("e",),
    ),
    "a link to a link": ({}, f"{FIXED}; ln -s right.py one.py; ln -s one.py two.py", True, ("two.py",)),
    "a link named as what pytest loads": ({}, f"{FIXED}; ln -s right.py conftest.py", True, ("conftest.py",)),
    "a link named as an installed module": ({}, f"{FIXED}; ln -s right.py json.py", True, ("json.py",)),
    "a folder becomes a link": (
        {"checks/a.py": b""},
        f"{FIXED}; mkdir m; echo > m/a.py; rm -r checks; ln -s m checks",
        True,
        ("checks",),
    ),
    "a link becomes a file": ({"old.py": "lib.py"}, "sed -i 's/a + 2/a + 1/' lib.py old.py", True, ()),
    "a link goes": ({"old.py": "lib.py"}, f"{FIXED}; rm old.py", True, ()),
    "a file becomes a folder": ({}, f"{FIXED}; rm data.txt; mkdir data.txt; echo x > data.txt/x", True, ()),
    "a new script": ({}, f"{FIXED}; echo '#!/bin/sh' > run; chmod +x run lib.py", True, ()),
}


def _write(base, files):
    for name, data in files.items():
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(data) if isinstance(data, str) else path.write_bytes(data)


@pytest.mark.parametrize("case", JUDGED)
def test_what_an_agent_does_is_judged_or_named(config, tmp_path, case):
    files, command, resolved, left_out = JUDGED[case]
    base = tmp_path / "base"
    _write(base, BASE | files)
    task = dataclasses.replace(
        PYTEST_TASK, files={}, oracle_patch="", environment=dataclasses.replace(PYTEST_TASK.environment, base=str(base))
    )

    async def main():
        async with start_sandbox(config, task) as sandbox:
            done = await sandbox.run(command)
            diff, dropped = await sandbox.diff(), sandbox.left_out
        return done, dropped, await grade(task, diff, config)

    done, dropped, verdict = asyncio.run(main())
    assert done.exit_code == 0 and not dropped, (done, dropped)
    assert (verdict.resolved, paths(verdict.dropped_paths)) == (resolved, left_out), verdict
    assert verdict.kind == VerdictKind.RESOLVED


ENCODINGS = {"UTF-8": "utf-8", "Latin-1": "latin-1", "UTF-16": "utf-16"}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["lib.py", "more.py"])
def test_a_source_is_scanned_in_whichever_encoding(config, tmp_path, encoding, name):
    """What git carries as a binary patch was read as if it changed nothing."""
    text = f"# -*- coding: {ENCODINGS[encoding]} -*-\n# \xe9\n{WRONG}\nimport _pytest\n"

    async def main():
        async with start_sandbox(config, PYTEST_TASK) as sandbox:
            folder, inside = sandbox.share("own")
            (folder / "x").write_bytes(text.encode(ENCODINGS[encoding]))
            await sandbox.run(f"cp {inside}/x {name}")
            return await sandbox.diff()

    found = select(PYTEST_TASK, asyncio.run(main()), frozenset())
    assert found.applied_paths == {name} and found.touched == (f"{name} names the test runner's internals",), found


NAMED = {  # name -> (command, path -> a word of the reason)
    "an ignored file": ("echo x > a.log", {"a.log": "gitignore"}),
    "an ignored folder": (
        "mkdir -p build/deep; echo x | tee build/a build/deep/b",
        {"build/a": "gitignore", "build/deep/b": "gitignore"},
    ),
    "many ignored files": ("mkdir build; for i in $(seq 30); do echo > build/$i; done", {"build/": "30 files"}),
    "an ignored file of the base": ("echo more >> local.log", {"local.log": "changed"}),
    "an ignored file of the base becomes a link to a folder": ("ln -sf . local.log", {"local.log": "changed"}),
    "an ignored file of the base becomes a folder": ("rm local.log; mkdir local.log", {"local.log": "changed"}),
    "an ignored file of the base that goes": ("rm local.log", {"local.log": "removed"}),
    "bytecode": ("mkdir __pycache__; echo > __pycache__/a.pyc", {"__pycache__/a.pyc": "artefacts"}),
    "a nested repository": ("git init -q n; echo > n/x", {"n/": "history"}),
    "a link outside": (
        "ln -s /etc/passwd a; ln -s ../b b; ln -s x/../../c c; ln -s .git/config d",
        {"a": "absolute", "b": "leads out", "c": "leads out", "d": "git directory"},
    ),
    "a large file": ("head -c 5M /dev/urandom > big", {"big": "4 MiB"}),
    "a large binary file": ("head -c 600000 /dev/zero > big", {"big": "512 KiB"}),
    "a name that is not UTF-8": ("touch $'\\xff'", {"?": "UTF-8"}),
    "a file in the place of a folder with hidden files": (
        "rm -r logs; echo > logs",
        {"logs": "hides", "logs/local.log": "removed"},
    ),
    "a link in its place": ("rm -r logs; ln -s lib.py logs", {"logs": "hides", "logs/local.log": "removed"}),
    "names that git takes for its own": (
        "mkdir .GIT; touch .GIT/x 'git~1' '.git '; ln -s lib.py .gitmodules",
        {name: "git does not take" for name in (".GIT/x", "git~1", ".git ", ".gitmodules")},
    ),
    "a repository in the place of a file": ("rm lib.py; git init -q lib.py; echo > lib.py/x", {"lib.py/": "history"}),
    "a repository below the place of a file": ("rm lib.py; git init -q lib.py/deep", {"lib.py/deep/": "history"}),
    "a file in the place of a repository": ("rm -r empty; echo > empty", {"empty": "repository"}),
    "a file in the place of a link that is not UTF-8": (
        "rm -r odd; echo > odd",
        {"odd": "not UTF-8", "odd/link": "not UTF-8"},
    ),
    "an empty repository of the base": ("echo > empty/x", {}),
    "a repository in one": (
        "git init -q n; git init -q n/deep; echo > n/deep/x",
        {"n/": "history", "n/deep/": "history"},
    ),
    "a repository where files are ignored": ("git init -q build/n; echo > build/n/x", {"build/n/x": "gitignore"}),
    "a repository under names that git takes for its own": (
        "git init -q .GIT/x; echo > .GIT/x/y; git init -q 'git~1'; echo > 'git~1/y'",
        {".GIT/x/": "git does not take", "git~1/": "history", "git~1/y": "git does not take"},
    ),
    "a pipe in a file's place": ("rm lib.py; mkfifo lib.py", {"lib.py": "neither"}),
}


@pytest.mark.parametrize("case", NAMED)
def test_what_a_diff_leaves_out_is_named_with_the_reason(use, tmp_path, case):
    command, expected = NAMED[case]
    base = tmp_path / "base"
    _write(
        base,
        {
            "odd/link": os.fsdecode(b"\xff"),
            "lib.py": b"x = 1\n",
            ".gitignore": b"*.log\nbuild\n",
            "local.log": b"built\n",
            "logs/local.log": b"built\n",
            "empty/.git/HEAD": b"ref: refs/heads/main\n",
            "empty/.git/objects/x": b"",
            "empty/.git/refs/x": b"",
            ".git/HEAD": b"ref: refs/heads/main\n",
            ".git/objects/x": b"",
            ".git/refs/x": b"",
        },
    )

    async def body(sandbox):
        untouched = await sandbox.diff(), sandbox.left_out
        await sandbox.run(command)
        await sandbox.diff()
        return untouched, sandbox.left_out

    untouched, dropped = use("bubblewrap", body, make_task({}, base=str(base)))
    assert untouched == ("", {}) and dropped.keys() == expected.keys(), dropped
    assert all(word in dropped[path] for path, word in expected.items()), dropped


REPOSITORY = "mkdir -p n/.git/objects n/.git/refs; echo x > n/f; echo 'ref: refs/heads/main' > n/.git/HEAD; "
OPENED = {  # of a repository: where git, asked of the checkout, would wait for ever, or read without end
    "HEAD is a pipe": "rm n/.git/HEAD; mkfifo n/.git/HEAD",
    "commondir is a pipe": "mkfifo n/.git/commondir",
    "commondir is a link to a device": "ln -s /dev/zero n/.git/commondir",
    "a .git that leads to pipes": "rm -r n/.git; mkdir -p n/r/objects n/r/refs; mkfifo n/r/HEAD; echo 'gitdir: r' "
    "> n/.git",
    "a link to a folder with pipes": "mv n/.git n/real; rm n/real/HEAD; mkfifo n/real/HEAD; ln -s real n/.git",
    "in the place of a file": "rm lib.py; mv n lib.py; rm lib.py/.git/HEAD; mkfifo lib.py/.git/HEAD",
    "below a name that git takes for its own": "mkdir .GIT; mv n .GIT; rm .GIT/n/.git/HEAD; mkfifo .GIT/n/.git/HEAD",
    "below many such names": "for i in $(seq 1500); do n=$'a\\n*'$i/.GIT/$(printf %0150d $i)/.git; mkdir -p \"$n\";"
    ' mkfifo "$n/commondir";'
    " done",
    "many, one in another": "for i in $(seq 400); do mkdir d; cd d; mkdir .git; mkfifo .git/commondir; done",
}


@pytest.mark.parametrize("kind", ["bubblewrap", "overlay"])
@pytest.mark.parametrize("case", OPENED)
def test_git_opens_nothing_of_a_repository_that_an_agent_made(use, kind, case):
    async def body(sandbox):
        done = await sandbox.run(REPOSITORY + OPENED[case])
        assert done.exit_code == 0, done.output
        return await asyncio.wait_for(sandbox.diff(), 20), sandbox.left_out

    diff, dropped = use(kind, body)
    assert ".GIT" in OPENED[case] or "b/lib.py/f" in diff or "b/n/f" in diff
    assert any("history" in why or "git does not take" in why for why in dropped.values()), dropped


@pytest.mark.parametrize("kind", ["bubblewrap", "overlay"])
@pytest.mark.parametrize("name", [".gitignore", ".gitattributes"])
def test_files_that_git_reads_may_lie_as_deep_as_paths_go(use, kind, name):
    make = """import os, sys
length = 0
while length < int(sys.argv[1]):
    step = min(200, int(sys.argv[1]) - length)
    os.mkdir("d" * step), os.chdir("d" * step)
    length += step + 1
os.mkfifo(sys.argv[2]), open("f", "w"), os.makedirs(".git/objects"), os.makedirs(".git/refs"), os.mkfifo(".git/HEAD")
"""

    async def body(sandbox):
        done = await sandbox.run(["python3", "-c", make, str(4096 - less), name])
        assert done.exit_code == 0, done.output
        return await asyncio.wait_for(sandbox.diff(), 20), sandbox.left_out

    for less in (1096, 200, *range(8, 160, 8)):  # the sandbox's own folder has some eighty bytes
        diff, dropped = use(kind, body)
        assert not diff and dropped, less


def test_a_flood_of_new_files_hides_no_repair(use, monkeypatch):
    monkeypatch.setattr(changes, "MAX_FILES", 50)

    async def body(sandbox):
        await sandbox.run(
            "mkdir build; for i in $(seq 100); do echo x > build/$i; done; echo 'x = 2' > pkg/deep.py; echo new > a.py"
        )
        return await sandbox.diff(), sandbox.left_out

    diff, dropped = use("bubblewrap", body)
    assert (
        "+x = 2" in diff
        and "b/a.py" in diff
        and diff.count("diff --git") == 51
        and dropped == {"build/": "beyond the 50 new files of one diff, 51 files"}
    )
