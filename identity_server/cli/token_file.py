"""Where `jwt mint` and `token generate` put a token: a file of the operator's choice, whole or not at all, 0600."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import click

from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.pem_files import PRIVATE, output_directory, write_files
from spiffe_core.terminal.printing import print_json


def token_target(text: str) -> tuple[Path, str]:
    """The directory and the name of the file; checked before anything is signed.

    Raises:
        Failure: the path names no file, or its directory is missing or reached in a roundabout way.
    """
    path = Path(text)
    if not path.name or text.endswith("/") or "\0" in text:
        raise Failure("--write: names no file", "give the path of a file in an existing directory")
    return output_directory(str(path.parent)), path.name


def write_token(target: tuple[Path, str], token: str, what: str, output: str) -> None:
    """Write the token and say where it is."""
    directory, name = target
    (path,) = write_files(directory, {name: (token, PRIVATE)})
    if output == "json":
        print_json({"written": [str(path)]})
    else:
        click.echo(f"{what} written to {path}")


@contextmanager
def new_token_file(text: str) -> Iterator[TextIO]:
    """A file that did not exist before, 0600 from the start; gone again if the block fails.

    Raises:
        Failure: the path names no file, exists already, or its directory is missing or reached in a roundabout way.
    """
    directory, name = token_target(text)
    path = directory / name
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)
    except FileExistsError:
        raise Failure(
            f"--write: {path} exists already", "name a file that is not there yet, or remove this one"
        ) from None
    except OSError as error:
        raise Failure(f"--write: {path}: {error.strerror}", "choose a directory that this user may write to") from None
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
