"""Serves `taskmem` and `dvc` from a process that has done their imports: each call runs in a fork of it.

A DVC pipeline calls the command seventeen times, and importing torch takes longer than any stage of a small run.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

CLIENT = """#!{python} -ISE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({socket!r})
    socket.send_fds(server, [json.dumps([sys.argv, os.getcwd()]).encode()], [1, 2])
    # a command that was killed answers nothing
    sys.exit((server.recv(1) or b"\\1")[0])
"""


@contextlib.contextmanager
def warm_commands(folder: Path, variables: dict[str, str]) -> Iterator[dict[str, str]]:
    """`variables` with both commands on their PATH, until the block ends; `folder` must have a short name."""
    path, commands = folder / "socket", folder / "bin"
    commands.mkdir()
    for name in ("taskmem", "dvc"):
        (commands / name).write_text(CLIENT.format(python=sys.executable, socket=str(path)))
        (commands / name).chmod(0o755)
    served = {**variables, "PATH": f"{commands}:{variables['PATH']}"}
    server = subprocess.Popen([sys.executable, __file__, path], env=served, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield served
    finally:
        server.kill()
        server.wait()


def serve(path: str) -> None:
    """Answer calls, many at a time, until the process is killed."""
    # ruff: noqa: PLC0415, F401 - imported where they are served, for the tests need none of it
    import dvc.cli
    import dvc.repo.experiments.run
    import dvc.repo.reproduce

    import pipelines.cli
    from taskmem.stages import adapt, candidates, deploy, evaluate, gate, train_policy

    mains = {"taskmem": pipelines.cli.main, "dvc": lambda: sys.exit(dvc.cli.main())}
    # nobody waits for the forks
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        print("ready", flush=True)
        while True:
            call, _ = server.accept()
            request, streams, _, _ = socket.recv_fds(call, 1 << 16, 2)
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number, stream in enumerate(streams, 1):
                    os.dup2(stream, number)
                sys.argv, folder = json.loads(request)
                os.chdir(folder)
                answer(call, mains[Path(sys.argv[0]).name])
            for stream in streams:
                os.close(stream)
            call.close()


def answer(call: socket.socket, main: Callable[[], None]) -> None:
    """Run a command, tell its exit code and end the process."""
    try:
        main()
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        call.send(bytes([int(ended.code or 0) & 0xFF]))
    finally:
        os._exit(1)


if __name__ == "__main__":
    serve(sys.argv[1])
