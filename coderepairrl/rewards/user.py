"""The user's own rewards: a dotted path to a callable `f(task, diff, verdict) -> float` (docs/rewards.md).

Looked for in the installed environment, then in the working directory, when the configuration is read: each of a run's
programs
reads it, so a wrong path ends the run before anything is started.
"""

import importlib
import inspect
import math
import numbers
import os
import reprlib
import sys
import traceback
from collections.abc import Callable

from coderepairrl.errors import ConfigError
from coderepairrl.lines import one_line
from coderepairrl.types import Task, Verdict

RewardFunction = Callable[[Task, str, Verdict], float]
SIGNATURE = "f(task, diff, verdict) -> float"


def load(path: str) -> RewardFunction:
    """Raises ValueError with cause and remedy in one line."""
    module_name, _, attribute = path.rpartition(".")
    if not all(part.isidentifier() for part in path.split(".")):
        raise ValueError(f"reward {path!r} is not a dotted path: write module.function, such as my_rewards.short_diff")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: nothing in the working directory may hide an installed module
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise ValueError(
                f"reward {path!r}: {module_name} imports {error.name}, which is not there: install it"
            ) from error
        file = error.name.replace(".", "/") + ".py"
        raise ValueError(
            f"reward {path!r}: no module {error.name!r}: put {file} into the working directory {os.getcwd()}, or "
            "install it"
        ) from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"reward {path!r}: {module_name} can't be imported ({_raised(error)}): mend it") from error
    where = f"{module_name} ({getattr(module, '__file__', None) or 'built in'})"
    if not hasattr(module, attribute):
        raise ValueError(f"reward {path!r}: {where} has no {attribute!r}: correct the name, or define it there")
    function = getattr(module, attribute)
    if not callable(function):
        raise ValueError(
            f"reward {path!r}: {attribute!r} of {where} is {type(function).__name__}, not callable: write def "
            f"{attribute}(task, diff, verdict)"
        )
    try:
        inspect.signature(function).bind(None, "", None)
    except (TypeError, ValueError) as error:  # ValueError: a builtin that has none
        raise ValueError(
            f"reward {path!r}: can't be called as {SIGNATURE} ({error}): give it these three parameters"
        ) from error
    return function


def call(path: str, function: RewardFunction, task: Task, diff: str, verdict: Verdict) -> float:
    """Its value. What goes wrong in it is the user's to mend, so it ends the run: it is neither a reward of 0 nor a
    broken machine."""
    try:
        value = function(task, diff, verdict)
    except (Exception, SystemExit) as error:  # sys.exit() would end the rollout process as if its work were done
        raise ConfigError(
            f"reward {path!r} raised {_raised(error)} on task {task.task_id}: mend it, or take it out of "
            "rewards.weights"
        ) from error
    finite = (
        abs(value) <= sys.float_info.max
        if isinstance(value, numbers.Rational)
        else isinstance(value, numbers.Real) and math.isfinite(value)
    )
    if not finite:  # an integer may be too large for a float
        raise ConfigError(
            f"reward {path!r} returned {reprlib.repr(value)} on task {task.task_id}: it must return a finite number"
        )
    return float(value)


def _raised(error: BaseException) -> str:
    """The exception and the line of the user's file that it came through, in one line."""
    text = f"{type(error).__name__}: {one_line(error)}"
    theirs = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__) and frame.filename[0] != "<"
    ]
    return f"{text}; {theirs[0].filename}:{theirs[0].lineno}" if theirs else text
