"""How a server proves itself to a database, and the database to it: TLS with an authority of our own, password files.

On real PostgreSQL and MariaDB that listen on loopback; and what is said of databases that may lose acknowledged writes.
"""

import logging
import uuid

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlalchemy import make_url, text

from deploy.demo.stack import free_port
from identity_server.store.database import Access
from identity_server.store.server_address import ServerAddress
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import ConfigError, CorruptState, Unavailable
from tests.authority import SERVER_AUTH, SpiffeTestCA, certify
from tests.builders import make_entry
from tests.databases import SHARED_KINDS, open_store, running_store
from tests.doubles.database_servers import new_server

PASSWORD = "correct horse"  # of the test's own database


def pem(der):
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def authority():
    return SpiffeTestCA("db.test", uris=(), subject=(("CN", "Database CA"),))


def certificate(ca, key, *names):
    addresses = tuple(x509.DNSName(name) for name in names)
    return pem(
        certify(
            key,
            signer=ca.key,
            issuer=ca.certificate,
            now=ca.now,
            subject=(("CN", "db"),),
            other_names=addresses,
            eku=(SERVER_AUTH,),
        )
    )


class Listening:
    """A database server on a TCP port of loopback, with TLS, and a user with a password."""

    def __init__(self, kind):
        self.kind, self.ca, self.port = kind, authority(), free_port()
        self.server = new_server(kind)
        key = generate(KeyKind.EC_P256)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.key = self.server.secret("db.key", secret)
        self.certificate = self.server.secret("db.pem", certificate(self.ca, key, "localhost"))
        self.elsewhere = self.server.secret("other.pem", certificate(self.ca, key, "db.example.org"))
        self.name = f"t{uuid.uuid4().hex[:20]}"
        self.server.new_database(self.name)
        if kind == "postgresql":
            rules = self.server.data / "pg_hba.conf"
            rules.write_text("host all tls 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
            self.server.execute(
                self.name, f"CREATE ROLE tls LOGIN PASSWORD '{PASSWORD}'", f'ALTER DATABASE "{self.name}" OWNER TO tls'
            )
            self.server.execute(self.name, "GRANT ALL ON SCHEMA public TO tls")
        else:
            self.server.execute(
                "mysql", f"CREATE USER tls@'%' IDENTIFIED BY '{PASSWORD}'", f"GRANT ALL ON {self.name}.* TO tls@'%'"
            )
        self.listen()

    def listen(self, certificate=None, *, tls=True):
        """Start again with this certificate."""
        if self.kind == "postgresql":
            settings = {"listen_addresses": "127.0.0.1", "port": str(self.port)}
            if tls:
                settings |= {"ssl": "on", "ssl_cert_file": certificate or self.certificate, "ssl_key_file": self.key}
        else:
            settings = {"bind-address": "127.0.0.1", "port": str(self.port)}
            settings |= {"ssl-cert": certificate or self.certificate, "ssl-key": self.key} if tls else {"skip-ssl": "1"}
        self.server.restart(**{name: str(value) for name, value in settings.items()})

    def url(self, host="localhost"):
        return f"{self.kind}://tls@{host}:{self.port}/{self.name}"

    def change_password(self, password):
        if self.kind == "postgresql":
            self.server.execute(self.name, f"ALTER ROLE tls PASSWORD '{password}'")
        else:
            self.server.execute("mysql", f"SET PASSWORD FOR tls@'%' = PASSWORD('{password}')")


@pytest.fixture(scope="module", params=SHARED_KINDS)
def database(request):
    listening = Listening(request.param)
    yield listening
    listening.server.close()


@pytest.fixture
def access(database, tmp_path):
    """What a good configuration says; each test spoils one part."""
    secret, roots = tmp_path / "password", tmp_path / "roots.pem"
    secret.write_text(PASSWORD + "\n")
    secret.chmod(0o600)
    roots.write_bytes(pem(database.ca.der))
    return {"password_file": secret, "tls": "verify", "tls_ca_file": roots}


async def encrypted(store):
    """Whether the connections of the store are, by what the database says."""
    with store._database.reader.connect() as connection:
        if connection.dialect.name == "postgresql":
            return connection.execute(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")).scalar()
        return connection.execute(text("SHOW SESSION STATUS LIKE 'Ssl_cipher'")).one()[1] != ""


async def test_a_verified_database_is_spoken_to_in_tls(database, access):
    """`verify`: the certificate ends in the authority of `tls_ca_file` and names the host."""
    async with running_store(database.url(), access=Access(**access)) as store:
        assert await encrypted(store)
        await store.execute(lambda uow: uow.entries.add([make_entry(id="a", spiffe_id="/a")]))
        await store.execute(lambda uow: uow.entries.remove("a"))


def refused(database, access, url=None):
    with pytest.raises(Unavailable) as refusal:
        open_store(url or database.url(), access=Access(**access))
    shown = f"{refusal.value.public} {refusal.value.facts}"
    assert PASSWORD not in shown
    return shown.lower()


def test_a_database_of_another_authority_is_refused(database, access):
    """Somebody in between has a certificate too, but not of this authority."""
    access["tls_ca_file"].write_bytes(pem(authority().der))
    assert "certificate verify failed" in refused(database, access)


def test_a_certificate_of_another_name_is_refused(database, access):
    """A right authority is not enough: the host's name is compared."""
    database.listen(database.elsewhere)
    try:
        said = refused(database, access)
        assert "hostname" in said or "host name" in said
    finally:
        database.listen()


def test_a_database_without_tls_is_refused_where_it_has_to_prove_itself(database, access):
    """No silent falling back to plain text, with which the password would go."""
    database.listen(tls=False)
    try:
        assert "ssl" in refused(database, access)
    finally:
        database.listen()


@pytest.mark.parametrize("mode", ["auto", "insecure-off"])
async def test_on_this_machine_tls_is_not_asked_for_unless_wanted(database, access, mode):
    """`auto` on loopback, and `insecure-off` anywhere: plain text, even if the database has a certificate."""
    del access["tls_ca_file"]
    async with running_store(database.url("127.0.0.1"), access=Access(**{**access, "tls": mode})) as store:
        assert not await encrypted(store)


def test_auto_verifies_a_database_on_another_machine(database, access):
    """The name decides, not where it leads: what is not loopback has to prove itself."""
    options = {"port": 1, "socket_option": "host"}
    access["tls"] = "auto"
    for host, verifies in (
        ("localhost", False),
        ("127.0.0.1", False),
        ("[::1]", False),
        ("db.example.org", True),
        ("10.0.0.1", True),
        ("localhost.example.org", True),
    ):
        address = ServerAddress.of(make_url(database.url(host)), Access(**access), **options)
        assert address.verifies is verifies, host


@pytest.mark.parametrize("part", ["tls_ca_file", "tls_cert_file"])
def test_a_tls_file_that_is_missing_is_named_at_start(database, access, tmp_path, part):
    """Waiting would not help: it is refused as a mistake of the configuration, by its key."""
    access[part] = tmp_path / "missing.pem"
    if part == "tls_cert_file":
        access["tls_key_file"] = tmp_path / "missing.key"
    with pytest.raises(ConfigError) as refusal:
        open_store(database.url(), access=Access(**access))
    assert refusal.value.field == f"database.{part}"
    assert "missing.pem" in refusal.value.public


async def test_a_changed_password_is_read_from_its_file_without_a_restart(database, access):
    """New connections read the file; until both agree, changes are Unavailable and nothing else happens."""
    async with running_store(database.url(), access=Access(**access)) as store:
        await store.execute(lambda uow: uow.entries.add([make_entry(id="b", spiffe_id="/b")]))
        database.change_password("new secret")
        try:
            store._database.writer.dispose()
            store._writer._discard()
            with pytest.raises(Unavailable) as refusal:
                await store.execute(lambda uow: uow.entries.remove("b"))
            assert PASSWORD not in str(refusal.value.facts)
            access["password_file"].write_text("new secret\n")
            await store.execute(lambda uow: uow.entries.remove("b"))
            access["password_file"].chmod(0o644)
            store._writer._discard()
            with pytest.raises(Unavailable):
                await store.execute(lambda uow: uow.entries.add([make_entry()]))
        finally:
            database.change_password(PASSWORD)


def test_a_wrong_password_is_unavailable_and_never_repeated(database, access):
    access["password_file"].write_text("wrong password\n")
    assert "wrong password" not in refused(database, access)


@pytest.mark.parametrize("mode", [0o644, 0o640])
def test_a_password_that_others_can_read_is_refused(database, access, mode):
    access["password_file"].chmod(mode)
    with pytest.raises((ConfigError, CorruptState)) as refusal:
        open_store(database.url(), access=Access(**access))
    assert str(access["password_file"]) in refusal.value.public


CARELESS = {
    "postgresql": ({"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}, ("fsync", "full_page")),
    "mariadb": (
        {"innodb-flush-log-at-trx-commit": "2", "log-bin": "bin", "sync-binlog": "0"},
        ("innodb_flush_log_at_trx_commit", "sync_binlog"),
    ),
}


@pytest.mark.parametrize("kind", SHARED_KINDS)
async def test_a_database_that_may_lose_acknowledged_writes_raises_an_alarm(kind, caplog):
    """eventlog 2.7: told at start, each with its remedy; what a session can put right is put right."""
    settings, names = CARELESS[kind]
    server = new_server(kind)
    try:
        server.restart(**settings)
        with caplog.at_level(logging.WARNING):
            async with running_store(server.new_database("careless")) as store:
                for name in names:
                    (said,) = (one for one in store.weaknesses if name in one)
                    assert "; set " in said
                    assert [one.levelname for one in caplog.records if one.getMessage() == said] == ["CRITICAL"]
                if kind == "postgresql":
                    store._writer._discard()
                    with store._database.writer.connect() as connection:
                        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
        server.restart()
        store = open_store(server.new_database("careful"))
        assert store.weaknesses == ()
        await store.close()
    finally:
        server.close()
