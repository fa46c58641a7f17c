"""Shared by the tests of causes."""

HEADER = "Traceback (most recent call last):\n"
CODE = '  File "/venv/lib/x.py", line 83, in wrapper\n    return func(*args)\n           ^^^^^^^^^^^\n'


def traceback(
    *raised: str, before: str = "", link: str = "The above exception was the direct cause of the following exception:"
) -> str:
    """`before` stands at the beginning of each line but empty ones, as torch and vLLM put it there."""
    lines = f"\n\n{link}\n\n".join(HEADER + CODE + one for one in raised).split("\n")
    return "".join((before + line if line else "") + "\n" for line in lines)


BY_KERNEL = ", from outside: where nobody sent it, the kernel did, for want of memory"
