"""What `cloud check aws` prints is taken by a shell, by the AWS library's model and by moto's IAM (issue 6 item 5)."""

from __future__ import annotations

import subprocess
from typing import Any

import botocore.session
import pytest

from identity_server.domain.cloud_configuration import commands
from tests.interop.moto import REGION, moto_server

pytestmark = pytest.mark.slow

ISSUER = "https://storage.example.org/td"
WEB = "spiffe://example.org/ns/shop/web"
ACCOUNT = "123456789012"
AWS = f'aws() {{ if [ "$2" = get-caller-identity ]; then echo {ACCOUNT}; else printf "%s\\0" "$@" END; fi; }}'
"""In place of the program: it says who we are, and prints its words."""


@pytest.fixture(scope="module")
def iam(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with moto_server(tmp_path_factory.mktemp("moto")) as url:
        client = botocore.session.Session().create_client(
            "iam", region_name=REGION, endpoint_url=url, aws_access_key_id="tester", aws_secret_access_key="secret"
        )
        yield client
        client.close()


def test_the_provider_and_the_role_can_be_made(iam: Any) -> None:
    """Each flag becomes the parameter of its name; the library refuses what is too long or of the wrong form."""
    script = "\n".join([AWS, *commands("aws", ISSUER, [WEB], ["sts.amazonaws.com"], ["RS256"])])
    done = subprocess.run(["/bin/sh", "-eu", "-c", script], capture_output=True, text=True, check=True, timeout=20)
    provider, role = ([*words.split("\0")[:-1]] for words in done.stdout.split("END\0")[:-1])
    assert provider == [
        *("iam", "create-open-id-connect-provider", "--url", ISSUER, "--client-id-list", "sts.amazonaws.com")
    ]
    made = iam.create_open_id_connect_provider(Url=ISSUER, ClientIDList=["sts.amazonaws.com"])
    assert role[:-1] == ["iam", "create-role", "--role-name", "ns-shop-web", "--assume-role-policy-document"]
    iam.create_role(RoleName="ns-shop-web", AssumeRolePolicyDocument=role[-1])
    held = iam.get_role(RoleName="ns-shop-web")["Role"]["AssumeRolePolicyDocument"]
    (statement,) = held["Statement"]
    assert statement["Principal"]["Federated"] == made["OpenIDConnectProviderArn"]
    assert statement["Condition"]["StringEquals"]["storage.example.org/td:sub"] == WEB
