"""Trust domains as real processes on one machine, each with its bundle endpoint on loopback."""

from __future__ import annotations

import json

from deploy.demo.stack import LocalStack, free_port


class FederatedStack(LocalStack):
    """A `LocalStack` with an https_spiffe endpoint, which may fetch from loopback. `tables` is added to [federation]."""

    def __init__(self, trust_domain, *, tables="", client="", hint="1s", **over):
        self.endpoint_port = free_port()
        self.url = f"https://127.0.0.1:{self.endpoint_port}/"
        self.own_id = f"spiffe://{trust_domain}/spire/server"
        federation = (
            f'[federation]\npublic_url = "{self.url}"\n'
            f'[federation.bundle_endpoint]\naddress = "127.0.0.1"\nport = {self.endpoint_port}\nrefresh_hint = "{hint}"\n'
            f'[federation.bundle_client]\nallowed_networks = ["127.0.0.0/8"]\nmin_interval = "1s"\n{client}\n{tables}\n'
        )
        over["server"] = over.get("server", "") + "\n" + federation
        super().__init__(trust_domain, **over)

    def invite(self):
        return self.admin("federation", "invite").strip()

    def accept(self, line):
        """Federate; the line for the way back."""
        return self.admin_json("federation", "accept", line, "--yes")["invitation"]

    def shown(self, name):
        """What `federation show` says, a dictionary of its lines."""
        lines = self.admin("federation", "show", "-trustDomain", name).splitlines()
        return {key.strip(): value for key, _, value in (line.partition(": ") for line in lines) if value}

    def bundle_of(self, name):
        """The stored bundle of another trust domain as a document."""
        return json.loads(self.admin("bundle", "list", "-id", name, "-format", "spiffe"))

    def own_bundle(self):
        return json.loads(self.admin("bundle", "show", "-format", "spiffe"))

    def keys_of(self, name):
        """Our view of another's X.509 authorities."""
        return x509_of(self.bundle_of(name))


def x509_of(document):
    return {key["x5c"][0] for key in document["keys"] if key["use"] == "x509-svid"}


def federate(one, other):
    """One line in each direction."""
    one.accept(other.accept(one.invite()))
