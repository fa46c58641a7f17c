"""Attacks by an agent during its episode, with any command it likes: nothing of the judge is in reach, and what it
leaves is graded like any diff."""

import asyncio
import sys
from dataclasses import replace

import pytest
from judge_helpers import FIX, PYTEST_TASK, RIGHT, UNITTEST_TASK, WRONG

from coderepairrl.rewards import grade
from coderepairrl.sandboxes import start_sandbox

SECRET = "expected_by_hidden_tests_only"
TASK = replace(
    UNITTEST_TASK, hidden_tests={"test_hidden.py": UNITTEST_TASK.hidden_tests["test_hidden.py"] + f"\n\n{SECRET} = 1\n"}
)


def play(config, *commands, task=TASK):
    """(output of each command, the diff, its verdict)."""

    async def main():
        async with start_sandbox(config, task) as sandbox:
            outputs = [(await sandbox.run(command, timeout_s=300)).output for command in commands]
            diff = await sandbox.diff()
        return outputs, diff, await grade(task, diff, config)

    return asyncio.run(main())


LOOKS = {
    "the checkout, whatever it is called": f"grep -rsl {SECRET} /repo /tmp /home /var /mnt /srv /run 2>/dev/null",
    "other processes": f"cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep {SECRET}; "
    f"ls -d /proc/[0-9]*/root/* 2>/dev/null | grep hidden; grep -rsl {SECRET} /proc/[0-9]*/cwd/ /proc/[0-9]*/fd/ "
    "2>/dev/null",
    "git's objects": f"git cat-file --batch-all-objects --batch </dev/null 2>/dev/null | grep -a {SECRET}; "
    f"find /repo/.git -type f -exec git hash-object {{}} + >/dev/null; git log --all --format=%H -S{SECRET}; git stash "
    "list; git fsck --lost-found 2>/dev/null | grep -v Checking",
    "another commit": "git rev-list --all --count | grep -v '^1$'; git tag; git remote; git reflog 2>/dev/null; "
    "git for-each-ref | "
    "grep -v 'refs/heads/main$'",
}


@pytest.mark.parametrize("look", LOOKS)
def test_hidden_tests_and_history_are_nowhere(config, look):
    # as a pattern that does not match itself, so that the command is not what it finds
    command = LOOKS[look].replace(SECRET, f"'[{SECRET[0]}]{SECRET[1:]}'") if "cmdline" in LOOKS[look] else LOOKS[look]
    [output], diff, _ = play(config, command)
    assert output.strip() == diff == "", output


def test_there_is_no_network(config):
    code = (
        "import socket\nfor host in ('1.1.1.1', '127.0.0.1'):\n    try:\n"
        "        socket.create_connection((host, 80), 1)\n        print('open')\n    except OSError as error:\n"
        "        print('closed')\n"
    )
    [output, links], _, _ = play(
        config, f'{sys.executable} -c "{code}"', "cat /proc/net/dev | tail -n +3 | cut -d: -f1"
    )
    assert output.split() == ["closed", "closed"] and links.split() == ["lo"]


def test_processes_do_not_outlive_their_command_and_write_nothing_later(config):
    outputs, diff, verdict = play(
        config,
        "(setsid sh -c 'sleep 0.5; echo x > /repo/late.py' >/dev/null 2>&1 &) ; nohup sleep 600 >/dev/null 2>&1 & echo "
        "started",
        "sleep 0.8; ls; ls /proc | grep -c '^[0-9]'",
    )
    assert (
        outputs[0].strip() == "started"
        and "late.py" not in outputs[1]
        and int(outputs[1].split()[-1]) < 8
        and diff == ""
        and not verdict.resolved
    )


def test_killing_and_forking_ends_only_the_command(config):
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: os._exit(7)\n"
    outputs, diff, verdict = play(
        config.model_copy(update={"processes": 40}),
        "kill -9 -1; kill -9 1; kill -9 $PPID",
        f'{sys.executable} -c "{bomb}"',
        f"cat > lib.py <<'EOF'\n{RIGHT}EOF\necho wrote",
    )
    assert outputs[2].strip() == "wrote" and diff != "" and verdict.resolved


def test_neither_the_interpreter_nor_the_system_can_be_replaced(config):
    folder = sys.executable.rpartition("/")[0]
    tries = [
        f"cp /bin/true {folder}/python3",
        f"echo 'import os; os._exit(0)' > "
        f"{sys.prefix}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/sitecustomize.py",
        "cp /bin/true /usr/bin/git",
        "echo x > /etc/passwd",
        "mkdir -p ~/.local/lib; echo 'import x' > ~/.local/lib/evil.pth; true",
    ]
    outputs, diff, verdict = play(config, *[f"{{ {one}; }} 2>/dev/null && echo done" for one in tries])
    # its home is its own, and gone after the command
    assert [output.strip() for output in outputs] == ["", "", "", "", "done"] and diff == "" and not verdict.resolved


@pytest.mark.parametrize(
    "trick",
    [
        "mkdir bin; printf '#!/bin/sh\\nexit 0\\n' > bin/python; chmod +x bin/python; cp bin/python python; cp "
        "bin/python python3; cp bin/python pytest; git add -A",
        "printf 'import os\\nos._exit(0)\\n' > sitecustomize.py; mkdir -p xmlrunner; echo 'print(1)' > xmlrunner/"
        "__main__.py; echo 'import lib' > a.pth",
        "rm -f test_lib.py; ln -s /dev/null test_hidden.py; ln -s /etc evil; mkfifo pipe",
        "mkdir __pycache__; cp lib.py __pycache__/test_hidden.cpython-311.pyc; printf '[pytest]\\naddopts = -p "
        "lib\\n' > pytest.ini",
        "export PYTEST_ADDOPTS='-p lib' PYTHONSTARTUP=/repo/lib.py PYTHONPATH=/repo; echo 'export PYTHONPATH=/repo' > "
        "~/.bashrc",
        "git config core.fsmonitor 'touch /tmp/x'; git config filter.x.clean 'cat /etc/passwd'; echo '* "
        "filter=x' > .git/info/attributes; printf '#!/bin/sh\\n' > .git/hooks/post-checkout",
        "rm -rf .git; git init -q .; git add -A; git -c user.name=a -c user.email=a commit -qm x; rm -rf .git; echo "
        "gone",
        "git update-index --assume-unchanged lib.py; echo '*' > .git/info/exclude; echo '*' > .gitignore",
        "date -s 2038-01-19 2>/dev/null; touch -d 2038-01-19 lib.py test_lib.py; chmod 000 test_lib.py",
    ],
)
def test_what_an_agent_leaves_around_decides_nothing(config, trick):
    """With the repair the verdict is resolved, without it is not: the trick changes neither."""
    _, _, honest = play(config, trick, f"cat > lib.py <<'EOF'\n{RIGHT}EOF")
    _, diff, cheat = play(config, trick)
    assert honest.resolved and not cheat.resolved, (honest, cheat)
    assert not any(line.startswith("+") and "root:" in line for line in diff.splitlines())


def test_a_flood_of_output_or_files_is_bounded(config):
    small = config.model_copy(update={"file_size_mib": 1, "tmp_mib": 2, "output_kib": 8})
    outputs, diff, _ = play(
        small,
        "yes | head -c 30000000; echo; echo end",
        "head -c 5000000 /dev/zero > big.bin; wc -c < big.bin",
        "head -c 5000000 /dev/zero > /tmp/a; head -c 5000000 /dev/zero > /tmp/b; du -sbx /tmp | cut -f1",
    )
    assert (
        len(outputs[0]) < 10_000
        and outputs[0].endswith("end\n")
        and int(outputs[1].split()[-1]) <= 1 << 20
        and int(outputs[2].split()[-1]) < 3 << 20
    )
    assert "big.bin" not in diff


def test_a_sibling_sees_nothing_of_it(config):
    async def main():
        async with start_sandbox(config, PYTEST_TASK) as one, start_sandbox(config, PYTEST_TASK) as other:
            await one.run("echo broken > lib.py; echo x > new.py; rm -rf tests .git; chmod -R 000 .")
            return (
                (await other.run("cat lib.py; ls; git status --short")).output,
                await other.diff(),
                (await grade(PYTEST_TASK, FIX, config)).resolved,
            )

    output, diff, resolved = asyncio.run(main())
    assert output == WRONG + "lib.py\ntests\n" and diff == "" and resolved
