"""One context length in two places: what an episode may use, limits.max_total_tokens; and what vLLM serves,
server.max_model_len.

Where only one is given the other follows it; an episode that could outgrow its server is refused when the configuration
is read.
"""

from collections.abc import Mapping
from typing import Any

from coderepairrl.config import Config

LIMIT, SERVED = ("limits", "max_total_tokens"), ("server", "max_model_len")


def follow(raw: Any) -> Any:
    """Of a configuration with the sections `limits` and `server`, before it is read: what is not given is the other."""
    if not isinstance(raw, Mapping):
        return raw
    for (section, name), other in ((LIMIT, SERVED), (SERVED, LIMIT)):
        value = _given(raw.get(other[0]), other[1])
        there = raw.get(section, {})
        if isinstance(value, int) and value > 0 and _given(there, name) is None and isinstance(there, Mapping | Config):
            more = {name: value}
            raw = {**raw, section: there.model_copy(update=more) if isinstance(there, Config) else {**there, **more}}
    return raw


def _given(section: Any, name: str) -> Any:
    if isinstance(section, Config):
        return getattr(section, name) if name in section.model_fields_set else None
    return section.get(name) if isinstance(section, Mapping) else None


def check(max_total_tokens: int, max_model_len: int) -> None:
    """Raises ValueError where these two contradict each other."""
    if max_total_tokens > max_model_len:
        raise ValueError(
            f"max_total_tokens {max_total_tokens} is more than server.max_model_len {max_model_len}, and "
            "an episode would outgrow its server: give both the same, or one of them alone"
        )
