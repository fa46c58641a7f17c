"""The diff of a sandbox: what is in it, whatever the agent does to git, and that it can be applied."""

import os

import pytest
from sandbox_helpers import FILES, both, git_apply, make_task

from coderepairrl.sandboxes.git import _anchored


@both
def test_a_diff_holds_edits_new_deleted_and_mode_and_git_takes_it(use, kind, tmp_path):
    async def body(sandbox):
        await sandbox.run(
            "echo '# é' >> lib.py; rm pkg/deep.py; mkdir -p a/b; printf 'no newline' > a/b/'with space.py'; "
            "echo run > tool.sh; chmod +x tool.sh; chmod +x lib.py; touch empty"
        )
        return await sandbox.diff()

    diff = use(kind, body)
    applied = tmp_path / "applied"
    git_apply(applied, diff)
    assert (applied / "lib.py").read_text() == FILES["lib.py"] + "# é\n"
    assert (
        not (applied / "pkg/deep.py").exists()
        and (applied / "a/b/with space.py").read_text() == "no newline"
        and (applied / "empty").read_text() == ""
    )
    assert os.access(applied / "tool.sh", os.X_OK) and os.access(applied / "lib.py", os.X_OK)


@both
def test_no_change_is_an_empty_diff_and_a_diff_can_be_asked_again(use, kind):
    async def body(sandbox):
        first = await sandbox.diff()
        await sandbox.run("touch lib.py; git commit -q --allow-empty -m x; git checkout -q -b other")
        second = await sandbox.diff()
        await sandbox.run("echo a > a.txt; git add a.txt; git commit -q -m a")
        third = await sandbox.diff()
        await sandbox.run("rm a.txt")
        return first, second, third.count("+a\n"), await sandbox.diff()

    assert use(kind, body) == ("", "", 1, "")


@both
def test_ignored_files_and_artefacts_are_left_out_by_the_bases_rules(use, kind):
    files = {**FILES, ".gitignore": "*.log\n/build\n", "pkg/.gitignore": "local\n/top\n", "kept.log": "in the base\n"}

    async def body(sandbox):
        await sandbox.run(
            "mkdir -p build __pycache__ x.egg-info .pytest_cache sub; touch build/x a.log sub/b.log __pycache__/a.pyc "
            "c.pyc x.egg-info/y .pytest_cache/z"
        )
        await sandbox.run(
            "mkdir pkg/deeper; touch local pkg/local pkg/deeper/local pkg/top pkg/deeper/top; for f in local "
            "pkg/deeper/top; do echo x > $f; done"
        )
        await sandbox.run(
            "echo '!*.log' > .gitignore; echo lib.py >> .gitignore; echo '*' > sub/.gitignore; echo y > sub/seen.py; "
            "echo more >> lib.py; echo more >> kept.log"
        )
        return await sandbox.diff()

    diff = use(kind, body, make_task(files))
    changed = sorted(line.split(" b/")[1] for line in diff.splitlines() if line.startswith("diff --git"))
    assert changed == [".gitignore", "kept.log", "lib.py", "local", "pkg/deeper/top", "sub/.gitignore", "sub/seen.py"]


@both
def test_all_of_a_base_without_git_can_be_edited_also_what_its_gitignore_ignores(use, kind, tmp_path):
    """As in a source distribution: rules of the author's machine, which may ignore themselves."""
    base = tmp_path / "base"
    (base / "pkg").mkdir(parents=True)
    for name, text in {
        ".gitignore": ".*\n/pkg/version.py\n/build\n",
        ".ci.yml": "x\n",
        "pkg/version.py": "1\n",
        "pkg/lib.py": "2\n",
        "pkg/lib.pyc": "old\n",
    }.items():
        (base / name).write_text(text)

    async def body(sandbox):
        untouched = await sandbox.diff()
        await sandbox.run(
            "mkdir build; touch build/x .new; echo 3 > pkg/version.py; rm .ci.yml; echo new | tee pkg/lib.pyc .coverage"
        )
        return untouched, sorted(
            line.split(" b/")[1] for line in (await sandbox.diff()).splitlines() if line.startswith("diff --git")
        )

    own = {".coverage": "a file of the task itself, whatever it is called\n"}
    assert use(kind, body, make_task(own, base=str(base))) == ("", [".ci.yml", ".coverage", "pkg/version.py"])


def test_rules_of_a_nested_gitignore_are_anchored():
    assert _anchored("a/b/.gitignore", "x\n/y\nc/d\n!z/\n# no\n\n") == [
        "/a/b/**/x",
        "/a/b/y",
        "/a/b/c/d",
        "!/a/b/**/z/",
        "# no",
        "",
        "",
    ]


@both
def test_what_leads_outside_or_is_too_large_is_dropped_and_named(use, kind, tmp_path):
    secret = tmp_path / "host-secret"
    secret.mkdir()
    (secret / "deep.py").write_text("of the host\n")

    async def body(sandbox):
        await sandbox.run(
            f"ln -s {secret}/deep.py link; head -c 100 /dev/zero > zero.bin; printf '\\xff' > latin.txt; mkfifo pipe; "
            "head -c 5M /dev/zero | tr '\\0' a > large.txt"
        )
        await sandbox.run(
            "rm lib.py; ln -s /etc/passwd lib.py; git init -q nested; echo x > nested/y; echo ok > fine.txt"
        )
        diff = await sandbox.diff()
        (sandbox.root / "pkg/deep.py").unlink()
        (sandbox.root / "pkg").rmdir()
        (sandbox.root / "pkg").symlink_to(secret)
        return diff, sandbox.left_out, await sandbox.diff(), sandbox.dropped_paths

    diff, dropped, through, words = use(kind, body)
    assert "lib.py: a link to an absolute path" in words
    # git itself lists no pipes
    assert set(dropped) == {"link", "large.txt", "lib.py", "nested/"} and all(dropped.values())
    named = sorted(line.split(" b/")[1] for line in diff.splitlines() if line.startswith("diff --git"))
    assert (
        named == ["fine.txt", "latin.txt", "nested/y", "zero.bin"]
        and diff.count("GIT binary patch") == 2
        and diff.isascii()
    )
    assert (
        "+ok" in diff
        and "root:" not in diff
        and "of the host" not in through
        and "pkg" not in through.replace("pkg/deep.py", "")
    )


@both
def test_a_file_may_become_a_folder_and_back(use, kind, tmp_path):
    async def body(sandbox):
        await sandbox.run("rm lib.py; mkdir lib.py; echo in > lib.py/x.py; rm -r pkg; echo file > pkg")
        return await sandbox.diff()

    applied = tmp_path / "applied"
    git_apply(applied, use(kind, body))
    assert (applied / "lib.py/x.py").read_text() == "in\n" and (applied / "pkg").read_text() == "file\n"


TAMPERING = {
    "configuration": "git config core.fsmonitor '{evil}'; git config filter.x.clean '{evil}'; git config "
    "diff.external '{evil}'; "
    "git config diff.x.textconv '{evil}'; "
    "git config core.hooksPath .; git config core.worktree /tmp; git config core.excludesFile /repo/lib.py; git config "
    "core.ignoreStat true",
    "attributes": "printf '* filter=x diff=x\\n*.py -diff binary\\n*.py text eol=crlf "
    "working-tree-encoding=UTF-16\\n' > "
    ".gitattributes; cp .gitattributes .git/info/attributes",
    "hooks": "mkdir -p .git/hooks; for h in pre-commit post-checkout post-index-change; do printf '#!/bin/"
    "sh\\n{evil}' > "
    ".git/hooks/$h; chmod +x .git/hooks/$h; done",
    "removal": "rm -rf .git; mkdir .git; echo 'gitdir: /etc' > .git/HEAD",
    "link": "rm -rf .git; ln -s / .git",
    "pointer": "rm -rf .git; echo 'gitdir: /tmp' > .git",
    "index": "git update-index --assume-unchanged lib.py; git update-index --skip-worktree pkg/deep.py; echo lib.py > "
    ".git/info/exclude; echo broken > .git/index",
}


@both
@pytest.mark.parametrize("how", TAMPERING)
def test_tampering_with_git_runs_nothing_and_hides_nothing(use, kind, how, tmp_path):
    evil = tmp_path / "evil-ran"

    async def body(sandbox):
        await sandbox.run(TAMPERING[how].replace("{evil}", f"touch {evil}"))
        await sandbox.run(
            "rm -f .gitattributes.bak; printf 'def f():\\n    return 2\\n' > lib.py; echo 'x = 2' > pkg/deep.py; "
            "echo new > new.py"
        )
        evil.unlink(missing_ok=True)  # 'local' isolates nothing: git inside may have run it
        return await sandbox.diff(), sandbox.root

    diff, _ = use(kind, body)
    assert not evil.exists()
    for expected in ("-    return 1\n+    return 2\n", "-x = 1\n+x = 2\n", "+new\n"):
        assert expected in diff


@both
def test_a_diff_applied_to_a_fresh_sandbox_gives_the_same_diff(use, kind):
    async def change(sandbox):
        await sandbox.run("sed -i s/1/2/ lib.py; mkdir -p n; echo a > n/a.py; rm pkg/deep.py")
        return await sandbox.diff()

    diff = use(kind, change)

    async def replay(sandbox):
        problem = await sandbox.apply(diff)
        written = await sandbox.run("echo b > n/b.py && rm n/b.py && echo ok")
        return problem, written.output, await sandbox.diff()

    assert use(kind, replay) == ("", "ok\n", diff)
    assert use(
        kind, lambda sandbox: sandbox.apply("--- a/lib.py\n+++ b/lib.py\n@@ -1 +1 @@\n-nothing\n+x\n")
    ).startswith("error: patch failed")


@both
@pytest.mark.parametrize("path", ["../escape.txt", ".git/config", "out/x.txt"])
def test_apply_writes_inside_only(use, kind, path):
    async def body(sandbox):
        (sandbox.root / "out").symlink_to(sandbox.folder)
        return await sandbox.apply(f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+x\n"), (
            sandbox.folder / "x.txt"
        ).exists()

    problem, escaped = use(kind, body)
    assert problem and not escaped
