"""Every command of SPIRE's agent with every flag is one of ours too (spire_features section 7.2), in both spellings."""

import click
import pytest

from node_agent.cli import root
from spiffe_core.terminal.flags import Flag, normalise

RUN = (
    "config dataDir joinToken joinTokenFile logFile logFormat logLevel serverAddress serverPort trustDomain trustBundle "
    "trustBundleFormat allowUnauthenticatedVerifiers insecureBootstrap rebootstrapMode rebootstrapDelay disableSDSAPI "
    "disableWorkloadAPI expandEnv logSourceLocation socketPath"
)
COMMANDS = {
    "run": RUN,
    "validate": RUN,
    "healthcheck": "socketPath shallow verbose",
    "api fetch": "",
    "api fetch x509": "socketPath instance timeout silent write output",
    "api fetch jwt": "socketPath instance audience spiffeID timeout output format",
    "api validate jwt": "socketPath instance audience svid output",
    "api watch": "",
    "api watch x509": "socketPath",
    "debug getinfo": "socketPath output",
    "logger get": "socketPath output",
    "logger set": "socketPath level output",
    "logger reset": "socketPath output",
}


def command_of(words):
    command = root
    for word in words.split():
        command = command.get_command(click.Context(command), word)
        assert command is not None, f"no command {words!r}"
    return command


@pytest.mark.parametrize("words", COMMANDS)
def test_the_command_is_there_and_takes_spires_flags(words):
    command = command_of(words)
    if not COMMANDS[words]:
        assert isinstance(command, click.Group), "the bare command is the one for X.509"
        assert command.get_command(click.Context(command), "x509") is not None
        return
    flags = {name: flag for flag in command.params if isinstance(flag, Flag) for name in flag.names}
    for name in COMMANDS[words].split():
        (ours,) = {flag for flag in command.params if isinstance(flag, Flag) and name in flag.names}
        for given in (f"-{name}", f"--{name}", ours.canonical):
            read = normalise([given] if ours.switch else [given, "x"], flags)
            assert [word.partition("=")[0] for word in read] == [ours.canonical], given
