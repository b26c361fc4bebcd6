"""The agent's database: SQLite in one file, or PostgreSQL, which several agents may share."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Engine, create_engine, event, func, insert, make_url, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from taskmem.agent.tables import VERSION, VERSIONS, metadata
from taskmem.errors import UserError
from taskmem.files import canonical_json, sha256_bytes
from taskmem.store.locks import acquire, release

CONNECT_SECONDS, STATEMENT_SECONDS, WAIT_SECONDS = 5, 30, 30
_SHAPE = ["schema"]


class StorageDownError(Exception):
    """The database does not answer now; what was asked for may or may not have been done, and can be asked for again."""


class Storage:
    """Transactions, each of which is durable when its block ends; any number of threads.

    SQLite runs in WAL with a sync of the disk for every transaction, and belongs to one process. What is erased is overwritten
    there; in PostgreSQL its space is given free, and vacuumed and archived as the server is set up to.
    """

    def __init__(self, url: str, connections: int = 16) -> None:
        """Open it, its tables made where there are none. UserError for a URL or file that cannot be used, another version of the
        tables, or an SQLite file that another agent has; StorageDownError if there is no connection."""
        self._held = ExitStack()
        address = _address(url)
        self.dialect = address.get_backend_name()
        self.where = address.render_as_string(hide_password=True)
        try:
            self._engine = self._sqlite(address) if self.dialect == "sqlite" else _postgresql(address, connections)
            self._held.callback(self._engine.dispose)
            # reads of one block see one state, which SQLite's do anyway
            postgresql = self.dialect == "postgresql"
            reading = {"isolation_level": "REPEATABLE READ"} if postgresql else {}
            self._reader = self._engine.execution_options(**reading)
            self._writers = threading.Lock()
            self._prepare()
        except BaseException:
            self._held.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees the database as it is at its first statement, and changes nothing."""
        with _answering(), self._reader.connect() as connection:
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN")
            yield connection

    @contextmanager
    def writing(self, *alone: str) -> Iterator[Connection]:
        """A transaction; no other process is in one with the same words `alone` meanwhile."""
        with ExitStack() as held:
            held.enter_context(_answering())
            if self.dialect == "sqlite":
                # it has one writer anyway; waiting here is fairer than asking it again and again
                held.enter_context(self._writers)
            connection = held.enter_context(self._engine.connect())
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.execute(select(func.pg_advisory_xact_lock(_lock_number(alone))))
            yield connection
            connection.commit()

    @contextmanager
    def holding(self, *alone: str, wait: bool = False) -> Iterator[bool]:
        """Whether this process is the one that has these words for the length of the block; with `wait`, once it is."""
        if self.dialect == "sqlite":
            yield True
            return
        with _answering(), self._engine.connect() as connection:
            number = _lock_number(alone)
            if wait:
                connection.execute(select(func.pg_advisory_xact_lock(number)))
                yield True
            else:
                yield bool(connection.execute(select(func.pg_try_advisory_xact_lock(number))).scalar_one())

    def check(self) -> None:
        """StorageDownError if the database does not answer."""
        with self.reading() as connection:
            connection.execute(text("SELECT 1"))

    def tidy(self) -> None:
        """After an erasure: what SQLite keeps of old pages beside the file is emptied."""
        if self.dialect == "sqlite":
            with _answering(), self._writers, self._engine.connect() as connection:
                connection.exec_driver_sql("INSERT INTO memory_words(memory_words) VALUES ('optimize')")
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all()

    def close(self) -> None:
        """Give it free."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sqlite(self, address: URL) -> Engine:
        path = Path(address.database or "")
        if not address.database or address.database == ":memory:":
            raise UserError(f"{self.where}: nothing would outlive the agent; give sqlite:///FILE")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._held.callback(release, acquire(path.with_name(f"{path.name}.lock"), wait=False))
        except BlockingIOError:
            raise UserError(f"{path}: another agent has it; stop that one, or share a PostgreSQL") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); give another --database") from None
        engine = create_engine(address, connect_args={"timeout": WAIT_SECONDS, "isolation_level": None})

        @event.listens_for(engine, "connect")
        def on_connect(connection: Any, _: object) -> None:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
                connection.execute(f"PRAGMA {pragma}")

        return engine

    def _prepare(self) -> None:
        try:
            with self.writing(*_SHAPE) as connection:
                metadata.create_all(connection)
                found = connection.execute(select(VERSIONS.c.version)).scalar_one_or_none()
                if found is None:
                    connection.execute(insert(VERSIONS).values(version=VERSION))
        except DBAPIError as error:
            raise UserError(
                f"{self.where}: no database for an agent ({type(error.orig).__name__}); give another"
            ) from None
        if found not in (None, VERSION):
            raise UserError(f"{self.where}: has tables of version {found}, not {VERSION}; run the agent that made them")


def _address(url: str) -> URL:
    try:
        address = make_url(url)
        backend = address.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        backend = ""
    if backend not in ("sqlite", "postgresql"):
        # not repeated: it may hold a password
        raise UserError("--database: no such database; give sqlite:///FILE or postgresql://USER@HOST/NAME")
    return address.set(drivername={"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}[backend])


def _postgresql(address: URL, connections: int) -> Engine:
    engine = create_engine(
        address,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=WAIT_SECONDS,
        pool_pre_ping=True,
        connect_args={"connect_timeout": CONNECT_SECONDS, "application_name": "taskmem-agent"},
    )

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: object) -> None:
        connection.autocommit = True
        # durable when acknowledged, whatever the server's default is
        waits = f"SET statement_timeout='{STATEMENT_SECONDS}s'; SET lock_timeout='{STATEMENT_SECONDS}s'"
        connection.execute(f"{waits}; SET synchronous_commit=on")
        connection.autocommit = False

    return engine


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeoutError) as error:
        raise StorageDownError(type(error).__name__) from None
    except DBAPIError as error:
        if error.connection_invalidated:
            raise StorageDownError(type(error).__name__) from None
        raise


def _lock_number(words: tuple[str, ...]) -> int:
    """A 64-bit number with a sign, as PostgreSQL's advisory locks are named."""
    return int(sha256_bytes(canonical_json(words))[:16], 16) - (1 << 63)
