"""Runs inside a sandbox that has no network: 127.0.0.1:PORT -> the gateway's Unix socket, for as long as one program
runs.

    python -I -S relay.py SOCKET PORT -- PROGRAM [ARGUMENT ...]

Exits with the program's code (128 + the signal's number where one ended it). Only the standard library: it runs with
whatever Python an agent has.
"""

import os
import socket
import sys
import threading

CHUNK_BYTES = 1 << 16
STACK_BYTES = 1 << 18  # of a thread; the usual 8 MiB would count against the sandbox's memory


def forward(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(CHUNK_BYTES):
            sink.sendall(data)
    except OSError:  # one side hung up: the other is told
        pass
    for end, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
        try:
            end.shutdown(how)
        except OSError:  # it is gone already
            pass


def connect(client: socket.socket, path: str) -> None:
    with client, socket.socket(socket.AF_UNIX) as gateway:
        try:
            gateway.connect(path)
        except OSError as error:
            print(f"relay: {path}: {error}", file=sys.stderr, flush=True)
            return
        answers = threading.Thread(target=forward, args=(gateway, client), daemon=True)
        answers.start()
        forward(client, gateway)
        answers.join()


def serve(server: socket.socket, path: str) -> None:
    while True:
        client, _ = server.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            threading.Thread(target=connect, args=(client, path), daemon=True).start()
        except (
            RuntimeError
        ) as error:  # the agent has as many processes as it may, for now: one request fails, and not all after it
            print(f"relay: {error}", file=sys.stderr, flush=True)
            client.close()


def main(path: str, port: str, _: str, *argv: str) -> int:
    threading.stack_size(STACK_BYTES)
    server = socket.create_server(("127.0.0.1", int(port)), backlog=64)
    try:
        pid = os.posix_spawnp(argv[0], argv, os.environ)
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr)
        return 127
    threading.Thread(target=serve, args=(server, path), daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # the threads are not waited for
