"""Threads that never keep the program from ending, which those of ThreadPoolExecutor do."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


def in_thread(function: Callable, *arguments) -> Future:
    """Runs it in a daemon thread of its own."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name=getattr(function, "__name__", None)).start()
    return future
