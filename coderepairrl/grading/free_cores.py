"""Whether a core of this machine has nothing to do: then work may begin whose result may not be wanted."""

import os
from pathlib import Path

LOADAVG = Path("/proc/loadavg")


def runnable() -> int:
    """Threads of the whole machine that run or wait for a core at this moment, but for the one that asks (proc(5): the
    fourth field of /proc/loadavg, "3/812")."""
    return int(LOADAVG.read_text().split()[3].split("/")[0]) - 1


def is_free(begun: int) -> bool:
    """begun: processes that were just started and may not show yet. A machine whose other jobs run on cores that this
    job may not use counts as busy: what is left out is only haste."""
    return max(begun, runnable()) < len(os.sched_getaffinity(0))
