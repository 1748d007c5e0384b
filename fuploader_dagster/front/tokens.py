"""Who may what: bearer tokens, one for each right of a pipeline, and one for everything.

What must always hold:

- Nothing is open that does not say so: a server without any token does not start.
- Tokens come from the environment of this process, are never shown, and only their digests are
  kept. A token that a client sends is compared with all of them, in constant time.
- An unknown token is 401, whatever it asks for; a known one without the right is 403.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.front.answers import Refusal
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.serve import RIGHTS, Right, Serve

MASTER_VARIABLE = "FUPLOADER_SERVE_TOKEN"
"""Its token has all rights on all pipelines."""
SHORTEST_TOKEN = 16

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
"""What a bearer token can be (RFC 6750), `=` anywhere."""

Grant = tuple[str, Right]
"""A pipeline's name and a right on it."""


@dataclass(frozen=True)
class _Known:
    digest: bytes
    grants: frozenset[Grant] | None
    """None: everything."""


class Tokens:
    """All tokens of a server. Raises `ConfigError` if they cannot be used."""

    def __init__(self, pipelines: Iterable[Pipeline], environment: Mapping[str, str]) -> None:
        everything: set[bytes] = set()
        if environment.get(MASTER_VARIABLE, "").strip():
            everything = _digests(MASTER_VARIABLE, environment)
        granted: dict[bytes, set[Grant]] = {}
        for pipeline in pipelines:
            for right in RIGHTS:
                name = (pipeline.serve or Serve()).variable_of(right)
                if name is None:
                    continue
                for digest in _digests(name, environment):
                    granted.setdefault(digest, set()).add((pipeline.name, right))
        self._known = [
            *(_Known(digest, None) for digest in everything),
            *(
                _Known(digest, frozenset(grants))
                for digest, grants in granted.items()
                if digest not in everything
            ),
        ]
        if not self._known:
            raise ConfigError(
                "no token is configured, and nothing is served without one",
                hint=f"set {MASTER_VARIABLE} to a long random text, such as that of "
                "`openssl rand -hex 32`, or name variables in the settings: serve: "
                "{publish_token: {env: NAME}}",
            )

    def check(self, authorization: bytes | None, pipeline: str | None, right: Right | None) -> None:
        """Raise a `Refusal` unless the header's token has the right on the pipeline.

        Without a right, any token of the server will do.
        """
        known = self._find(authorization)
        if known.grants is None or right is None or (pipeline or "", right) in known.grants:
            return
        raise Refusal(
            403,
            f"this token does not have the right {right} on {pipeline}",
            hint=f"send the token of {right}_token",
            headers={"www-authenticate": 'Bearer error="insufficient_scope"'},
        )

    def may(self, authorization: bytes | None, pipeline: str, right: Right) -> bool:
        """Whether the header's token has the right."""
        try:
            self.check(authorization, pipeline, right)
        except Refusal:
            return False
        return True

    def _find(self, authorization: bytes | None) -> _Known:
        scheme, _, token = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not token.strip():
            raise Refusal(
                401,
                "the request has no token",
                hint="send the header `Authorization: Bearer TOKEN`",
                headers={"www-authenticate": "Bearer"},
            )
        digest = hashlib.sha256(token.strip()).digest()
        found = None
        for known in self._known:
            if hmac.compare_digest(digest, known.digest):
                found = known
        if found is None:
            raise Refusal(
                401,
                "the token is not one of this server's",
                hint="was it changed? The server reads its tokens when it starts",
                headers={"www-authenticate": 'Bearer error="invalid_token"'},
            )
        return found


def _digests(variable: str, environment: Mapping[str, str]) -> set[bytes]:
    """Digests of the tokens in a variable."""
    tokens = environment.get(variable, "").split()
    if not tokens:
        raise ConfigError(
            f"the environment variable {variable} has no token",
            hint=f"set it, for example: export {variable}=$(openssl rand -hex 32)",
        )
    for token in tokens:
        if len(token) < SHORTEST_TOKEN or not _TOKEN.fullmatch(token):
            raise ConfigError(
                f"a token in {variable} cannot be used: it must have at least {SHORTEST_TOKEN} "
                "letters, digits or characters of ._~+/=-",
                hint="make one with `openssl rand -hex 32`",
            )
    return {hashlib.sha256(token.encode()).digest() for token in tokens}
