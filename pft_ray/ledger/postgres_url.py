"""The address of a PostgreSQL ledger; its credentials are never shown."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from pft_ray.errors import InputError

_SCHEMES = ("postgresql://", "postgres://", "postgresql+psycopg://")
_HOSTS = re.compile(r"[A-Za-z0-9_.:,\[\]-]*")
_DATABASE = re.compile(r"/?[A-Za-z0-9_.-]*")
_HIDDEN = "postgresql://***"
_SECRETS = ("password", "sslpassword", "user")
_SHORTEST_SECRET = 3


@dataclass(frozen=True)
class PostgresUrl:
    """A connection address that prints without user and password.

    Attributes:
        secret: The whole address, for the driver only.
    """

    secret: str = field(repr=False)

    def __str__(self) -> str:
        return redacted(self.secret)

    @property
    def conninfo(self) -> str:
        """The address as libpq reads it."""
        return "postgresql://" + self.secret.split("://", 1)[1]

    def scrub(self, text: str) -> str:
        """Returns a message of the driver without anything secret of the address."""
        parts = urlsplit(self.conninfo)
        words = {parts.password or "", parts.username or ""}
        words |= {value for key, value in parse_qsl(parts.query) if key in _SECRETS}
        for word in sorted(words | {unquote(word) for word in words}, key=len)[::-1]:
            if len(word) >= _SHORTEST_SECRET:
                text = text.replace(word, "***")
        return text


def is_postgres(text: str) -> bool:
    """Whether an address is one of PostgreSQL."""
    return text.startswith(_SCHEMES)


def postgres_url(text: str) -> PostgresUrl:
    """Reads a PostgreSQL address (``postgresql://user@host:port/database?...``).

    Raises:
        InputError: It is ambiguous where its password ends, or it names a port that
            is no number. The message does not repeat it.
    """
    rest = text.split("://", 1)[1]
    place = re.split(r"[/?#]", rest, maxsplit=1)[0]
    after = rest[len(place) :]
    ambiguous = place.count("@") > 1 or ("@" not in place and "@" in after)
    hosts = place.rpartition("@")[2]
    if ambiguous or "#" in after or not _HOSTS.fullmatch(hosts):
        raise InputError(
            "The ledger's URL cannot be read.",
            "Write / ? # @ : in a user name or password as %2F %3F %23 %40 %3A.",
        )
    if any(port and not port.isdigit() for port in _ports(hosts)):
        raise InputError("The port in the ledger's URL is no number.", "Correct it.")
    return PostgresUrl(text)


def _ports(hosts: str) -> list[str]:
    """Returns the text after the colon of each host; IPv6 addresses are in []."""
    plain = re.sub(r"\[[^\]]*\]", "", hosts)
    return [host.partition(":")[2] for host in plain.split(",")]


def redacted(location: str) -> str:
    """Returns a ledger's place as it may be printed and stored.

    Hosts, database and the folder of a socket stay; user, password and every other
    parameter go. A path or SQLite URL stays as it is.

    Guarantee:
        No part of a password is in what this returns, however the password is
        written: where it is not clear which part it is, nothing is shown.
    """
    if "://" not in location or location.startswith("sqlite:"):
        return location
    if not is_postgres(location):
        return location.split("://", 1)[0] + "://***"
    try:
        postgres_url(location)
    except InputError:
        return _HIDDEN
    head, _, query = location.split("://", 1)[1].partition("?")
    place, slash, database = head.partition("/")
    hosts = place.rpartition("@")[2]
    if not _DATABASE.fullmatch(database):
        return _HIDDEN
    folder = dict(parse_qsl(query)).get("host", "")
    shown = f"?host={folder}" if folder.startswith("/") else ""
    return f"postgresql://{hosts}{slash}{database}{shown}"
