"""The front door of a pipeline: what `fuploader serve` takes for it, and from whom.

Tokens are named, not held: only the server itself reads them from its environment, so every other
process of the pipeline runs without them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from fuploader_dagster.contracts.settings import Count, Seconds, Settings
from fuploader_dagster.settings.names import comma_separated, each_header_once

MIB = 1024 * 1024
Right = Literal["publish", "read", "process", "control"]
RIGHTS: tuple[Right, ...] = get_args(Right)


class TokenVariable(Settings):
    """`{env: NAME}`: the environment variable that holds a token."""

    env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name of the variable."""


def _named(value: Any) -> Any:
    name = getattr(value, "env_var_name", None)  # dagster.EnvVar, without importing dagster
    if name is not None:
        return {"env": name}
    if isinstance(value, str):
        raise ValueError("a token is not written here: name its environment variable, {env: NAME}")
    return value


Token = Annotated[TokenVariable, BeforeValidator(_named)]


class Serve(Settings):
    """What `fuploader serve` takes for a pipeline."""

    publish_token: Token | None = None
    """Who has this token may publish messages. Given as `{env: NAME}`, like the next three; several
    tokens in one variable, separated by spaces, all hold."""
    read_token: Token | None = None
    """May ask where messages are, read stored files, and see how the pipeline does."""
    process_token: Token | None = None
    """May have the pipeline's processor work on something at once."""
    control_token: Token | None = None
    """May pause and resume the pipeline."""
    max_backlog: Annotated[int, Field(ge=0)] = 1_000_000
    """With more messages than this in the queue, nothing is taken: the answer is 429. 0: no
    limit."""
    max_body_bytes: Count = 16 * MIB
    """A request with a larger body is refused with 413."""
    max_items: Count = 10_000
    """A list or JSON lines with more messages than this are refused with 413."""
    body_seconds: Seconds = 30.0
    """A request whose body is not here after this time is refused with 408."""
    answer_seconds: Seconds = 30.0
    """A request that the queue has not confirmed after this time is answered with 503."""
    headers: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")], ...],
        Field(max_length=32),
        BeforeValidator(comma_separated),
        AfterValidator(each_header_once),
    ] = ()
    """HTTP headers of a request that become headers of its messages, such as `Content-Type`."""
    fetch_hosts: list[str] = Field(default_factory=list)
    """The only hosts from which `process?url=` fetches a file, as `allow_hosts` of downloads. One
    that is not public is fetched from only if an entry names it. Without any: all public hosts."""
    flat: bool = False
    """Take only JSON objects without lists or objects in them."""
    open_metrics: bool = False
    """Whether `/metrics` shows this pipeline to everybody, without a token: names and figures, no
    messages. Otherwise it needs the right to read."""
    remember_ids: Annotated[int, Field(ge=0)] = 1_000_000
    """Number of recent idempotency keys and item ids that this node remembers, so that what is sent
    again is not published again, and of messages that it gave to the queue, so that one of which it
    has seen nothing since is known to wait. About 130 bytes of disk each."""

    def variable_of(self, right: Right) -> str | None:
        """The environment variable with the token for a right, if there is one."""
        token: TokenVariable | None = getattr(self, f"{right}_token")
        return token.env if token else None


def _switched(value: Any) -> Any:
    if value is True:
        return {}
    return None if value is False else value


MaybeServe = Annotated[Serve | None, BeforeValidator(_switched)]
