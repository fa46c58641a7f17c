"""Stands in for `vllm serve` where its life is tested, not its answers: small_server.py PORT MODEL. Dies when the model
isn't there.

/health, /weight_info ("default" until a POST to /update_weight_version), as vLLM has them. To /inference/v1/generate it
says that
every token of the prompt has the logprob that stands in MODEL/logprob, or -1.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    version = "default"

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/inference/v1/generate":
            file = Path(model) / "logprob"
            logprob = float(file.read_text()) if file.exists() else -1.0
            self.answer(
                prompt_logprobs=[None, *({str(token): {"logprob": logprob}} for token in said["token_ids"][1:])]
            )
        else:
            Handler.version = said["new_version"]
            self.answer()

    def answer(self, **fields) -> None:
        body = json.dumps({"weight_version": Handler.version} | fields).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Nothing."""


port, model = sys.argv[1:]
if not Path(model).is_dir():
    sys.exit(f"FileNotFoundError: {model}")
memory, lock = SharedMemory(create=True, size=4096), get_context("spawn").Lock()  # as vLLM's workers have them
HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
