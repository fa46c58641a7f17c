"""The relay that makes the gateway's socket a port inside a sandbox."""

import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from coderepairrl.scaffolds.inside import relay


def relayed(tmp_path: Path, program: str, path: Path) -> subprocess.CompletedProcess:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            relay.__file__,
            str(path),
            str(port),
            "--",
            sys.executable,
            "-c",
            program,
            str(port),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )


def echo(path: Path) -> socket.socket:
    """Sends back what comes, once its client has ended its half."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(128)

    def answer(connection):
        with connection:
            data = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            connection.sendall(data[::-1])

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # closed: the test is over
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return server


CLIENTS = """
import os, socket, sys
from concurrent.futures import ThreadPoolExecutor
def one(number):
    data = os.urandom(number * 50_000)
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as s:
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: s.recv(1 << 16), b"")) == data[::-1]
def hang_up(number):
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as s:
        s.sendall(b"x" * 100_000)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
with ThreadPoolExecutor(64) as pool:
    list(pool.map(hang_up, range(20)))
    print(all(pool.map(one, range(40))))
"""


def test_the_relay_carries_every_byte_of_many_connections_both_ways(tmp_path):
    path = Path(f"{tmp_path}/s")
    with echo(path):
        done = relayed(tmp_path, CLIENTS, path)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "True", "")


@pytest.mark.parametrize(
    "program, code",
    [("import sys; sys.exit(7)", 7), ("import os; os.kill(os.getpid(), 15)", 143), ("print('x' * 100000)", 0)],
)
def test_the_relay_ends_with_its_program(program, code, tmp_path):
    done = relayed(tmp_path, program, tmp_path / "s")
    assert done.returncode == code and not done.stderr


def test_a_gateway_that_is_gone_is_a_closed_connection_and_one_line(tmp_path):
    program = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); print(s.recv(10))"
    done = relayed(tmp_path, program, tmp_path / "nowhere")
    assert (
        done.stdout.strip() == "b''"
        and done.stderr.strip() == f"relay: {tmp_path}/nowhere: [Errno 2] No such file or directory"
    )


def test_a_relay_that_gets_no_thread_serves_the_next_connection(tmp_path, monkeypatch, capfd):
    """An agent's command may use all processes for a while."""

    class Scarce(threading.Thread):
        left = iter([True])

        def start(self):
            if next(self.left, False):
                raise RuntimeError("can't start new thread")
            super().start()

    monkeypatch.setattr(relay, "threading", SimpleNamespace(Thread=Scarce))
    path = Path(f"{tmp_path}/s")
    with echo(path), socket.create_server(("127.0.0.1", 0)) as listening:
        clients = [socket.create_connection(listening.getsockname(), timeout=20) for _ in range(2)]
        accepted = iter([listening.accept(), listening.accept()])
        with pytest.raises(StopIteration):
            relay.serve(SimpleNamespace(accept=lambda: next(accepted)), str(path))
        clients[1].sendall(b"ab")
        clients[1].shutdown(socket.SHUT_WR)
        assert [client.recv(10) for client in clients] == [b"", b"ba"]
    assert "relay: can't start new thread" in capfd.readouterr().err
