"""What every program of this project does at its edge: one line for an error, a non-zero exit, an end by SIGUSR2."""
import errno
import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from coderepairrl import cause
from coderepairrl.attempt import STOPPED
from coderepairrl.errors import CodeRepairError, ConfigError


def program(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """Decorates main(arguments). An exception becomes `error: ...` and exit code 1, after its traceback if it is a bug.

    This line is the program's last word, and what cause.py looks for in its log, where the first rank's stands first.

    SIGUSR2, by which a job's time limit announces itself, ends the program with attempt.STOPPED, unless its parent
    ignored the signal.
    """
    @functools.wraps(main)
    def wrapped(arguments: list[str]) -> None:
        if signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL:
            signal.signal(signal.SIGUSR2, lambda *_: sys.exit(STOPPED))
        try:
            if not arguments or arguments[0] in ("-h", "--help"):
                doc = sys.modules[main.__module__].__doc__
                print(doc.strip() if doc else main.__name__)
                if not arguments:
                    raise ConfigError("no configuration given: name a YAML file, as shown above")
                return
            main(arguments)
        except CodeRepairError as error:
            _end(str(error))
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                _end(f"no space left on the device ({error.filename or 'while writing'}): "
                     "free some, then start the same command again")
            _end(cause.of_exception(error), traceback.format_exc())
    return wrapped


def _end(said: str, shown: str = "") -> NoReturn:
    """The line in one piece, at a line's beginning, before anything is torn down, which other ranks would notice."""
    sys.stdout.flush()
    sys.stderr.write(shown)
    sys.stderr.flush()
    sys.stderr.write(f"{chr(10) if 'RANK' in os.environ else ''}error: {said}\n")  # a rank may have left a progress bar
    sys.stderr.flush()
    sys.exit(1)
