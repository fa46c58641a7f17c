"""What every program of this project does at its edge: one line for an error made on purpose, a non-zero exit, an end by SIGUSR2, --help.

    @program(TrainConfig)           or @program alone, of one that reads no configuration
    def main(arguments: list[str]) -> None: ...
"""
import functools
import signal
import sys
from collections.abc import Callable

from coderepairrl.attempt import STOPPED
from coderepairrl.config import Config, help
from coderepairrl.errors import CodeRepairError, ConfigError


Main = Callable[[list[str]], None]


def program(*what: Main | type[Config]) -> Main | Callable[[Main], Main]:
    """Decorates main(arguments). A CodeRepairError becomes `error: ...` and exit code 1; any other exception is a bug and is shown whole.

    SIGUSR2, by which a job's time limit announces itself, ends the program with attempt.STOPPED, unless its parent ignored the signal.
    --help prints the module's docstring and every key of the classes. They are kept as main.configs.
    """
    if all(isinstance(config, type) for config in what):
        return lambda main: _wrapped(main, what)
    return _wrapped(what[0], ())


def _wrapped(main: Main, configs: tuple[type[Config], ...]) -> Main:
    @functools.wraps(main)
    def wrapped(arguments: list[str]) -> None:
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
                raise ConfigError("no configuration given: name a YAML file, as shown above; --help lists its keys"
                                  if configs else "nothing given to work on: see above")
            main(arguments)
        except CodeRepairError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except OSError as error:
            if error.errno != 28:  # ENOSPC
                raise
            print(f"error: no space left on the device ({error.filename or 'while writing'}): free some, then start the same command again", file=sys.stderr)
            sys.exit(1)
    wrapped.configs = configs
    return wrapped
