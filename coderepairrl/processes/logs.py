"""What the package's modules say by logging.getLogger(__name__), heard in every process: on stderr, from INFO on.

program.py, cluster/job.py and each process that Python starts afresh (gateway/worker.py) call to_stderr() first; a fork
has it already. Other libraries' loggers are left as they are.
"""

import logging
import sys
from typing import TextIO

# begins with the date: cause.py ends an exception's text there, and takes WARNING and INFO for no error
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Stderr(logging.StreamHandler):
    """Writes to what sys.stderr is now: a test may have put another one there, and closed it since."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter(FORMAT))

    @property
    def stream(self) -> TextIO:
        return sys.stderr


def to_stderr() -> None:
    """Once or more often; records still reach the root logger's handlers, where somebody has set up any."""
    log = logging.getLogger("coderepairrl")
    if not any(isinstance(handler, _Stderr) for handler in log.handlers):
        log.addHandler(_Stderr())
    log.setLevel(logging.INFO)
