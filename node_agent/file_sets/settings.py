"""The configuration of `node-agent files`: one frozen tree, checked before anything is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from spiffe_core.runtime.settings import FilePath, Section, Texts, as_tuple, load_settings
from spiffe_core.runtime.settings_kinds import FILES
from spiffe_core.runtime.settings_places import AbsolutePath

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SIGNALS = ("HUP", "USR1", "USR2", "TERM", "INT", "QUIT", "WINCH")
_MODE = re.compile(r"0?[0-7]{3}")


def _plain(name: str) -> str:
    if name and not _NAME.fullmatch(name):
        raise ValueError('must be a plain file name such as "svid.pem"')
    return name


def _mode(text: str) -> str:
    if not _MODE.fullmatch(text):
        raise ValueError('must be three octal digits such as "0600"')
    return text


def _key_mode(text: str) -> str:
    if int(_mode(text), 8) & 0o007:
        raise ValueError("must not let everybody read the private key; use 0600, or 0640 with a group")
    return text


def _signal(name: str) -> str:
    if name and name not in _SIGNALS:
        raise ValueError(f"must be one of {', '.join(_SIGNALS)}")
    return name


FileName = Annotated[str, AfterValidator(_plain)]


class TokenFile(Section):
    """[[set.jwt]]: a JWT-SVID in a file of its own."""

    name: Annotated[str, Field(min_length=1), AfterValidator(_plain)]
    audience: Annotated[Texts, Field(min_length=1, max_length=32)]


class FileSet(Section):
    """[[set]]: one directory. An empty name leaves a file out."""

    directory: AbsolutePath
    spiffe_id: str = ""
    hint: str = ""
    certificate: FileName = "svid.pem"
    key: FileName = "svid.key"
    bundle: FileName = "bundle.pem"
    combined: FileName = ""
    federated: bool = False
    pkcs12: FileName = ""
    pkcs12_truststore: FileName = ""
    pkcs12_password_file: FilePath | None = None
    jks: FileName = ""
    jks_password_file: FilePath | None = None
    bundle_map: FileName = ""
    jwt_bundle: FileName = ""
    jwt: Annotated[tuple[TokenFile, ...], BeforeValidator(as_tuple), Field(max_length=32)] = ()
    owner: str = ""
    group: str = ""
    mode: Annotated[str, AfterValidator(_mode)] = "0644"
    key_mode: Annotated[str, AfterValidator(_key_mode)] = "0600"
    command: Annotated[Texts, Field(max_length=64)] = ()
    signal: Annotated[str, AfterValidator(_signal)] = ""
    pid_file: FilePath | None = None

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if bool(self.signal) != (self.pid_file is not None):
            raise ValueError("signal and pid_file belong together; set both or neither")
        if bool(self.pkcs12 or self.pkcs12_truststore) != (self.pkcs12_password_file is not None):
            raise ValueError(
                "pkcs12 or pkcs12_truststore and pkcs12_password_file belong together; set both or neither"
            )
        if bool(self.jks) != (self.jks_password_file is not None):
            raise ValueError("jks and jks_password_file belong together; set both or neither")
        if self.spiffe_id and self.hint:
            raise ValueError("spiffe_id and hint both choose an identity; set one of them")
        names = [name for name in self.names if name]
        if len(set(names)) != len(names):
            raise ValueError("two files have the same name")
        if not names:
            raise ValueError("names no file to write")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all files, empty for those that are left out."""
        return (*self.x509_names, self.jwt_bundle, *(one.name for one in self.jwt))

    @property
    def x509_names(self) -> tuple[str, ...]:
        """The names of the files that are made of the X.509 state."""
        stores = (self.pkcs12, self.pkcs12_truststore, self.jks)
        return (self.certificate, self.key, self.bundle, self.combined, *stores, self.bundle_map)

    @property
    def wants_x509(self) -> bool:
        """Whether any file is made of the X.509 state."""
        return any(self.x509_names)


class FilesSettings(Section):
    """Everything `node-agent files` needs to know. An empty `socket` means SPIFFE_ENDPOINT_SOCKET."""

    file_kind: ClassVar[str] = FILES
    socket: str = ""
    command_seconds: float = Field(default=30.0, ge=1.0, le=600.0, strict=False)
    sets: Annotated[tuple[FileSet, ...], BeforeValidator(as_tuple), Field(alias="set", min_length=1, max_length=64)]

    @model_validator(mode="after")
    def _apart(self) -> Self:
        directories = [one.directory for one in self.sets]
        if len(set(directories)) != len(directories):
            raise ValueError("two sets have the same directory")
        return self


def load(path: str | Path) -> FilesSettings:
    """Read a TOML file.

    Raises:
        ConfigError: one line for each mistake, with file, key and rule.
    """
    return load_settings(FilesSettings, path)
