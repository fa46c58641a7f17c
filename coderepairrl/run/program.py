"""What every program of this project does at its edge: one line for an error, a non-zero exit, an end by SIGUSR2,
the package's log on stderr, --help.

    @program(TrainConfig)           or @program alone, of one that reads no configuration
    def main(arguments: list[str]) -> None: ...
"""

import errno
import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from coderepairrl.config import Config, help
from coderepairrl.errors import CodeRepairError, ConfigError
from coderepairrl.processes import cause, logs
from coderepairrl.run.attempt import STOPPED

Main = Callable[[list[str]], None]


def program(*what: Main | type[Config]) -> Main | Callable[[Main], Main]:
    """Decorates main(arguments). An exception becomes `error: ...` and exit code 1, after its traceback if it is a bug.

    This line is the program's last word, and what cause.py looks for in its log, where the first rank's stands first.

    SIGUSR2, by which a job's time limit announces itself, ends the program with attempt.STOPPED, unless its parent
    ignored the signal. --help prints the module's docstring and every key of the classes. They are kept as
    main.configs.
    """
    if all(isinstance(config, type) for config in what):
        return lambda main: _wrapped(main, what)
    return _wrapped(what[0], ())


def _wrapped(main: Main, configs: tuple[type[Config], ...]) -> Main:
    @functools.wraps(main)
    def wrapped(arguments: list[str]) -> None:
        logs.to_stderr()
        if signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL:
            signal.signal(signal.SIGUSR2, lambda *_: sys.exit(STOPPED))
        try:
            doc = sys.modules[main.__module__].__doc__ or main.__name__
            if {"-h", "--help"} & set(arguments):
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
                print(help.text(doc, configs))
                return
            if not arguments:
                print(doc.strip(), file=sys.stderr)
                raise ConfigError(
                    "no configuration given: name a YAML file, as shown above; --help lists its keys"
                    if configs
                    else "nothing given to work on: see above"
                )
            main(arguments)
        except CodeRepairError as error:
            _end(str(error))
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                _end(
                    f"no space left on the device ({error.filename or 'while writing'}): "
                    "free some, then start the same command again"
                )
            _end(cause.of_exception(error), traceback.format_exc())

    wrapped.configs = configs
    return wrapped


def _end(said: str, shown: str = "") -> NoReturn:
    """The line in one piece, at a line's beginning, before anything is torn down, which other ranks would notice."""
    sys.stdout.flush()
    sys.stderr.write(shown)
    sys.stderr.flush()
    sys.stderr.write(f"{chr(10) if 'RANK' in os.environ else ''}error: {said}\n")  # a rank may have left a progress bar
    sys.stderr.flush()
    sys.exit(1)
