"""Everything that can go wrong, sorted by what the person on call can do about it.

    FuploaderError
    +-- TemporaryError       try again later; the pipeline does so by itself
    |   +-- SourceUnavailable    the queue does not answer
    |   +-- StateUnavailable     the state store does not answer, or cannot at the moment
    |   +-- StoreUnavailable     the object store does not answer, or asks to slow down
    |   |   +-- StoreAwaited         the same, while another process already waits for it
    |   +-- ProcessorUnavailable  the processor of a pipeline does not work for any item
    |   +-- SinkUnavailable      a sink does not answer, or cannot at the moment
    |   +-- NotifierUnavailable  who is to be told does not answer, or cannot at the moment
    |   +-- RetryItem            it did not work for one item, which is tried again
    |   +-- Paused               somebody has paused the pipeline
    |   +-- SlotInUse            another process is writing this slot
    |   +-- DiskFull             less space than the configured minimum, or the disk is full
    |   +-- DiskFailed           the system cannot read or write, or one of our files vanished
    +-- PermanentError       a person has to change something first
    |   +-- ConfigError          a setting is unknown, missing or impossible
    |   +-- MigrationNeeded      FUploader's data must be migrated before the pipeline starts
    |   +-- SourceRefused        the queue refuses us: login, rights, no such queue
    |   |   +-- MessageRefused       it refuses one message, which is too large, for example
    |   +-- OutdatedCopy         another copy of this storage root has been written since
    |   +-- StateRefused         the state store refuses us: rights, no memory, not the master
    |   +-- StoreRefused         the object store refuses us: key, rights, no such bucket
    |   |   +-- ColdObject           the object is stored, but must be restored to be read
    |   +-- SinkRefused          a sink refuses us: login, rights, no such table, no such column
    |   +-- NotifierRefused      who is to be told refuses us, or refuses a notice
    |   +-- ObjectConflict       our key already has an object with other content
    |   +-- TooLarge             reading an archive needs more memory than allowed
    |   +-- StrategyError        a parser, name generator, packer or key function failed
    |   +-- ForeignFile          a link, pipe or folder is where one of our files should be
    +-- DamagedData          bytes are not what they must be
        +-- BadMessage           a message that cannot become a file becomes a dead letter
        +-- BadItem              an item that cannot be processed becomes a dead letter
        +-- BadNotice            a notice that can be sent to nobody: its task has no such field
        +-- DamagedSlot          a slot directory contradicts its index or its seal
        |   +-- OtherFormat          another version of this software wrote it; it is intact
        +-- DamagedResults       a processed slot contradicts its index or its seal
        +-- DamagedArchive       an archive contradicts its manifest
        +-- DigestMismatch       what the object store holds is not what was sent

A run gives a permanent error no further attempt. The recovery schedule does, after growing pauses:
nothing tells it when the person has changed what had to be changed.

Every error says what was tried, on what, and what happened; `hint` says what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

UNREADABLE_JSON = (ValueError, RecursionError)
"""What msgspec raises on bytes that it cannot decode, JSON or not: its `DecodeError`,
`UnicodeDecodeError` on text that is not UTF-8, and `RecursionError` on endless brackets."""


class FuploaderError(Exception):
    """Base of all errors of this package.

    `hint` is one sentence for the person on call, and part of `str(error)`.
    Neither the message nor the hint ever contains a secret.
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
    """The queue cannot be reached, or dropped the connection."""


class StateUnavailable(TemporaryError):
    """The state store cannot be reached, or says that it will recover by itself."""


class StoreUnavailable(TemporaryError):
    """The object store cannot be reached, failed, or asked to slow down.

    `retry_after_seconds` is the pause that the server asked for, if it did.
    """

    def __init__(
        self, message: str, *, hint: str = "", retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_seconds = retry_after_seconds


class StoreAwaited(StoreUnavailable):
    """The object store cannot be reached. Another process of the pipeline already waits for it, so
    this one gives up at once."""


class ProcessorUnavailable(TemporaryError):
    """No item can be processed: the handler is down, for example. Nothing became a dead letter."""


class SinkUnavailable(TemporaryError):
    """A sink does not answer, or cannot store anything at the moment."""


class NotifierUnavailable(TemporaryError):
    """Who is to be told of tasks does not answer, or takes nothing at the moment."""


class RetryItem(TemporaryError):
    """Processing an item failed, and may succeed when it is tried again.

    `retry_after_seconds` is the pause that the handler asked for, if it did. `shared`: another item
    that was in work at the time may be the cause (the connection was lost, for example), so the
    last attempt is made alone.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        retry_after_seconds: float | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_seconds = retry_after_seconds
        self.shared = shared


class Paused(TemporaryError):
    """Somebody has paused this part of the pipeline."""


class SlotInUse(TemporaryError):
    """Another live process owns the slot, or the storage root."""


class DiskFull(TemporaryError):
    """Too little disk space to take more messages."""


class DiskFailed(TemporaryError):
    """Reading, writing or syncing failed, or the open file is no longer found by its name. Only
    what was synced before counts as written."""


class PermanentError(FuploaderError):
    """Trying again at once cannot help: a person has to change something first."""


class ConfigError(PermanentError):
    """A setting is unknown, missing or impossible. The message names it.

    `each`: the errors that this one is made of, if it is made of several.
    """

    def __init__(self, message: str, *, hint: str = "", each: Sequence[ConfigError] = ()) -> None:
        super().__init__(message, hint=hint)
        self.each = each or (self,)

    @classmethod
    def of(cls, errors: Iterable[ConfigError]) -> ConfigError:
        """One error that says all that these say: at least one."""
        each = tuple(part for error in errors for part in error.each)
        return each[0] if len(each) == 1 else cls("; ".join(map(str, each)), each=each)


class MigrationNeeded(PermanentError):
    """Something of FUploader's is in the pipeline's folder or Redis; `fuploader migrate` takes it
    over. Until then the pipeline does not start."""


class SourceRefused(PermanentError):
    """The broker refused the login, the rights or the queue's name."""


class MessageRefused(SourceRefused):
    """The queue will never take one of the messages to publish.

    `position`: which one, counted from 0. The first `confirmed` messages are in the queue; those
    between may be.
    """

    def __init__(self, message: str, *, position: int, confirmed: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.position = position
        self.confirmed = confirmed


class OutdatedCopy(PermanentError):
    """This storage root is a copy of one that has been written elsewhere since it was copied."""


class StateRefused(PermanentError):
    """The state store refuses us, or holds something else in our place, until a person acts."""


class StoreRefused(PermanentError):
    """The object store refused the request for good."""


class ColdObject(StoreRefused):
    """The object is in a storage class that must be restored before it can be read (such as
    GLACIER). It is neither lost nor damaged."""


class SinkRefused(PermanentError):
    """A sink refuses us: login, rights, no such table, no such column."""


class NotifierRefused(PermanentError):
    """Who is to be told of tasks refuses us, or this notice."""


class ObjectConflict(PermanentError):
    """The key already has an object with other content. It was not touched."""


class TooLarge(PermanentError):
    """Reading a piece of an archive needs more memory than allowed. Nothing is damaged."""


class StrategyError(PermanentError):
    """A user's function raised or returned something unusable."""


class ForeignFile(PermanentError):
    """Something that is not ours is where one of our files should be. It was not touched."""


class DamagedData(FuploaderError):
    """Bytes are not what they must be."""


class BadMessage(DamagedData):
    """A message that can never become a file. Its raw bytes become a dead letter."""


class BadItem(DamagedData):
    """An item of a slot that can never be processed. It becomes a dead letter.

    `answered`: whether somebody was asked who could have answered otherwise. An item that is
    refused before that (it is not JSON, for example) does not show that the processor works.
    """

    def __init__(self, message: str, *, hint: str = "", answered: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.answered = answered


class BadNotice(DamagedData):
    """A notice that can be sent to nobody, however often it is tried."""


class DamagedSlot(DamagedData):
    """A slot directory contradicts its own index or seal."""


class OtherFormat(DamagedSlot):
    """A slot directory that only another version of this software, which wrote it, can read."""


class DamagedArchive(DamagedData):
    """An archive contradicts its own manifest or digest."""


class DigestMismatch(DamagedData):
    """The object store holds other bytes than those sent. Local data was kept."""


class DamagedResults(DamagedData):
    """A processed slot contradicts its own index or seal. It can be made again."""
