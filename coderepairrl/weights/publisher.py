"""What the trainer tells the rest of the run about its weights: counts them, says what they compute, sends them into
the running vLLM, exports them now and then.

policy.py describes the files. Every method is collective.
"""

import json
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from coderepairrl.errors import EngineError
from coderepairrl.files import read_json, write_json
from coderepairrl.inference.server_config import ServerConfig
from coderepairrl.training import batch, packing
from coderepairrl.training.batch import MicroBatch
from coderepairrl.training.checkpoints import folder_of
from coderepairrl.training.engine import Engine
from coderepairrl.types import Sample
from coderepairrl.weights import Sent, UnprovenError, WeightSender, probe
from coderepairrl.weights.probe import Probe

KEPT_EXPORTS = 2  # so that a vLLM that is reading the one before the newest can go on


class Publisher:
    """`version` of the newest weights; of the last `publish`: `seconds`, without the export `send_s`, for the probe's
    forward pass `probe_s`; `sent` on rank 0 (None: it failed)."""

    def __init__(self, engine: Engine, run: Path, server: ServerConfig, version: int, export_every: int):
        """`version`: of the weights that the engine has now, which vLLM was started with, as current.json says
        already."""
        self.engine, self.version, self.export_every = engine, version, export_every
        self.seconds, self.send_s, self.probe_s = 0.0, 0.0, 0.0
        self.updates, self.failed = 0, 0
        self.sent: Sent | None = None
        self._run, self._policy = run, run / "policy"
        # Versions that a killed attempt has used after the checkpoint are not given again: its tokens carry them. All
        # ranks must have read the file before one of them publishes.
        self._highest = int(engine.max([max(version, read_json(self._policy / "highest_version") or 0)])[0])
        self._exported: int | None = None
        self._since_export = 0
        # pids of the servers that the newest weights were sent to; where that failed they are restarted
        self._tried: set[int] = set()
        self._row = probe.token_ids(engine.module.model.config.vocab_size, server.max_model_len)
        self._bound = server.largest_gap(exact=engine.config.dtype == "float32" and not engine.config.autocast)
        if engine.rank == 0:
            self._sender = WeightSender(
                server.transfer_backend, getattr(torch, server.dtype), engine.device, server.update_timeout_s
            )
            self._register()
        self._probe = self._computed()

    def publish(self) -> None:
        """A failed send is not an error: vLLM is then restarted by the rollout process from the export that is made at
        once."""
        started = time.monotonic()
        self._next_version()
        self._since_export += 1
        self._probe = self._computed()
        self.probe_s = time.monotonic() - started
        self._tried = set()
        problem, failed = self._send()
        self.send_s = time.monotonic() - started
        self.updates += not failed
        self.failed += failed
        if failed or self._since_export >= self.export_every:
            self._export()
        self._announce({"version": self.version, "step": self.engine.steps, "live": not failed, "reason": problem})
        self.seconds = time.monotonic() - started

    def answer_wish(self) -> None:
        """Called often while the trainer waits. Exports the newest weights if a server needs them to start; sends them
        to one that began with older ones."""
        wish = self._policy / "export_wanted.json"
        wanted, behind = self.engine.max(
            [float(self.engine.rank == 0 and wish.exists()), float(self.engine.rank == 0 and self._behind())]
        )
        if behind:
            problem, failed = self._send()
            self.failed += failed
            if failed:
                self._export()
            self._announce({"version": self.version, "live": not failed, "reason": problem})
        if not wanted:
            return
        if self._exported != self.version:
            self._export()
        self._announce({})
        if self.engine.rank == 0:
            wish.unlink(missing_ok=True)

    def proof(self) -> dict[str, float]:
        """What the last update's probe found and took, on rank 0; nothing where the update failed."""
        if self.sent is None:
            return {}
        return {
            "probe_s": self.probe_s + self.sent.proof_s,
            "probe_gap": self.sent.gap.largest,
            "probe_gap_mean": self.sent.gap.mean,
        }

    def checkpoint(self, step: int) -> None:
        """Everything that a later attempt needs, under checkpoints/step_N. Which of them stay is checkpoints.py's
        matter."""
        folder = folder_of(self._run, step)
        if not folder.exists():
            self.engine.save(folder, {"step": step, "version": self.version})

    def _next_version(self) -> None:
        self._highest += 1
        self.version = self._highest
        if self.engine.rank == 0:
            write_json(self._policy / "highest_version", self.version)
            self._register()

    def _register(self) -> None:
        """A row in versions.jsonl, before any token can carry the version."""
        path, row = self._policy / "versions.jsonl", json.dumps({"version": self.version, "step": self.engine.steps})
        if not path.exists() or row not in path.read_text().split("\n"):  # a resumed run has its first row already
            with path.open("a") as file:
                file.write(row + "\n")

    def _servers(self) -> list[dict]:
        """Those that are up, on rank 0. One that is being restarted has no file; it begins with an export."""
        files = sorted(self._policy.glob("engine_*.json")) if self.engine.rank == 0 else []
        return [server for server in map(read_json, files) if server]

    def _behind(self) -> bool:
        """Whether a server was started with older weights, and is waiting for these."""
        return any(server["version"] < self.version and server["pid"] not in self._tried for server in self._servers())

    def _computed(self) -> Probe | None:
        """What the weights say of the row, on rank 0 and in probe.json. Raises EngineError on all when it is no
        number."""
        logprobs = self.engine.scores(micro_batch(self._row).to(self.engine.device))
        if self.engine.max([float(not logprobs.isfinite().all())])[0]:
            raise EngineError(
                f"the logprobs that weights {self.version} give to the probe are not numbers: the training "
                "has diverged, lower engine.learning_rate, or the weights that it began with were broken"
            )
        if self.engine.rank:
            return None
        computed = Probe(self.version, self._row, tuple(logprobs.tolist()), self._bound)
        probe.write(self._run, computed)
        return computed

    def _send(self) -> tuple[str, bool]:
        """(why vLLM does not have the weights, on rank 0; whether it doesn't, on all ranks).

        A version that tokens of other weights may carry is given up.
        """
        problem, unproven = self._sent_to_servers()
        failed, spent = (value > 0 for value in self.engine.max([float(bool(problem)), float(unproven)]))
        if spent:
            if self.engine.rank == 0:
                with (self._policy / "unproven.jsonl").open("a") as file:
                    file.write(json.dumps({"version": self.version, "reason": problem}) + "\n")
            self._next_version()
            self._probe = self._computed()
        return problem, failed

    def _sent_to_servers(self) -> tuple[str, bool]:
        """(why vLLM does not have the weights; whether it sampled with what it had); ("", False) on the other ranks."""
        self.sent = None
        servers = self._servers()
        if not servers:  # all ranks gather, whatever rank 0 knows
            for _ in self.engine.buckets():
                pass
            return ("" if self.engine.rank else "vLLM is being restarted"), False
        self._tried = {server["pid"] for server in servers}
        addresses = [(server["url"], server["pid"]) for server in servers]
        layout, buckets = self.engine.layout(), self.engine.buckets()
        try:
            self.sent = self._sender.send(addresses, self.version, layout, buckets, self._probe)
        except EngineError as error:
            print(f"weight update {self.version} failed: {error}", flush=True)
            return str(error), isinstance(error, UnprovenError)
        return "", False

    def _export(self) -> None:
        self.engine.export(self._policy / f"v{self.version:06d}")
        self._exported, self._since_export = self.version, 0

    def _announce(self, changes: dict) -> None:
        """Rewrites current.json and removes exports that it does not name any more."""
        if self.engine.rank:
            return
        if self._exported is not None:
            changes = changes | {"path": str(self._policy / f"v{self._exported:06d}"), "path_version": self._exported}
        before = read_json(self._policy / "current.json")
        write_json(self._policy / "current.json", before | {"tried": sorted(self._tried)} | changes)
        self._remove(self._policy.glob("v[0-9]*"), KEPT_EXPORTS)

    def _remove(self, folders: Iterable[Path], keep: int) -> None:
        """All but the newest, unfinished ones too; never what current.json names."""
        folders = set(folders)
        newest = sorted(folder for folder in folders if folder.suffix != ".tmp")[-keep:]
        named = Path(read_json(self._policy / "current.json")["path"]).resolve()
        for folder in folders.difference(newest):
            if not named.is_relative_to(folder.resolve()):
                shutil.rmtree(folder)


def micro_batch(token_ids: Sequence[int]) -> MicroBatch:
    """A row as the trainer takes it, in which every token but the first is asked for."""
    length = len(token_ids)
    zeros = (0.0,) * length
    positions, mask, versions = tuple(range(length)), (1,) * length, (-1,) * length
    row = Sample("probe", "probe", 0, tuple(token_ids), positions, mask, zeros, zeros, versions)
    return batch.collate(packing.pieces([row], length), [row], [0.0], {})
