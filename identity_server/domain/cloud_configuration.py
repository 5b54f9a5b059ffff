"""What a verifier is told so that it takes our tokens, as commands that can be run.

Only text of which every character means itself to a shell and in JSON gets into a command (`check_word`).
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from identity_server.domain.oidc_documents import IssuerUrl
from spiffe_core.errors import InvalidRequest

MAX_WORD = 2048
MOST_SUBJECTS = 10
"""Commands are printed for so many SPIFFE IDs; which ones can be said."""
MAX_ROLE = 64
"""AWS IAM API reference, CreateRole: RoleName."""
MAX_CREDENTIAL = 120
"""Microsoft Graph v1.0, federatedIdentityCredential: name."""

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~:/@+=-]*|//[A-Za-z0-9._~:/@+=-]+")
_DULL = re.compile(r"[^A-Za-z0-9]+")


def check_word(text: str, *, field: str) -> str:
    """`text`, if it may stand in a command.

    Raises:
        InvalidRequest: it may not.
    """
    if len(text) > MAX_WORD or not _WORD.fullmatch(text):
        raise InvalidRequest(
            f'{field}: must be letters, digits and "._~:/@+=-", at most {MAX_WORD}, to stand in a command', field=field
        )
    return text


def commands(
    verifier: str,
    issuer: str,
    subjects: Sequence[str],
    audiences: Sequence[str],
    algorithms: Sequence[str] = (),
    *,
    authorities: Sequence[bytes] = (),
    ca_file: str = "",
) -> tuple[str, ...]:
    """The commands for one verifier; each may have several lines.

    `authorities` (DER) certify the issuer's host where no public one does; `ca_file` is where they are in PEM.

    Raises:
        InvalidRequest: the issuer is no URL, or something may not stand in a command.
    """
    url = IssuerUrl.parse(check_word(issuer, field="issuer"), field="issuer")
    for name, words in (("spiffe-id", subjects), ("audience", audiences)):
        for word in words:
            check_word(word, field=name)
    told = _Told(url, tuple(subjects[:MOST_SUBJECTS]), tuple(audiences), tuple(algorithms), tuple(authorities), ca_file)
    return _MAKERS[verifier](told)


@dataclass(frozen=True, slots=True)
class _Told:
    """What the verifier is told; words of which each was looked at."""

    url: IssuerUrl
    subjects: tuple[str, ...]
    audiences: tuple[str, ...]
    algorithms: tuple[str, ...]
    authorities: tuple[bytes, ...]
    ca_file: str


def _aws(told: _Told) -> tuple[str, ...]:
    url, subjects, audiences = told.url, told.subjects, told.audiences
    name = url.text.removeprefix("https://").removesuffix("/")
    prints = [hashlib.sha1(der, usedforsecurity=False).hexdigest() for der in told.authorities]
    listed = f" --thumbprint-list {' '.join(prints)}" if prints else ""
    made = [
        f"aws iam create-open-id-connect-provider --url {url.text} --client-id-list {' '.join(audiences)}{listed}",
        "ACCOUNT=$(aws sts get-caller-identity --query Account --output text)",
    ]
    for subject in subjects:
        policy = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"Federated": f"arn:aws:iam::${{ACCOUNT}}:oidc-provider/{name}"},
                    "Action": "sts:AssumeRoleWithWebIdentity",
                    "Condition": {"StringEquals": {f"{name}:aud": list(audiences), f"{name}:sub": subject}},
                }
            ],
        }
        document = json.dumps(policy, indent=2)
        made.append(
            f"aws iam create-role --role-name {_short(subject, MAX_ROLE)} --assume-role-policy-document "
            f'"$(cat <<END\n{document}\nEND\n)"'
        )
    return tuple(made)


def _gcp(told: _Told) -> tuple[str, ...]:
    url, subjects, audiences = told.url, told.subjects, told.audiences
    pool = "--workload-identity-pool=spiffe"
    allowed = f" \\\n  --allowed-audiences={','.join(audiences)}" if audiences else ""
    provider = (
        f"gcloud iam workload-identity-pools providers create-oidc muniment --location=global {pool} \\\n"
        f"  --issuer-uri={url.text} --attribute-mapping=google.subject=assertion.sub{allowed}"
    )
    made = ["gcloud iam workload-identity-pools create spiffe --location=global", provider]
    if subjects:
        made.append(
            "PROJECT=$(gcloud config get-value project)\n"
            "NUMBER=$(gcloud projects describe $PROJECT --format='value(projectNumber)')\n"
            "ROLE=roles/viewer  # what these workloads may do"
        )
    made += [
        "gcloud projects add-iam-policy-binding $PROJECT --role=$ROLE \\\n"
        "  --member=principal://iam.googleapis.com/projects/"
        f"$NUMBER/locations/global/workloadIdentityPools/spiffe/subject/{subject}"
        for subject in subjects
    ]
    return tuple(made)


def _azure(told: _Told) -> tuple[str, ...]:
    url, subjects, audiences = told.url, told.subjects, told.audiences
    made = ["APP=00000000-0000-0000-0000-000000000000  # the application that these workloads may act as"]
    for subject in subjects:
        document = json.dumps(
            {
                "name": _short(subject, MAX_CREDENTIAL),
                "issuer": url.text,
                "subject": subject,
                "audiences": list(audiences),
            }
        )
        made.append(f"az ad app federated-credential create --id $APP --parameters '{document}'")
    return tuple(made)


def _vault(told: _Told) -> tuple[str, ...]:
    url, subjects, audiences = told.url, told.subjects, told.audiences
    named = f" jwt_supported_algs={','.join(told.algorithms)}" if told.algorithms else ""
    if told.ca_file:
        named += f" oidc_discovery_ca_pem={shlex.quote('@' + told.ca_file)}"
    return (
        "vault auth enable jwt",
        f"vault write auth/jwt/config oidc_discovery_url={url.text} bound_issuer={url.text}{named}",
        *(
            f"vault write auth/jwt/role/{_short(subject, MAX_ROLE)} role_type=jwt user_claim=sub "
            f"bound_audiences={','.join(audiences)} bound_subject={subject} token_policies=default"
            for subject in subjects
        ),
    )


def _short(subject: str, most: int) -> str:
    """A name for a SPIFFE ID: of its path, the end of which tells the most."""
    return _DULL.sub("-", subject.partition("://")[2].partition("/")[2])[-most:].strip("-") or "workload"


_MAKERS: Mapping[str, Callable[[_Told], tuple[str, ...]]] = MappingProxyType(
    {"aws": _aws, "gcp": _gcp, "azure": _azure, "vault": _vault}
)
