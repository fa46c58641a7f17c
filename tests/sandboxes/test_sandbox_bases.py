"""What bases really hold: whatever it is, the checkout starts clean, git in it gives back what was there, and the diff
is the edit."""

import asyncio
import os
import re
import socket
import subprocess

import pytest
from sandbox_helpers import isolated, make_task, sandbox_config

from coderepairrl.errors import SandboxError, TaskError
from coderepairrl.sandboxes import git, start_sandbox
from coderepairrl.sandboxes.templates import remedy


def _git(folder, *words):
    where = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
        cwd=folder,
        check=True,
        capture_output=True,
        env=where,
    )


def _socket(base):
    """By its bare name: a path that long is none of a socket."""
    here = os.getcwd()
    os.chdir(base)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("sock")
    finally:
        os.chdir(here)


def _nested(base, commit):
    (base / "fixtures/project/deep").mkdir(parents=True)
    (base / "fixtures/project/a.txt").write_text("a\n")
    (base / "fixtures/project/deep/b.log").write_text("b\n")
    _git(base / "fixtures/project", "init", "-q")
    if commit:
        _git(base / "fixtures/project", "add", "-A")
        _git(base / "fixtures/project", "commit", "-q", "-m", "x")


def _submodule(base):
    (base / "sub").mkdir()
    (base / "sub/.git").write_text("gitdir: ../.git/modules/sub\n")
    (base / "sub/a.txt").write_text("a\n")


def _files(**files):
    def make(base):
        for name, data in files.items():
            (base / name.replace("__", ".")).write_bytes(data)

    return make


def _gitignore(link=None, folder=False):
    def make(base):
        if folder:
            (base / ".gitignore").mkdir()
            (base / ".gitignore/x").write_text("x\n")
        else:
            (base / ".gitignore").symlink_to(link)

    return make


BASES = {
    "a socket": _socket,
    "a pipe": lambda base: os.mkfifo(base / "pipe"),
    "a pipe in a folder": lambda base: [(base / "run").mkdir(), os.mkfifo(base / "run/pipe")],
    "a dangling .gitignore": _gitignore("nowhere"),
    "a .gitignore that leads outside": _gitignore("/etc/passwd"),
    "a .gitignore that is a folder": _gitignore(folder=True),
    "an encoding that a file has not": _files(
        **{"__gitattributes": b"*.txt working-tree-encoding=UTF-16\n", "a.txt": b"plain\n"}
    ),
    "an encoding that is none": _files(
        **{"__gitattributes": b"*.txt working-tree-encoding=NO-SUCH\n", "a.txt": b"plain\n"}
    ),
    "UTF-16 as its attribute says": _files(
        **{"__gitattributes": b"*.txt working-tree-encoding=UTF-16\n", "a.txt": "plain\n".encode("utf-16")}
    ),
    "a filter that is not installed": _files(
        **{"__gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n", "a.bin": b"version https://git-lfs\n"}
    ),
    "CRLF under text=auto": _files(**{"__gitattributes": b"* text=auto\n", "a.txt": b"a\r\nb\r\n"}),
    "CRLF under text": _files(**{"__gitattributes": b"* text\n", "a.txt": b"a\r\nb\r\n"}),
    "mixed line ends under eol=crlf": _files(**{"__gitattributes": b"* text eol=crlf\n", "a.txt": b"a\r\nb\n"}),
    "ident": _files(**{"__gitattributes": b"* ident\n", "a.txt": b"$Id: abc $\n"}),
    "a nested repository without a commit": lambda base: _nested(base, commit=False),
    "a nested repository": lambda base: _nested(base, commit=True),
    "a submodule whose git directory is gone": _submodule,
    "a dangling link": lambda base: (base / "link").symlink_to("nowhere"),
    "a link to a folder": lambda base: (base / "link").symlink_to("."),
    "a name that is not UTF-8": lambda base: open(os.fsencode(base) + b"/\xff.txt", "w").close(),
    "an odd name": _files(**{'a[1]*? "b".txt': b"x\n"}),
}


@pytest.mark.parametrize("own_git", [False, True], ids=["no git", "git"])
@pytest.mark.parametrize("case", BASES)
def test_whatever_a_base_holds_the_diff_is_the_edit(use, tmp_path, case, own_git):
    base = tmp_path / "base"
    base.mkdir()
    (base / "lib.py").write_text("x = 1\n")
    if own_git:
        _git(base, "init", "-q")
    BASES[case](base)

    async def body(sandbox):
        status = await sandbox.run("git status --short --untracked-files=no")
        untouched = await sandbox.diff(), sandbox.left_out
        restored = await sandbox.run(
            'sed -i s/1/3/ lib.py; for f in *.txt; do if [ -f "$f" ]; then echo more >> "$f"; fi; done; git '
            "checkout -q -- ."
        )
        undone = await sandbox.diff(), sandbox.left_out
        await sandbox.run("sed -i s/1/2/ lib.py")
        return status.output, restored.exit_code, untouched, undone, await sandbox.diff()

    status, code, untouched, undone, diff = use("bubblewrap", body, make_task({}, base=str(base)))
    assert (status, code, untouched, undone) == ("", 0, ("", {}), ("", {})), case
    assert diff.count("diff --git") == 1 and "-x = 1\n+x = 2\n" in diff


@pytest.mark.parametrize("commit", [False, True])
def test_files_of_a_nested_repository_are_plain_files_of_the_base(use, tmp_path, commit):
    base = tmp_path / "base"
    base.mkdir()
    _nested(base, commit)

    async def body(sandbox):
        await sandbox.run("cd fixtures/project && echo more >> a.txt && echo new > deep/c.txt && rm deep/b.log")
        return await sandbox.diff(), sandbox.left_out

    diff, dropped = use("bubblewrap", body, make_task({}, base=str(base)))
    assert (
        re.findall(r"(?m)^diff --git a/(\S+)", diff)
        == [f"fixtures/project/{name}" for name in ("a.txt", "deep/b.log", "deep/c.txt")]
        and not dropped
    )


@isolated
@pytest.mark.parametrize("name", ["run-10:00", "a b", 'quo"te', "komma,", "back\\slash", "ünï", "a=b,ro"])
def test_a_scratch_folder_may_have_any_name(use, kind, tmp_path, name):
    async def body(sandbox):
        await sandbox.run("echo y >> lib.py; echo new > new.py")
        diff = await sandbox.diff()
        await sandbox.run("git checkout -q -- lib.py; rm new.py")
        return diff.count("diff --git"), await sandbox.apply(diff), await sandbox.diff() == diff

    (tmp_path / name).mkdir()
    assert use(kind, body, scratch=tmp_path / name) == (2, "", True)


def test_the_disk_is_blamed_only_where_it_is_full(monkeypatch, tmp_path):
    assert remedy(OSError(28, "No space left on device")) == "check the scratch folder's disk"
    assert "disk" not in remedy(OSError(2, "No such file or directory")) and "permissions" in remedy(
        PermissionError(13, "Permission denied")
    )

    async def start():
        async with start_sandbox(sandbox_config("local", tmp_path), make_task()):
            pass

    for said, kind, words in (
        ("error: unable to write file: No space left on device", SandboxError, "check the scratch folder's disk"),
        (
            "fatal: index file corrupt",
            TaskError,
            "task tiny-1: its base is no checkout that git can hold .*index file corrupt",
        ),
    ):

        async def broken(*arguments, said=said, **keywords):
            return 128, b"", said

        monkeypatch.setattr(git, "git", broken)
        with pytest.raises(kind, match=words):
            asyncio.run(start())
