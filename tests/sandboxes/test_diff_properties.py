"""Base and diff are the sandbox's tree, or each difference is named: of drawn trees with what file systems and
repositories hold."""

import asyncio
import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sandbox_helpers import make_task, sandbox_config

from coderepairrl.sandboxes import start_sandbox
from coderepairrl.sandboxes.git import NEUTRAL

EXAMPLES = int(os.environ.get("DIFF_EXAMPLES", "40"))
PLAIN = ["a.py", "b.txt", "d", "d/a.py", "d/b", "d/e", "d/e/f.py", "n/f.py", "n/m/g.py"]
ODD = [
    "\xfc.py",
    "sp ace",
    " lead",
    "trail ",
    "[x]*?.py",
    "-r",
    "#h",
    'quo"te',
    "back\\slash",
    "!n",
    ":(top)a",
    "a\nb.py",
    "tab\t",
    "\x01\x7f",
    "~",
    "d/\r",
    "caf\xe9.py",
    "cafe\u0301.py",
    "d/caf\xe9",
    "d/cafe\u0301",
    "\u2028.py",
    "d/\u2029\x85",
    "\U0001f600",
    "\u202eyp.py",
    "\ufeffa.py",
    "A.PY",
    *map(os.fsdecode, (b"\xff.py", b"d/\xe9", b"\xe9/a.py", b"\xed\xa0\x80")),
]
HIDDEN = ["x.log", "d/x.log", "build/o", "build/deep/o", "__pycache__/a.pyc", "d/c.pyc", ".coverage"]
OF_GIT = [".gitmodules", "d/.gitignore", "d/.gitattributes", ".mailmap", "git", ".github/x", ".gitx"]
OF_GIT += ["git~1", "d/.git ", ".GIT/x"]  # which git takes for .git
NAMES = st.one_of(st.sampled_from(PLAIN), st.sampled_from(ODD), st.sampled_from(HIDDEN), st.sampled_from(OF_GIT))
TEXTS = [
    b"",
    b"a\n",
    b"a\r\nb\r\n",
    b"a\nb",
    "\xe9\n".encode("latin-1"),
    "wide\n".encode("utf-16"),
    "wide\n".encode("utf-16-be"),
    b"\0\1",
    b"\xef\xbb\xbfa\n",
    "a\u2028b\x0cc\x85\n".encode(),
    b"\r",
    b"a\rb\n",
    b"diff --git a/x b/x\n",
    b"--- a/x\n+++ b/x\n",
    b"-- \n2.39\n",
    b"*.py\n!*.log\n",
    b"* text eol=crlf\n",
]
DATA = st.one_of(
    st.binary(max_size=12), st.text(max_size=8).map(lambda text: text.encode(errors="replace")), st.sampled_from(TEXTS)
)
TARGETS = st.sampled_from(
    [
        "a.py",
        "d",
        "../b.txt",
        "/etc",
        "nowhere",
        "d/../a.py",
        "d/e",
        ".git/config",
        "n/.git",
        "caf\xe9.py",
        "a\nb",
        "\u2028",
        os.fsdecode(b"\xff"),
        ".",
    ]
)
FILE = st.tuples(st.sampled_from(["file", "script"]), DATA)
TREES = st.dictionaries(NAMES, st.one_of(FILE, FILE, st.tuples(st.just("link"), TARGETS)), max_size=6)
NESTED = st.dictionaries(
    st.sampled_from(["n", "n/m", "d", "d/e", "caf\xe9", "build", os.fsdecode(b"\xff")]),
    st.sampled_from(["empty", "commit", "pointer"]),
    max_size=2,
)
ATTRIBUTES = st.sampled_from(
    [
        b"",
        b"* text=auto\n",
        b"* text eol=crlf\n",
        b"*.py -diff\n",
        b"* working-tree-encoding=UTF-16\n",
        b"* ident filter=x\n",
    ]
)
WHERE = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}


def git(folder: Path, *words: str, stdin: bytes = b"") -> None:
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=b", *words],
        cwd=folder,
        check=True,
        env=WHERE,
        capture_output=True,
        input=stdin,
    )


def clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def make_folder(root: Path, folder: Path) -> None:
    """Whatever else stands in its way goes."""
    for path in [*reversed(folder.parents), folder]:
        if path != root and path.is_relative_to(root) and (path.is_symlink() or not path.is_dir()):
            clear(path)
            path.mkdir()


def lay(root: Path, tree: dict, nested: dict, repositories: Path) -> None:
    """Files become folders and links, and back, as the names want it."""
    for name, (kind, data) in tree.items():
        path = root / name
        make_folder(root, path.parent)
        clear(path)
        if kind == "link":
            path.symlink_to(data)
        else:
            path.write_bytes(data)
            path.chmod(0o755 if kind == "script" else 0o644)
    for name, kind in nested.items():
        make_folder(root, root / name)
        clear(root / name / ".git")
        if kind == "pointer":
            (root / name / ".git").write_text("gitdir: /nowhere/.git/modules/x\n")
        else:
            shutil.copytree(repositories / kind, root / name, dirs_exist_ok=True)


def tree_of(root: Path) -> dict[str, tuple]:
    found = {}
    for where, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name != ".git"]
        for name in (*files, *(name for name in folders if os.path.islink(os.path.join(where, name)))):
            path = Path(where, name)
            if name != ".git":  # of another repository, or a link's or a submodule's: git itself holds no such name
                found[str(path.relative_to(root))] = (
                    ("link", os.readlink(path))
                    if path.is_symlink()
                    else (bool(stat.S_IXUSR & path.lstat().st_mode), path.read_bytes())
                )
    return found


def leads_to_itself(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def is_named(name: str, dropped: dict[str, str]) -> bool:
    """Itself, or a folder of which many are left out."""
    shown = name.encode(errors="replace").decode()
    return shown in dropped or any(
        path.endswith("/") and " files" in why and shown.startswith(path) for path, why in dropped.items()
    )


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    before=TREES,
    after=TREES,
    nested=st.tuples(NESTED, NESTED),
    gone=st.sets(NAMES, max_size=4),
    attributes=ATTRIBUTES,
    has_git=st.booleans(),
)
def test_base_and_diff_are_the_tree_or_the_difference_is_named(
    tmp_path_factory, before, after, nested, gone, attributes, has_git
):
    folder = tmp_path_factory.mktemp("tree")
    repositories, base = folder / "repositories", folder / "base"
    for path in (base, repositories / "empty", repositories / "commit"):
        path.mkdir(parents=True)
    git(repositories / "empty", "init", "-q")
    git(repositories / "commit", "init", "-q")
    (repositories / "commit/own.py").write_text("x = 1\n")
    git(repositories / "commit", "add", "-A")
    git(repositories / "commit", "commit", "-qm", "x")
    lay(base, before, nested[0], repositories)
    for name, data in ((".gitattributes", attributes), (".gitignore", b"*.log\nbuild\n")):
        (base / name).write_bytes(data)
    # git itself applies nothing where a link leads to itself
    assume(not any(leads_to_itself(path) for path in base.rglob("*")))
    if has_git:  # what it tracks is its commit, and what its rules do not ignore
        git(base, "init", "-q")
        (base / ".git/info").mkdir(exist_ok=True)
        (base / ".git/info/attributes").write_text(NEUTRAL)
        inside = tuple(f"{name}/" for name in nested[0])
        tracked = [name for name in sorted(tree_of(base))[::2] if not name.startswith(inside)]
        git(
            base,
            "-c",
            "safe.directory=*",
            "update-index",
            "--add",
            "-z",
            "--stdin",
            stdin=b"".join(os.fsencode(name) + b"\0" for name in tracked),
        )
    task, local = make_task({}, base=str(base)), sandbox_config("local", folder)

    async def main():
        async with start_sandbox(local, task) as sandbox:
            untouched = await sandbox.diff(), sandbox.left_out
            for name in gone:
                if not any(
                    parent.is_symlink()
                    for parent in (sandbox.root / name).parents
                    if parent.is_relative_to(sandbox.root)
                ):
                    clear(sandbox.root / name)
            lay(sandbox.root, after, nested[1], repositories)
            diff, dropped, tree = await sandbox.diff(), sandbox.left_out, tree_of(sandbox.root)
        async with start_sandbox(local, task) as other:
            first = tree_of(other.root)
            problem = await other.apply(diff) if diff else ""
            return untouched, diff, dropped, tree, problem, tree_of(other.root), first

    untouched, diff, dropped, tree, problem, again, first = asyncio.run(main())
    differing = {
        name for name in tree.keys() | again.keys() if tree.get(name) != again.get(name) and not is_named(name, dropped)
    }
    assert untouched == ("", {}), untouched
    assert not problem and not differing, (problem, differing, dropped, diff)
    diff.encode(), str(dropped).encode()
    assert {name for name in tree.keys() | first.keys() if tree.get(name) != first.get(name)} or not diff, (
        "a diff of nothing"
    )
    shutil.rmtree(folder)
