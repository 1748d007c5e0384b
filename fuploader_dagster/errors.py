"""What can go wrong, sorted by what the person on call can do about it.

    FuploaderError
    +-- TemporaryError       try again later; the pipeline does so by itself
    |   +-- SourceUnavailable    the queue does not answer
    |   +-- StateUnavailable     the state store does not answer, or cannot for the moment
    |   +-- StoreUnavailable     the object store does not answer, or asks to slow down
    |   |   +-- StoreAwaited           the same, and another process waits for it already
    |   +-- SlotInUse            another process writes this slot at the moment
    |   +-- DiskFull             too little room by the configured marks, or the disk said ENOSPC
    |   +-- DiskFailed           the system refuses to read or write, or a file of ours vanished
    +-- PermanentError       a person has to change something first
    |   +-- ConfigError          a setting is unknown, missing or impossible
    |   +-- SourceRefused        the queue refuses us: login, rights, no such queue
    |   |   +-- MessageRefused         it refuses one message, which is too large, for example
    |   +-- StateRefused         the state store refuses us: rights, no memory, not the master
    |   +-- StoreRefused         the object store refuses us: key, rights, no such bucket
    |   |   +-- ColdObject           the object is stored, and cannot be read before it is restored
    |   +-- ObjectConflict       an object with other content lies under our key
    |   +-- TooLarge             an archive needs more memory than it may take
    |   +-- StrategyError        a parser, name generator, packer or key function misbehaved
    |   +-- ForeignFile          a link, a pipe or a folder has the place of one of our files
    +-- DamagedData          bytes are not what they must be
        +-- BadMessage           a message that cannot become a file: goes to the dead letters
        +-- DamagedSlot          a slot directory contradicts its index or its seal
        |   +-- OtherFormat          another version of this software wrote it: it is whole
        +-- DamagedArchive       an archive contradicts its manifest
        +-- DigestMismatch       what the object store holds is not what was sent

Every error says what was tried, on what, and what happened; `hint` says what to do next.
"""

UNREADABLE_JSON = (ValueError, RecursionError)
"""What msgspec raises on bytes that are not what somebody wrote, JSON or not: its `DecodeError`,
`UnicodeDecodeError` on text that is no UTF-8, and `RecursionError` on brackets without end."""


class FuploaderError(Exception):
    """Base of all errors of this package.

    `hint` is one sentence for the person on call; it is part of `str(error)`.
    Neither the message nor the hint ever holds a secret.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class TemporaryError(FuploaderError):
    """Trying again later can help."""


class SourceUnavailable(TemporaryError):
    """The queue cannot be reached or dropped the connection."""


class StateUnavailable(TemporaryError):
    """The state store cannot be reached, or says that it will answer again by itself."""


class StoreUnavailable(TemporaryError):
    """The object store cannot be reached, failed, or asked to slow down.

    `retry_after_seconds` is what the server asked for, if it said so.
    """

    def __init__(
        self, message: str, *, hint: str = "", retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_seconds = retry_after_seconds


class StoreAwaited(StoreUnavailable):
    """The object store cannot be reached, and another process of the pipeline waits for it: this
    one gives up at once."""


class SlotInUse(TemporaryError):
    """Another live process owns the slot (or the storage root)."""


class DiskFull(TemporaryError):
    """Too little room to take more messages."""


class DiskFailed(TemporaryError):
    """Reading, writing or syncing failed, or what is written is no longer found by its name. What
    was not synced before counts for nothing."""


class PermanentError(FuploaderError):
    """Trying again without a change cannot help."""


class ConfigError(PermanentError):
    """A setting is unknown, missing or impossible. The message names it."""


class SourceRefused(PermanentError):
    """The queue refused the login, the rights or the queue's name."""


class MessageRefused(SourceRefused):
    """The queue will never take one of the messages that were to be published.

    `position`: which of them, from 0. The first `confirmed` of them are in the queue; what lies
    between may be.
    """

    def __init__(self, message: str, *, position: int, confirmed: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.position = position
        self.confirmed = confirmed


class StateRefused(PermanentError):
    """The state store refuses us, or holds something in our place, until a person acts."""


class StoreRefused(PermanentError):
    """The object store refused the request for good."""


class ColdObject(StoreRefused):
    """The object is there, in a class that cannot be read (GLACIER and its like) until it is
    restored. It is not lost, and nothing about it is wrong."""


class ObjectConflict(PermanentError):
    """An object with other content already lies under the key. It was not touched."""


class TooLarge(PermanentError):
    """A piece of an archive needs more memory than reading it may take. Nothing is damaged."""


class StrategyError(PermanentError):
    """A user's function raised or returned something unusable."""


class ForeignFile(PermanentError):
    """Something that is not ours has the place of one of our files. It was not touched."""


class DamagedData(FuploaderError):
    """Bytes are not what they must be."""


class BadMessage(DamagedData):
    """A message that can never become a file. Its raw bytes go to the dead letters."""


class DamagedSlot(DamagedData):
    """A slot directory contradicts its own index or seal."""


class OtherFormat(DamagedSlot):
    """A slot directory was written by another version of this software, which can read it."""


class DamagedArchive(DamagedData):
    """An archive contradicts its own manifest or digest."""


class DigestMismatch(DamagedData):
    """The object store holds other bytes than were sent. Local data was kept."""
