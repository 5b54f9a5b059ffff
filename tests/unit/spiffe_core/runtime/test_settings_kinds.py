"""A settings file of one program that is given to another is named as what it is."""

import pytest

from identity_server.settings import ServerSettings
from node_agent.file_sets.settings import FilesSettings
from node_agent.settings import AgentSettings
from spiffe_core.errors import ConfigError
from spiffe_core.runtime.settings import load_settings
from spiffe_core.runtime.settings_kinds import AGENT, FILES, HOW, KINDS, SERVER, SHARED, mistaken

MODELS = {SERVER: ServerSettings, AGENT: AgentSettings, FILES: FilesSettings}
TEXTS = {
    SERVER: 'trust_domain = "a"\nbind_port = 1\n[ca]\nttl = "1h"\n[jwt]\n[upstream.disk]\nx = 1\n',
    AGENT: 'trust_domain = "a"\nserver_address = "x"\ntrust_bundle_path = "/b"\n[sds]\n[jwt]\n',
    FILES: 'socket = "unix:/a"\n[[set]]\ndirectory = "/d"\n',
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_keys_of_each_kind_are_those_of_its_settings(kind):
    """So that no key is forgotten here when one is added there."""
    model = MODELS[kind]
    assert model.file_kind == kind
    assert KINDS[kind] == {info.alias or name for name, info in model.model_fields.items()}
    assert KINDS[SERVER] & KINDS[AGENT] == SHARED


@pytest.mark.parametrize("given", MODELS)
@pytest.mark.parametrize("wanted", MODELS)
def test_a_file_for_another_program_is_named(tmp_path, given, wanted):
    path = tmp_path / "some.toml"
    path.write_text(TEXTS[given])
    try:
        load_settings(MODELS[wanted], path)
    except ConfigError as error:
        said = error.public
    else:
        said = ""
    assert (f"{path}: this is a" in said) is (given != wanted)
    if given != wanted:
        assert f" {given} file: " in said
        assert f"Start it with `{HOW[given]}`" in said
        assert "unknown key" not in said
        assert len(said.splitlines()) == 1


def test_the_sentence():
    assert mistaken(AGENT, ["trust_domain", "ca", "bind_port", "svid", "audit"]) == (
        "this is an identity-server file: audit, bind_port, ca belong to identity-server, not to node-agent. Start it with "
        "`identity-server run --config`, or give the path of a node-agent file"
    )
    assert mistaken(SERVER, ["sync_interval"]) == (
        "this is a node-agent file: sync_interval belongs to node-agent, not to identity-server. Start it with "
        "`node-agent run --config`, or give the path of an identity-server file"
    )


@pytest.mark.parametrize(
    "keys",
    [(), SHARED, ("trust_domain", "prot"), ("server_address", "ca"), ("server_address", "bind_port", "zzz")],
    ids=["nothing", "shared keys", "a typing error", "keys of both", "keys of both and of nobody"],
)
def test_what_may_be_meant_for_this_program_is_judged_key_by_key(keys):
    """One key in the wrong file is a mistake about that key."""
    assert mistaken(AGENT, keys) == ""


def test_the_other_daemons_hcl_is_named_too(tmp_path):
    """A13: SPIRE's configuration is refused with a pointer, and with whose it is."""
    path = tmp_path / "x.conf"
    for half, whose in (("server", "a server"), ("agent", "an agent")):
        path.write_text(f'{half} {{\n  trust_domain = "example.org"\n}}\nplugins {{\n}}\n')
        with pytest.raises(ConfigError, match=f"SPIRE's HCL configuration of {whose}; "):
            load_settings(AgentSettings, path)
