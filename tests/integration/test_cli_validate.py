"""`validate` of both command lines holds the tables of attestors to what each attestor takes."""

import json

import pytest

import identity_server.cli
import node_agent.cli

MAIN = {"server": identity_server.cli.main, "agent": node_agent.cli.main}


def validate(daemon, config, *flags):
    try:
        MAIN[daemon](["validate", "--config", str(config), *flags])
    except SystemExit as left:
        return left.code or 0
    return 0


GOOD = {
    "server": '[attestors.k8s_psat.clusters.prod]\nservice_account_allow_list = ["muniment:node-agent"]\n',
    "agent": '[attestors.k8s]\n[attestors.k8s_psat]\ncluster = "prod"\n',
}
BAD = {
    "an attestor that there is not": ("server", "[attestors.k8s_sat]\n", "no attestor is called 'k8s_sat'"),
    "a key that there is not": ("agent", "[attestors.unix]\ndiscover = true\n", "attestors.unix.discover: unknown key"),
    "a key that is missing": ("agent", "[attestors.k8s_psat]\n", "attestors.k8s_psat.cluster: is required"),
    "a table in a table": (
        "server",
        "[attestors.k8s_psat.clusters.prod]\n",
        "attestors.k8s_psat.clusters.prod.service_account_allow_list",
    ),
}


@pytest.mark.parametrize("daemon", GOOD)
def test_tables_that_fit_are_printed(daemon, tmp_path, capsys):
    """Also on a machine that is no part of any cluster: nothing is opened."""
    config = tmp_path / "c.toml"
    config.write_text(f'trust_domain = "example.org"\n{GOOD[daemon]}')
    assert validate(daemon, config) == 0
    assert "is valid" in capsys.readouterr().out


@pytest.mark.parametrize("case", BAD)
def test_tables_that_do_not_fit_are_refused_by_key_and_rule(case, tmp_path, capsys):
    daemon, text, message = BAD[case]
    config = tmp_path / "c.toml"
    config.write_text(f'trust_domain = "example.org"\n{text}')
    assert validate(daemon, config) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert not shown.out


@pytest.mark.parametrize("daemon", MAIN)
def test_spires_flags_about_the_log_and_the_environment(daemon, tmp_path, capsys, monkeypatch):
    """spire_features section 7: -logFormat, -logSourceLocation, -expandEnv."""
    config = tmp_path / "c.toml"
    config.write_text('trust_domain = "${OUR_DOMAIN}"\n')
    assert validate(daemon, config) == 1
    monkeypatch.setenv("OUR_DOMAIN", "example.org")
    assert validate(daemon, config, "-expandEnv", "-logFormat", "text", "-logSourceLocation", "-output", "json") == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["trust_domain"], tree["log_format"], tree["log_source_location"]) == ("example.org", "text", True)
    assert validate(daemon, config, "-expandEnv", "-logFormat", "xml") == 1
    assert "command line: log_format: " in capsys.readouterr().err
