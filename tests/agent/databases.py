"""Databases for the agent's tests: a fresh SQLite file, or a fresh database on a PostgreSQL server of one's own."""

import os
import pwd
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
BINARIES = INSTALLED[-1] if INSTALLED else Path(shutil.which("postgres") or "/none/postgres").parent
# where there is no server, `make test-system` says what to install
POSTGRESQL = pytest.param(
    "postgresql", marks=() if (BINARIES / "postgres").exists() else pytest.mark.system, id="postgresql"
)
BOTH = ["sqlite", POSTGRESQL]


class PostgreSQL:
    """A server in `folder`, reached through a Unix socket there; it may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        if not (BINARIES / "postgres").exists():
            pytest.fail("PostgreSQL's server is missing: apt-get install postgresql, or put `postgres` on PATH")
        self._data, self.socket = folder / "data", folder
        self._user = next((u.pw_name for u in pwd.getpwall() if u.pw_name in ("postgres", "nobody")), None)
        if os.getuid() == 0:
            folder.chmod(0o777)
            shutil.chown(folder, self._user)
        self._run("initdb", "-D", str(self._data), "-U", "taskmem", "--auth=trust", "--no-sync", "--encoding=UTF8")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        # no power is cut here: what a killed process has written the kernel keeps
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": self.socket,
            "fsync": "off",
            "max_connections": 200,
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        log = (self.socket / "log").open("ab")
        self._process = subprocess.Popen(
            [BINARIES / "postgres", "-D", self._data, *options], stdout=log, stderr=log, **self._as()
        )
        end = time.monotonic() + 60
        while True:
            try:
                self.connect("postgres").close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.socket / "log").read_text()
                assert time.monotonic() < end
                time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to the server and every process of it."""
        assert self._process is not None
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
        """Stop it at once."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def connect(self, database: str) -> psycopg.Connection:
        return psycopg.connect(f"postgresql://taskmem@/{database}?host={self.socket}", autocommit=True)

    def new_database(self) -> str:
        """The URL of what is as good as a new database: a schema of its own."""
        name = f"agent_{uuid.uuid4().hex}"
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"postgresql://taskmem@/postgres?host={self.socket}&options=-csearch_path%3D{name}"

    def _as(self) -> dict[str, object]:
        # it refuses to run as root
        return {"user": self._user, "cwd": "/"} if os.getuid() == 0 else {}

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([BINARIES / program, *arguments], check=True, capture_output=True, **self._as())


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A server for the length of the block; its folder lies where an unprivileged user may reach it."""
    folder = Path("/tmp") / f"taskmem-pg-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    server = None
    try:
        server = PostgreSQL(folder)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
