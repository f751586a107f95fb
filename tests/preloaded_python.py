"""A ``python`` for shell scripts that starts at once: a fork of one that has imported MMDetection.

The imports take longer than the tiny runs of the tests. What is run is none the wiser: it has its
own process, arguments, environment, folder, standard streams and exit code.
"""

import contextlib
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

READY = "ready"


@contextlib.contextmanager
def preloaded_python(folder: Path, opened: Path) -> Iterator[Path]:
    """Within the context, a folder for ``PATH`` that holds such a ``python``.

    Args:
        folder: Where to make it; short enough for a socket's address.
        opened: A file to which it adds the path of each Python file that is read.
    """
    folder.mkdir()
    address = folder / "socket"
    command = folder / "python"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{__file__}" "{address}" "$@"\n')
    command.chmod(0o755)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", address, opened],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        for line in server.stdout:
            if line.strip() == READY:
                break
        else:
            raise RuntimeError("the preloaded Python did not start")
        yield folder
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # with what is still running
        server.wait()
        server.stdout.close()


def ask(address: str, arguments: list[str]) -> int:
    """Have the server run this; returns the exit code, 1 if the process was killed."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        request = dict(arguments=arguments, cwd=os.getcwd(), env=dict(os.environ))
        socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
        code = connection.recv(1)
    return code[0] if code else 1


def serve(address: str, opened: str) -> None:
    """Import everything, then fork for each request until killed."""
    import kd_detr_mmdet  # noqa: F401  isort: skip

    import mmdet.apis  # noqa: F401
    import mmengine.runner.runner
    import onnxruntime  # noqa: F401
    import yapf.yapflib.yapf_api
    from matplotlib import pyplot  # noqa: F401

    # Asking compilers for their versions and laying configs out take longer than all the rest.
    mmengine.runner.runner.collect_env = lambda: {"Python": "3"}
    yapf.yapflib.yapf_api.FormatCode = lambda text, **_: (text, False)
    # A process for each detector whose memory is measured would import everything again.
    context = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: context("fork")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print(READY, flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody has to wait for the children
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                code = 1
                try:
                    code = run(connection, opened)
                except BaseException:
                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
                connection.sendall(bytes([code]))
                os._exit(0)
            connection.close()


def run(connection: socket.socket, opened: str) -> int:
    """Become the process that was asked for."""
    text, streams, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while not text.endswith(b"\n"):
        text += connection.recv(1 << 16)
    request = json.loads(text)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    log = os.open(opened, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(event: str, args: tuple) -> None:
        if event == "open" and isinstance(args[0], (str, os.PathLike)):
            path = os.path.realpath(args[0])
            if path.endswith(".py"):
                os.write(log, f"{path}\n".encode())

    sys.addaudithook(note)
    sys.dont_write_bytecode = True  # else the second reader of a module would not open it
    first, *rest = request["arguments"]
    try:
        if first == "-c":
            sys.argv = ["-c", *rest[1:]]
            sys.path.insert(0, "")
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = [first, *rest]
            sys.path.insert(0, os.path.dirname(os.path.realpath(first)))
            runpy.run_path(first, run_name="__main__")
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 255
        print(stop.code, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        serve(*sys.argv[2:])
    sys.exit(ask(sys.argv[1], sys.argv[2:]))
