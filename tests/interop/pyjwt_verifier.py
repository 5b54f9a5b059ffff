"""A relying party that uses PyJWT; it runs in that package's environment, without ours.

    pyjwt_verifier.py ISSUER AUDIENCE CA_FILE

It knows nothing else. Each line of standard input is a token; one JSON line on standard output says what became of it.
"""

from __future__ import annotations

import json
import ssl
import sys
import urllib.request
from typing import Any

import jwt

SECONDS = 10.0
COOLDOWN = 1.0
"""So long after it has read the keys PyJWT does not look for an unknown one; 30 s unless it is told otherwise."""


def say(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def main(issuer: str, audience: str, ca_file: str) -> None:
    context = ssl.create_default_context(cafile=ca_file)
    url = f"{issuer}/.well-known/openid-configuration"
    with urllib.request.urlopen(url, timeout=SECONDS, context=context) as answer:
        told = json.load(answer)
    if told["issuer"] != issuer:
        say("refused", text=f"{issuer} says that it is {told['issuer']}")
        return
    algorithms = told["id_token_signing_alg_values_supported"]
    keys = jwt.PyJWKClient(told["jwks_uri"], ssl_context=context, timeout=SECONDS, cooldown_duration=COOLDOWN)
    found = [
        {"kid": key.key_id, "alg": key.algorithm_name, "use": key.public_key_use} for key in keys.get_signing_keys()
    ]
    say("discovered", algorithms=algorithms, keys=found)
    required = ["exp", "iat", "iss", "aud", "sub"]
    for line in sys.stdin:
        try:
            key = keys.get_signing_key_from_jwt(line.strip())
            claims = jwt.decode(
                line.strip(),
                key,
                algorithms=algorithms,
                audience=audience,
                issuer=issuer,
                options={"require": required},
            )
        except jwt.PyJWTError as error:
            say("refused", text=f"{type(error).__name__}: {error}")
        else:
            say("verified", iss=claims["iss"], sub=claims["sub"], aud=claims["aud"])


main(*sys.argv[1:])
