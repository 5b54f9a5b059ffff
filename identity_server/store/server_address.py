"""What a URL and the access settings say about reaching a database server: place, password, TLS."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL

from identity_server.store.database import Access
from spiffe_core.errors import ConfigError
from spiffe_core.runtime.durable import read_private

_MAX_PASSWORD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a database server is and how it is reached; `socket` is "" for TCP."""

    user: str
    host: str
    port: int
    database: str
    socket: str
    access: Access

    @classmethod
    def of(cls, url: URL, access: Access, *, port: int, socket_option: str) -> ServerAddress:
        """Read a URL whose one permitted option names a Unix socket.

        Raises:
            ConfigError: it has a password, an option we do not know, or no user or database.
        """
        if url.password is not None:
            raise _refused("must not contain a password; put it into a file and name that in database.password_file")
        known: Collection[str] = (socket_option,)
        for name in url.query:
            if name not in known:
                raise _refused(f"has an unknown option {name!r}; only {socket_option} may follow the question mark")
        if not url.database or not url.username:
            raise _refused(
                f"must name a user and a database, as in {url.drivername}://muniment@db.example.org/muniment"
            )
        socket = url.query.get(socket_option, "")
        if not isinstance(socket, str) or (socket and (url.host or not Path(socket).is_absolute())):
            raise _refused(f"{socket_option} must be one absolute path, and takes the place of a host")
        if not socket and not url.host:
            raise _refused(f"must name a host, or a Unix socket with ?{socket_option}=/path")
        address = cls(url.username, url.host or "", url.port or port, url.database, socket, access)
        if bool(access.tls_cert_file) != bool(access.tls_key_file):
            raise ConfigError(
                "database.tls_cert_file and database.tls_key_file belong together; set both or neither",
                field="database.tls_cert_file",
            )
        if address.verifies:
            address.check_files()
        address.password()
        return address

    @property
    def place(self) -> str:
        """For messages: no credentials."""
        return f"{self.database} at {self.socket or f'{self.host}:{self.port}'}"

    @property
    def verifies(self) -> bool:
        """Whether the server has to prove by TLS that it is the one."""
        if self.socket or self.access.tls == "insecure-off":
            return False
        return self.access.tls == "verify" or not self._here()

    def password(self) -> str:
        """The password as the file has it now; "" without a file.

        Raises:
            ConfigError, CorruptState: the file cannot be read, or others can read it.
        """
        path = self.access.password_file
        if path is None:
            return ""
        try:
            data = read_private(path, max_bytes=_MAX_PASSWORD_BYTES)
        except FileNotFoundError:
            raise ConfigError(
                f"database.password_file: {path} does not exist", field="database.password_file"
            ) from None
        try:
            return data.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise ConfigError(f"database.password_file: {path} is not text", field="database.password_file") from None

    def roots(self) -> str:
        """The file with the authorities the server's certificate is verified by.

        Raises:
            ConfigError: none is named and the system has none.
        """
        path = self.access.tls_ca_file or ssl.get_default_verify_paths().cafile
        if path is None:
            raise ConfigError(
                "database.tls_ca_file: this system has no certificate store; name the file of the database's authority",
                field="database.tls_ca_file",
            )
        return str(path)

    def check_files(self) -> None:
        """See that the files for TLS are there: waiting for the database would not bring them.

        Raises:
            ConfigError: one is missing; names the key.
        """
        self.roots()
        for key in ("tls_ca_file", "tls_cert_file", "tls_key_file"):
            path: Path | None = getattr(self.access, key)
            if path is not None and not path.is_file():
                raise ConfigError(f"database.{key}: there is no file {path}", field=f"database.{key}")

    def _here(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _refused(why: str) -> ConfigError:
    return ConfigError(f"database.url: {why}", field="database.url")
