"""Stands in for vLLM in a weight update, in this process: all of the calls, a real communicator (gloo), tensors that
are
kept, an answer to the probe."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
import torch.distributed as dist

from coderepairrl.files import read_json
from coderepairrl.weights import gloo


class WeightsServer:
    """`with WeightsServer(run) as server`: at `url`. What it computes is what the trainer says in probe.json, and `off`
    more.

    calls: the paths that were asked for, in order; paused: whether it would sample now; version: of its weights.
    """

    def __init__(self, run: Path, off: float = 0.0):
        self.run, self.off, self.calls, self.weights, self.paused, self.version = run, off, [], {}, False, None
        self._may_sample = threading.Event()
        self._may_sample.set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.do_POST()

            def do_POST(self):
                path = self.path.strip("/").partition("?")[0]
                length = int(self.headers.get("Content-Length") or 0)
                body = json.dumps(server.answer(path, json.loads(self.rfile.read(length)) if length else {})).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """Nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "WeightsServer":
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, said: dict) -> dict:
        self.calls.append(path)
        return getattr(self, f"_{path.rpartition('/')[2]}", lambda said: {})(said)

    def _pause(self, said: dict) -> dict:
        self.paused = True
        self._may_sample.clear()
        return {}

    def _resume(self, said: dict) -> dict:
        self.paused = False
        self._may_sample.set()
        return {}

    def _get_world_size(self, said: dict) -> dict:
        return {"world_size": 1}

    def _init_weight_transfer_engine(self, said: dict) -> dict:
        info = said["init_info"]
        store = dist.TCPStore(info["master_address"], info["master_port"], info["world_size"], is_master=False)
        self._group = gloo.join(store, info["rank_offset"], info["world_size"], info["timeout_s"])
        return {}

    def _update_weights(self, said: dict) -> dict:
        info = said["update_info"]
        for name, dtype, shape in zip(info["names"], info["dtype_names"], info["shapes"], strict=True):
            self.weights[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            gloo.broadcast(self._group, self.weights[name])
        return {}

    def _finish_weight_update(self, said: dict) -> dict:
        self.version = int(said["weight_version"])
        return {}

    def _generate(self, said: dict) -> dict:
        """As vLLM: a request that comes while it is paused waits, and is computed with the weights of afterwards."""
        self._may_sample.wait()
        logprobs = read_json(self.run / "policy" / "probe.json")["logprobs"][str(self.version)]
        entries = [
            {str(token): {"logprob": logprob + self.off}}
            for token, logprob in zip(said["token_ids"][1:], logprobs, strict=True)
        ]
        return {"prompt_logprobs": [None, *entries]}
