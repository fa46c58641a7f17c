"""A result belongs to its inputs: what made a folder's numbers is recorded in it, and compared before one is shown or
added.

    now = inputs.of(config, inputs.EVALUATION, tasks={"heldout": tasks}, model=folder)     dotted key -> value
    changed = inputs.compare(run / "inputs.json", now, inputs.EVALUATION, config=config, made=True, remedy="another
    run:")
    write_json(run / "inputs.json", now)

A value is that of the resolved configuration; of what it only names (a model, files, tasks, the code of the user's
reward) it is a hash of the content, so that a moved file is the same input and a changed one is not. Every key counts
but
those that are listed here as free.

A record is whole, so that a default that is changed is seen. Of a key that came later it says nothing and stands for
the
default of its class: a new key's default has to keep the program doing what it did before, and in records of before an
empty list or mapping is such a key, too. A key that was recorded and is no more is a difference: it had an effect.
"""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from coderepairrl.config import Config, contents
from coderepairrl.config.schema import discriminator
from coderepairrl.errors import ConfigError, did_you_mean
from coderepairrl.files import read_json
from coderepairrl.types import Task

# ---- what may differ: where a program runs, how fast, what it says meanwhile. A section stands for all keys below it

ROLLOUT = (
    "rollout.server.host",
    "rollout.server.port",
    "rollout.server.threads",
    "rollout.server.devices",
    "rollout.server.kv_cache_mib",
    "rollout.server.max_num_seqs",
    "rollout.server.max_num_batched_tokens",
    "rollout.server.start_timeout_s",
    "rollout.server.update_timeout_s",
    "rollout.server.health_timeout_s",
    "rollout.server.max_restarts",
    "rollout.server.weight_backend",
    "rollout.gateway.host",
    "rollout.gateway.port",
    "rollout.gateway.processes",
    "rollout.environments.cache",
    "rollout.environments.mirrors",
    "rollout.environments.pythons",
    "rollout.environments.tools",
    "rollout.environments.jars",
    "rollout.environments.timeout_s",
    "rollout.sandbox.scratch",
    "rollout.sandbox.overlay",
    "rollout.concurrent_episodes",
    "rollout.infrastructure_retries",
    "rollout.engine_wait_s",
    "rollout.evaluation.share",
    "rollout.max_infrastructure_share",
    "rollout.try_environments",
    "rollout.server.probe_bound",
    "rollout.keep_test_output_mib",
)
ENGINE = (  # memory and speed: the same sums in another order
    "engine.checkpointed_share",
    "engine.offload_activations",
    "engine.offload_optimizer",
    "engine.bucket_elements",
    "engine.sequence_ranks",
    "engine.leaf_modules",
    "engine.persistence_threshold",
)
TRAINING = (
    *ROLLOUT,
    *ENGINE,
    "rollout.evaluation",
    "wandb",
    "training.steps",
    "training.evaluate",
    "training.evaluate_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.export_every",
    "training.max_gap",
    "training.ranks",
    "training.threads",
    "training.devices",
    "training.micro_batch_tokens",
    "training.share_prefixes",
)
ORDER = (  # of training alone
    "rollout.seed",
    "rollout.groups_per_step",
    "rollout.group_size",
    "rollout.max_staleness",
    "rollout.max_refills",
)
EVALUATION = (*ROLLOUT, *ORDER, "chunk_tasks")
RECORDING = (*ROLLOUT, *ORDER)
SFT = (*ENGINE, "ranks", "threads", "wandb", "evaluation.every")
ADMISSION = (
    "parallel",
    "environments.cache",
    "environments.mirrors",
    "environments.pythons",
    "environments.tools",
    "environments.jars",
    "environments.timeout_s",
    "sandbox.scratch",
    "sandbox.overlay",
)

RECORD = "inputs.json"  # in a run's folder

# where results go, which of a run's programs this is, who pays
NO_INPUT = ("run", "output", "out", "role", "resume", "rollout.server.key_file", "rollout.server.prices")
BY_CONTENT = ("model", "rollout.tasks", "tasks")  # a folder and a loader's settings: what they name is hashed instead
FOLDERS = ("path", "model", "folders", "image")  # last parts of keys whose folders are hashed; files are under any key
SHOWN_KEYS, SHOWN_CHARACTERS = 4, 60


# ---- what it is now


def of(
    config: Config,
    free: Sequence[str] = (),
    *,
    tasks: dict[str, Sequence[Task]] = {},
    model: str | None = None,
    known: dict[str, Any] = {},
) -> dict[str, Any]:
    """Dotted key -> value.

    tasks: split -> those that count; model: a Hugging Face folder; known: keys whose content the caller has hashed.
    """
    tree = config.model_dump(mode="json")
    now = of_settings(tree, free, known) | (weights(tree) if "train" in tasks else {})
    now |= {f"rollout.tasks.{split}": contents.tasks(found) for split, found in tasks.items()}
    return now | _reward_code(now) | (contents.model(model) if model else {}) | known


def of_settings(tree: dict[str, Any], free: Sequence[str], known: Sequence[str] = ()) -> dict[str, Any]:
    """Of a configuration alone."""
    leaves = {key: value for key, value in flatten(tree).items() if not covered(key, (*NO_INPUT, *BY_CONTENT))}
    return {key: value if covered(key, (*free, *known)) else _content(key, value) for key, value in leaves.items()}


def weights(tree: dict[str, Any]) -> dict[str, float]:
    """Of a mixture of task sets, which training draws by; the tasks don't say it."""
    sets = ((tree.get("rollout") or {}).get("tasks") or {}).get("sets") or {}
    return {f"rollout.tasks.sets.{name}.weight": share["weight"] for name, share in sets.items()}


def of_evaluation(record: Path) -> str:
    """A hash of what makes the held-out episodes of a run, as it is recorded now, but for the policy; "" where nothing
    is."""
    no_part = (
        *ROLLOUT,
        *ORDER,
        "rollout.sampling",
        "rollout.tasks.train",
        "rollout.tasks.sets",
        "rollout.evaluation.greedy",
        "rollout.evaluation.retry",
    )
    now = {
        key: _identity(value)
        for key, value in (read_json(record) or {}).items()
        if covered(key, ["rollout"]) and not covered(key, no_part) and value != []
    }  # former records have no []
    return contents.digest(now) if now else ""


def flatten(tree: dict | list, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings and lists; an entry of a list has its number as its key. An empty one is [], so that it
    isn't taken for a key that there was not yet."""
    out: dict[str, Any] = {}
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        inner = flatten(value, f"{prefix}{key}.") if isinstance(value, (dict, list)) else {f"{prefix}{key}": value}
        out |= inner or {f"{prefix}{key}": []}
    return out


def _content(key: str, value: Any) -> Any:
    """Of a path what lies there."""
    if not isinstance(value, str) or "\n" in value or not ("/" in value or "." in value):
        return value
    last = next(part for part in reversed(key.split(".")) if not part.isdigit())
    return contents.named(value) if os.path.isfile(value) or (last in FOLDERS and os.path.isdir(value)) else value


def _reward_code(now: dict[str, Any]) -> dict[str, Any]:
    """The modules of the user's own rewards, which the configuration has imported."""
    own = [key.removeprefix("rollout.rewards.weights.") for key in now if key.startswith("rollout.rewards.weights.")]
    specs = {name: importlib.util.find_spec(name.rpartition(".")[0]) for name in own if "." in name}
    found = {name: spec.origin for name, spec in specs.items() if spec and spec.origin}
    return {f"rollout.rewards.code.{name}": contents.named(origin) for name, origin in found.items()}


# ---- against what it was


def covered(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(name + ".") for name in names)


def completed(before: dict[str, Any], config: Config, free: Sequence[str]) -> dict[str, Any]:
    """A record, and beside it the defaults of today's keys that it says nothing of."""
    return of_settings(_defaults(config, before), free) | before


def _defaults(value: Any, recorded: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Of fields that aren't recorded, in sections and entries that are: dotted key -> default."""
    fields = type(value).model_fields if isinstance(value, BaseModel) else {}
    listed = enumerate(value) if isinstance(value, (list, tuple)) else ()
    out: dict[str, Any] = {}
    for name, part in dict(value if isinstance(value, (BaseModel, dict)) else listed).items():
        key, field = f"{prefix}{name}", fields.get(name)
        default = field.get_default(call_default_factory=True) if field else None
        if any(other.startswith(f"{key}.") for other in recorded):
            out |= _defaults(part, recorded, f"{key}.")
            if isinstance(default, BaseModel) and (kind := discriminator(field)):
                out[f"{key}.{kind}"] = getattr(default, kind)  # which it was while there was only one
        elif field and key not in recorded and not field.is_required():
            out[key] = to_jsonable_python(default)
    return out


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list]:
    """key -> [before, now]. What isn't there is None."""
    pairs = {key: [before.get(key), now.get(key)] for key in {**now, **before}}
    return {key: pair for key, pair in pairs.items() if _identity(pair[0]) != _identity(pair[1])}


def _identity(value: Any) -> Any:
    if isinstance(value, dict):  # contents: of a path its hash; of tasks all of them, in their order
        return value["sha256"] if "sha256" in value else list(value.items())
    return None if value == [] else value


def compare(
    record: Path,
    now: dict[str, Any],
    free: Sequence[str],
    *,
    made: bool,
    remedy: str,
    allow: Sequence[str] | None = None,
    config: Config | None = None,
) -> dict[str, list]:
    """key -> [before, now], as it is shown, of what has changed since `record` was written, and may.

    made: whether there is a result; before that nothing counts. config: whose classes know the defaults of keys that
    the
    record doesn't have; None where `now` is of none. ConfigError names the other keys that differ, and the remedy, of
    which
    resume.allow is one unless `allow` is None; or says that nobody recorded what made this.
    """
    before = read_json(record)
    if before is not None and config is not None:
        before = completed(before, config, free)
    whose = record.parent if record.name == RECORD else record.with_name(record.name.removesuffix(f".{RECORD}"))
    _check_allowed(allow or (), [*(before or ()), *now])
    if not made:
        return {}
    if before is None:
        raise ConfigError(
            f"{whose} holds results, but not what made them (no {record.name}: a former version of "
            f"this project wrote them): {remedy}"
        )
    found = differences(before, now)
    refused = {key: pair for key, pair in found.items() if not covered(key, (*free, *(allow or ())))}
    if refused:
        way_on = "" if allow is None else f", or go on with what is changed: resume.allow=[{','.join(refused)}]"
        raise ConfigError(f"{whose} holds results of other inputs: {said(refused)}: {remedy}{way_on[:300]}")
    return {key: [shown(pair[0], pair[1]), shown(pair[1], pair[0])] for key, pair in found.items()}


def _check_allowed(allow: Sequence[str], keys: Sequence[str]) -> None:
    parts = [key.split(".") for key in keys]
    known = {".".join(own[:n]) for own in parts for n in range(1, len(own) + 1)} | {"model", "rollout.tasks"}
    for name in allow:
        if name not in known:
            meant = did_you_mean(name, known, "write it as in the error, such as engine.learning_rate")
            raise ConfigError(f"resume.allow: there is no key {name!r}: {meant}")


def said(found: dict[str, list]) -> str:
    """The first few keys, old -> new, in one line."""
    parts = [f"{key} {shown(old, new)} -> {shown(new, old)}" for key, (old, new) in list(found.items())[:SHOWN_KEYS]]
    return ", ".join(parts) + (f" and {len(found) - SHOWN_KEYS} more" if len(found) > SHOWN_KEYS else "")


def shown(value: Any, other: Any = None) -> str:
    """In one short line. Of long texts that begin alike, from where they part."""
    if value is None or value == []:
        return "not set"
    if isinstance(value, dict) and "sha256" in value:
        return f"{value['path']} ({value['sha256'][: contents.SHOWN]})"
    if isinstance(value, dict):
        return _shown_tasks(value, other if isinstance(other, dict) else {})
    text = repr(value) if isinstance(value, str) and (not value or set(value) & set(" \n\t,")) else str(value)
    if len(text) <= SHOWN_CHARACTERS:
        return text
    theirs = repr(other) if text.startswith(("'", '"')) else str(other)
    start = max(0, len(os.path.commonprefix([text, theirs])) - 10)
    end = start + SHOWN_CHARACTERS
    return ("..." if start else "") + text[start:end] + ("..." if end < len(text) else "")


def _shown_tasks(tasks: dict[str, str], other: dict[str, str]) -> str:
    odd = [name for name in tasks if tasks[name] != other.get(name)]
    if odd:
        return f"{len(tasks)} tasks ({len(odd)} that are not so in the other: {odd[0]} ...)"
    return f"{len(tasks)} tasks{' (in another order)' if tasks.keys() == other.keys() else ''}"
