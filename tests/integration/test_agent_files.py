"""Files written from inside the agent (`files_config`), and stores that are left alone while nothing changes."""

import asyncio

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12

from node_agent.cli import main
from spiffe_core.errors import ConfigError
from tests.doubles.canned_daemon import leave_code
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry, live_server


def files_config(folder, **more):
    text = "".join(f"{key} = {value}\n" for key, value in more.items())
    path = folder / "files.toml"
    path.write_text(f'[[set]]\ndirectory = "{folder}/tls"\ncombined = "both.pem"\n{text}')
    return path


async def test_the_agent_writes_files_for_its_own_process_and_follows_changes():
    """Issue 4, item 7: nothing before there is an entry, the set when there is one, a new set with the next SVID."""
    async with agent_folder() as folder, live_server() as live:
        (folder / "password").write_text("sesame")
        (folder / "password").chmod(0o600)
        stores = {"pkcs12": '"svid.p12"', "pkcs12_password_file": f'"{folder}/password"', "jwt_bundle": '"jwks.json"'}
        settings = {
            "trust_bundle_path": str(pem_bundle(live, folder)),
            "join_token_file": str(token_file(folder, await live.token())),
            "files_config": str(files_config(folder, **stores)),
            "wait_for_identity": True,
        }
        async with live_agent(folder, live.server.address, **settings) as agent:
            await agent.until_joined()
            both = folder / "tls" / "both.pem"
            assert not both.exists()
            await live.entries(entry(path="/node", parent=agent.path, selectors=OWN))
            agent.sync_now()
            await agent.until(both.exists)
            leaf = x509.load_pem_x509_certificate(both.read_bytes())
            assert load_pem_private_key(both.read_bytes(), None).public_key() == leaf.public_key()
            ids = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert ids.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org/node"]
            store = (folder / "tls" / "svid.p12").read_bytes()
            assert pkcs12.load_key_and_certificates(store, b"sesame")[1] == leaf
            (one,) = agent.agent.files._sets._sets
            one.tokens_due = 0.0
            await agent.agent.files._sets.write_due()
            assert one.tokens_due > 0
            assert (folder / "tls" / "svid.p12").read_bytes() == store, "nothing it is made of has changed"
            agent.agent.renewals._plan.hasten(next(iter(agent.agent.workloads.entries)), 0.0)
            agent.agent.renewals.resume()
            async with asyncio.timeout(20):
                while x509.load_pem_x509_certificate(both.read_bytes()) == leaf:
                    await asyncio.sleep(0.01)


async def test_a_file_that_says_something_wrong_keeps_the_agent_from_starting(capsys):
    async with agent_folder() as folder, live_server() as live:
        wrong = files_config(folder, mode='"rw"')
        settings = {
            "trust_bundle_path": str(pem_bundle(live, folder)),
            "join_token_file": str(token_file(folder, await live.token())),
        }
        with pytest.raises(ConfigError, match="three octal digits"):
            async with live_agent(folder, live.server.address, files_config=str(wrong), **settings):
                pass
        config = folder / "agent.toml"
        config.write_text(f'trust_domain = "example.org"\ninsecure_bootstrap = true\nfiles_config = "{wrong}"\n')
        assert await asyncio.to_thread(leave_code, main, "validate", "--config", str(config)) == 1
        assert "three octal digits" in capsys.readouterr().err
