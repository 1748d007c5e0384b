"""A login with SASL in front of a broker that has none: PLAIN, and SCRAM as RFC 5802 has it.

Neither of the two brokers here lets anybody in: noida-db knows no SASL, and Tansu 0.6.0 with
`--authentication` keeps its users in memory and wants a login from whoever creates the first one.
So this proxy answers what a client says of SASL; the client, and its proof of the password, are
those of the library. Questions for the versions that the broker speaks are passed on.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import struct
from pathlib import Path
from typing import Protocol

from tests.servers.tls_proxy import TlsProxy

HANDSHAKE, VERSIONS, AUTHENTICATE = 17, 18, 36
UNSUPPORTED_MECHANISM, AUTHENTICATION_FAILED = 33, 58
ITERATIONS = 4_096
DIGESTS = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}


class _Login(Protocol):
    def answer(self, said: bytes) -> tuple[bytes, bool | None]:
        """What to answer, and with the last answer whether it is the user."""


class KafkaLogin(TlsProxy):
    """Use as a context manager; clients connect to `port`."""

    def __init__(
        self,
        upstream_port: int,
        *,
        user: str,
        password: str,
        mechanisms: tuple[str, ...] = ("PLAIN", *DIGESTS),
        certificate: Path | None = None,
    ) -> None:
        super().__init__(upstream_port, certificate)
        self._user, self._password, self._mechanisms = user, password, mechanisms
        self.logins: list[tuple[str, bool]] = []
        """Mechanism and outcome of each."""

    async def _welcome(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        above: asyncio.StreamReader,
        below: asyncio.StreamWriter,
    ) -> None:
        mechanism = ""
        login: _Login | None = None
        while True:
            frame = await _frame(reader)
            key, _, number, client_bytes = struct.unpack_from(">hhih", frame)
            body = frame[10 + max(0, client_bytes) :]
            if key == VERSIONS:
                _send(below, frame)
                _send(writer, await _frame(above))
            elif key == HANDSHAKE:
                mechanism = body[2:].decode()
                known = mechanism in self._mechanisms
                login = self._login(mechanism) if known else None
                names = b"".join(map(_text, self._mechanisms))
                error = 0 if known else UNSUPPORTED_MECHANISM
                answer = struct.pack(">hi", error, len(self._mechanisms)) + names
                _send(writer, struct.pack(">i", number) + answer)
            elif key == AUTHENTICATE and login is not None:
                said, over = login.answer(body[4:])
                if over is not None:
                    self.logins.append((mechanism, over))
                error, reason = (0, b"\xff\xff")
                if over is False:
                    error, reason = AUTHENTICATION_FAILED, _text("Authentication failed")
                answer = struct.pack(">h", error) + reason + struct.pack(">i", len(said)) + said
                _send(writer, struct.pack(">i", number) + answer + struct.pack(">q", 0))
                if over:
                    return
            else:
                raise EOFError(f"request {key} before the login")
            await writer.drain()

    def _login(self, mechanism: str) -> _Login:
        if mechanism == "PLAIN":
            return _Plain(self._user, self._password)
        return _Scram(self._user, self._password, DIGESTS[mechanism])


class _Plain:
    def __init__(self, user: str, password: str) -> None:
        self._right = [b"", user.encode(), password.encode()]

    def answer(self, said: bytes) -> tuple[bytes, bool | None]:
        return b"", said.split(b"\0") == self._right


class _Scram:
    def __init__(self, user: str, password: str, digest: str) -> None:
        self._user, self._digest = user, digest
        self._salt = secrets.token_bytes(16)
        self._salted = hashlib.pbkdf2_hmac(digest, password.encode(), self._salt, ITERATIONS)
        self._bare = self._challenge = self._nonce = ""

    def answer(self, said: bytes) -> tuple[bytes, bool | None]:
        if not self._challenge:
            self._bare = said.decode().removeprefix("n,,")
            asked = dict(part.split("=", 1) for part in self._bare.split(","))
            self._user_is_right = asked["n"] == self._user
            self._nonce = f"r={asked['r']}{secrets.token_hex(12)}"
            salt = base64.b64encode(self._salt).decode()
            self._challenge = f"{self._nonce},s={salt},i={ITERATIONS}"
            return self._challenge.encode(), None
        final, _, proof = said.decode().rpartition(",p=")
        signed = f"{self._bare},{self._challenge},{final}".encode()
        key = self._hmac(self._salted, b"Client Key")
        signature = self._hmac(hashlib.new(self._digest, key).digest(), signed)
        right = bytes(one ^ other for one, other in zip(key, signature, strict=True))
        is_right = base64.b64decode(proof) == right and self._nonce in final.split(",")
        if not (is_right and self._user_is_right):
            return b"", False
        of_server = self._hmac(self._hmac(self._salted, b"Server Key"), signed)
        return b"v=" + base64.b64encode(of_server), True

    def _hmac(self, key: bytes, said: bytes) -> bytes:
        return hmac.digest(key, said, self._digest)


async def _frame(reader: asyncio.StreamReader) -> bytes:
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(size)


def _send(writer: asyncio.StreamWriter, frame: bytes) -> None:
    writer.write(struct.pack(">i", len(frame)) + frame)


def _text(value: str) -> bytes:
    return struct.pack(">h", len(value)) + value.encode()
