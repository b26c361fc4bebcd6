"""A PostgreSQL server of one's own, for a benchmark or a test: started in a temporary folder, thrown away at the end."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from taskmem.errors import UserError

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
BINARIES = INSTALLED[-1] if INSTALLED else Path(shutil.which("postgres") or "/none/postgres").parent


def installed() -> bool:
    """Whether the server's programs are on this machine."""
    return (BINARIES / "postgres").exists()


class PostgreSQL:
    """A server in `folder`, reached through a Unix socket there alone; it may be killed and started again.

    It does not sync the disk: no power is cut here, and what a killed process has written the kernel keeps.
    """

    def __init__(self, folder: Path) -> None:
        """UserError if PostgreSQL is not installed."""
        if not installed():
            raise UserError("PostgreSQL's server is missing; apt-get install postgresql, or put `postgres` on PATH")
        self._data, self.socket = folder / "data", folder
        if os.getuid() == 0:
            folder.chmod(0o711)
            shutil.chown(folder, _unprivileged())
        arguments = ["-D", str(self._data), "-U", "taskmem", "--auth=trust", "--no-sync", "--encoding=UTF8"]
        subprocess.run([BINARIES / "initdb", *arguments], check=True, capture_output=True, **_as())
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers; UserError with its log if it ends instead."""
        settings: dict[str, object] = {
            "listen_addresses": "",
            "unix_socket_directories": self.socket,
            "fsync": "off",
            "max_connections": 200,
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command: list[str | Path] = [BINARIES / "postgres", "-D", self._data, *options]
        with (self.socket / "log").open("ab") as log:
            self._process = process = subprocess.Popen(command, stdout=log, stderr=log, **_as())
        while True:
            try:
                self._connect().close()
                return
            except psycopg.OperationalError:
                if process.poll() is not None:
                    raise UserError(f"PostgreSQL did not start: {(self.socket / 'log').read_text()[-500:]}") from None
                time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to the server and every process of it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)  # so that it has no more children than these
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self._process.kill()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self._process.wait()
        # what a killed server leaves behind keeps the next one from starting until the kernel has it all
        while any(_runs(child) for child in children):
            time.sleep(0.02)

    def stop(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def new_database(self) -> str:
        """The URL of what is as good as a new database: a schema of its own."""
        name = f"agent_{uuid.uuid4().hex}"
        with self._connect() as connection:
            connection.execute(f"CREATE SCHEMA {name}")  # type: ignore[arg-type]
        return f"postgresql://taskmem@/postgres?host={self.socket}&options=-csearch_path%3D{name}"

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(f"postgresql://taskmem@/postgres?host={self.socket}", autocommit=True)


def _unprivileged() -> str:
    return next(user.pw_name for user in pwd.getpwall() if user.pw_name in ("postgres", "nobody"))


def _as() -> dict[str, Any]:
    # it refuses to run as root
    return {"user": _unprivileged(), "cwd": "/"} if os.getuid() == 0 else {}


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def postgresql(below: Path | None = None) -> Iterator[PostgreSQL]:
    """A server for the length of the block, its data in a folder `below`; UserError if PostgreSQL is not installed."""
    # a socket's path has room for a hundred letters, and an unprivileged user must reach it
    folder = Path(tempfile.mkdtemp(prefix="taskmem-pg-", dir=below or "/tmp"))
    server = None
    try:
        server = PostgreSQL(folder)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
