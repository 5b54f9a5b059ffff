"""Where `jwt mint` puts a token: a file of the operator's choice, whole or not at all, 0600."""

from __future__ import annotations

from pathlib import Path

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
