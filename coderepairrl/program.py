"""What every program of this project does at its edge: one line for an error made on purpose, a non-zero exit, an end by SIGUSR2."""
import functools
import signal
import sys
from collections.abc import Callable

from coderepairrl.attempt import STOPPED
from coderepairrl.errors import CodeRepairError, ConfigError


def program(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """Decorates main(arguments). A CodeRepairError becomes `error: ...` and exit code 1; any other exception is a bug and is shown whole.

    SIGUSR2, by which a job's time limit announces itself, ends the program with attempt.STOPPED, unless its parent ignored the signal.
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
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except OSError as error:
            if error.errno != 28:  # ENOSPC
                raise
            print(f"error: no space left on the device ({error.filename or 'while writing'}): free some, then start the same command again", file=sys.stderr)
            sys.exit(1)
    return wrapped
