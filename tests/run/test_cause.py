"""Whatever failed, the line that is shown is the first error of what failed first.

Each text is what a real failure printed, made short.
"""

import asyncio
import re
import subprocess
import sys

import pytest
from cause_helpers import BY_KERNEL, HEADER, traceback

from coderepairrl.processes import cause


def test_where_no_line_is_an_error_a_log_is_not_guessed_at(tmp_path):
    (tmp_path / "log").write_text("step 1: reward 0.2\nThe cache was not found\nstep 2: reward 0.3\n")
    assert cause.of_log(tmp_path / "log", code=1) == cause.of_log(tmp_path / "none") == "no error in its log"
    assert cause.of_text((tmp_path / "log").read_text()) == "The cache was not found"  # of what a tool printed
    assert cause.of_text("error: it broke\n  more\n\nhint: try again\n") == "it broke"
    assert cause.of_text("one\ntwo  words\n") == "two words" and cause.of_text("") == ""


def test_a_signal_is_the_cause_whatever_was_logged_before(tmp_path):
    (tmp_path / "log").write_text(traceback("OSError: no cache") + "step 1\n")
    assert (
        cause.of_log(tmp_path / "log", code=-9)
        == cause.of_log(tmp_path / "log", code=137)
        == "ended by SIGKILL" + BY_KERNEL
    )
    (tmp_path / "log").write_text("  what():  CUDA error\n")
    assert cause.of_log(tmp_path / "log", code=-6) == "ended by SIGABRT: what(): CUDA error"


def test_what_a_former_start_wrote_into_the_log_does_not_count(tmp_path):
    (tmp_path / "log").write_text(traceback("ValueError: the first start"))
    began = (tmp_path / "log").stat().st_size
    (tmp_path / "log").open("a").write(traceback("OSError: the second start"))
    assert cause.of_log(tmp_path / "log", began, 1) == "OSError: the second start"


def test_long_ends_are_cut_and_hostile_text_takes_no_time():
    assert len(cause.of_text(traceback("ValueError: " + "x" * 9999))) == cause.LIMIT
    for text in (
        "[rank1]: \n" * 30_000,
        "12:34:56 " * 30_000,
        HEADER * 3000,
        "a: " * 30_000,
        "\x1b[" * 30_000,
        "".join(f"[rank{i}]:\n" for i in range(9000)),
        "|+ " * 30_000,
        "  Traceback (most recent call last):\n    x\n" * 30_000,
        "Exception Group Traceback (most recent call last):\n" * 9000,  # without its bar, as no Python prints it
        "".join("+ " * deep + "Exception Group Traceback (most recent call last):\n" for deep in range(480)),
    ):
        cause.of_text(text)


async def fails(error: Exception) -> None:
    raise error


async def group() -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fails(ValueError("in a task")))


def test_a_real_traceback_and_its_exception_say_the_same():
    def handled():
        try:
            {}["lora"]
        except KeyError:
            raise RuntimeError("no model")  # noqa: B904

    def hidden():
        try:
            {}["lora"]
        except KeyError:
            raise RuntimeError("no model") from None

    for function, expected in (
        (handled, "KeyError: 'lora'; then RuntimeError: no model"),
        (hidden, "RuntimeError: no model"),
        (lambda: asyncio.run(group()), "ValueError: in a task"),
    ):
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            function()
        import traceback as shown

        assert (
            cause.of_exception(caught.value) == cause.of_text("".join(shown.format_exception(caught.value))) == expected
        )


def test_a_real_process_that_dies_in_c_is_named(tmp_path):
    with (tmp_path / "log").open("w") as log:
        code = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", "import ctypes; ctypes.string_at(0)"], stderr=log
        ).returncode
    assert re.fullmatch(
        "ended by SIGSEGV: Fatal Python error: Segmentation fault", cause.of_log(tmp_path / "log", code=code)
    )
