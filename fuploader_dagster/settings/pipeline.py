"""Settings of a pipeline: one validated model, from Python, YAML and the environment.

`Intake` is the half that a drain worker needs (queue to sealed slot), `Pipeline` adds the other
half (sealed slot to stored object). A worker gets its `Intake` as JSON through its stdin, so it
never loads Dagster, a store's client library, or a file that may have changed meanwhile.

Unknown keys and impossible values fail at load, and so do traps between options.
"""

from __future__ import annotations

import inspect
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    SecretStr,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from fuploader_dagster.contracts.object_store import OpensObjectStore
from fuploader_dagster.contracts.source import SourceSettings
from fuploader_dagster.contracts.state import StateSettings
from fuploader_dagster.disk.layout import NO_NODE, Layout
from fuploader_dagster.disk.names_in_utf8 import require_utf8_names
from fuploader_dagster.settings.secret import Secret
from fuploader_dagster.settings.user_functions import KeyStrategy, Strategy

MIB = 1024 * 1024
DEFAULT_PREFETCH = 2000
BUILT_IN_SUFFIXES = (".tar.zst", ".tzst")
DEFAULT_KEY = "{pipeline}/{sealed_at:%Y%m%d}/{archive}"

FIELDS_OF_ENVELOPE = {"payload", "compression", "content_type"}
LONGEST_FLUSH_SECONDS = 10.0
"""Between two batches a worker renews its claims (they last 30 s) and says what it is doing."""

_WEB_ADDRESS = re.compile(r"https?://[^/?#\s]+[^\s]*\Z")

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def _names(value: Any) -> Any:
    """`file_name, id` as a list: environment variables hold no lists."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


class Intake(BaseModel):
    """Everything between the queue and a sealed slot."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    """Names folders, asset keys, partition sets and sensors: lower case, digits, underscores."""
    node_id: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = None
    """This machine's name, where several share a queue. Part of partition keys and asset keys;
    in the latter `node-1` is `node_1_xd`."""
    storage_root: Annotated[Path, AfterValidator(Path.expanduser)] = Path("data")
    """Local folder for slots and archives, on a disk that honours fsync."""
    source: SerializeAsAny[InstanceOf[SourceSettings]]
    """The queue."""
    state: SerializeAsAny[InstanceOf[StateSettings]]
    """Where workers and sensor keep counts, claims and the list of sealed slots."""

    message_format: Literal["envelope", "json", "raw"] = "envelope"
    """`envelope`: FUploader's; `json`: the body is the file, named by a field of it; `raw`: the
    body is the file, named by the message id or by its own digest."""
    name_fields: Annotated[tuple[str, ...], BeforeValidator(_names)] = (
        "file_name",
        "file_id",
        "aweme_id",
    )
    """Fields that name the file, the first non-empty one wins; with none of them, and so for all
    messages where this is empty, the name is made from the body."""
    max_unpacked_bytes: Count = 64 * MIB
    """A message that unpacks to more goes to the dead letters."""
    parser: Strategy | None = None
    """Own message parser, sync or async: takes the body, returns bytes, text, an envelope, or
    anything that JSON can write."""
    file_name: Strategy | None = None
    """Own file name generator: gets what the parser returned, returns the name."""
    parser_timeout_seconds: Seconds = 300.0
    """A parser or name generator that takes longer for one message hangs: its worker is ended."""
    max_deliveries: Annotated[int, Field(ge=3)] = 4
    """A message that ends its worker (a parser that crashes, hangs or eats all memory) becomes a
    dead letter when it was delivered so often. Three at least: with its batch, among what came
    again, and alone, so that it is known to be the one; one more for a worker that was killed."""
    worker_memory_bytes: Annotated[int, Field(ge=128 * MIB)] | None = None
    """What a worker may take (RLIMIT_DATA), so that a parser that eats memory fails instead of the
    machine; about 100 MiB are its own. Without it the kernel chooses which process it kills."""
    key: KeyStrategy = DEFAULT_KEY
    """Object key: a template with {pipeline} {node} {slot} {number} {sealed_at:%Y%m%d} {partition}
    {archive}, or a function `(archive name) -> key`. Fixed when the slot is sealed."""
    archive_suffix: Annotated[str, Field(pattern=r"^(\.[A-Za-z0-9]{1,10}){1,3}$")] = ".tar.zst"
    """Ending of archive names; a custom packer must produce files of this ending."""

    slot_format: Literal["segment", "files"] = "segment"
    """`segment`: one append-only tar per directory, fast; `files`: one file per message."""
    process_count: Count = 1
    """Worker processes that drain side by side; each owns its slots."""
    slots_per_worker: Count = 1
    """With more than one, batches go to them in turn: smaller archives side by side, at no cost."""
    max_tasks_per_child: Annotated[int, Field(ge=0)] = 0
    """A worker is replaced after this many messages; 0 means never."""
    drain_by: Literal["sensor", "command"] = "sensor"
    """`command`: `fuploader drain` runs the workers, the sensor only registers sealed slots."""

    prefetch_count: Annotated[int, Field(ge=2)] = DEFAULT_PREFETCH
    """Unacknowledged messages the queue hands a worker; more than `commit_messages`."""
    commit_messages: Count = 500
    """Messages per durable commit, and so per acknowledgement."""
    commit_bytes: Count = 16 * MIB
    """A batch whose messages have so many bytes is committed before it has all of its messages."""
    flush_interval_seconds: Seconds = 1.0
    """A slow queue's messages wait at most this long for their commit."""

    dedup_window_messages: Annotated[int, Field(ge=0)] = 1_000_000
    """A message that the queue delivers again is compared with so many that were stored before it
    by any worker of this node, uploaded ones included, and not stored twice. Many times what
    workers have in hand, because stored ones come in between; after a redelivery it takes 8 bytes
    of memory a message and worker, and always about 100 bytes of disk a message. 0: only the
    directory that is being written knows its messages."""

    seal_messages: Count = 10_000
    """A slot costs Dagster about 40 ms: smaller slots soon cost more than their messages. Looked
    at after each commit, so a slot can hold up to `commit_messages` more."""
    seal_bytes: Count = 128 * MIB
    """A slot with so many payload bytes is sealed, however few its messages."""
    seal_age_seconds: Seconds = 300.0
    """A slot is sealed so long after its first message, however little is in it."""
    residue_file_upload: bool = False
    """Seal what is left when a worker is told to leave. `fuploader drain` then packs and uploads it
    before it ends; under Dagster that is done at its next start, or by `fuploader ship`."""

    min_free_bytes: Annotated[int, Field(ge=0)] = 512 * MIB
    """With less free space the drain pauses and leaves messages in the queue. What is left is for
    the archives of the slots that are being shipped: four uploads of 128 MiB by default."""
    min_free_inodes: Annotated[int, Field(ge=0)] = 10_000
    """With fewer the drain pauses likewise. A slot on its way takes about ten, but a custom packer
    gets a file for each of its messages."""
    max_unshipped_bytes: Annotated[int, Field(ge=0)] = 0
    """With more in sealed slots and archives that the object store has not confirmed, the drain
    pauses likewise; 0: no limit but the disk. For a disk that others need too, or where a person
    should look before a dead store has filled it."""
    lease_seconds: Seconds = 8.5
    """Workers leave by themselves when no sensor tick came for this long; ticks come every 5 s."""

    @property
    def layout(self) -> Layout:
        return Layout(self.storage_root.absolute() / self.name)

    @property
    def node(self) -> str:
        return self.node_id or NO_NODE

    def slots_of(self, worker: int) -> range:
        """Slot numbers that a worker owns."""
        return range(worker * self.slots_per_worker, (worker + 1) * self.slots_per_worker)

    @model_validator(mode="before")
    @classmethod
    def _fit_batch_to_prefetch(cls, values: Any) -> Any:
        """A batch that nobody set is at most half of what the queue hands out."""
        if isinstance(values, dict) and "commit_messages" not in values:
            prefetch = values.get("prefetch_count", DEFAULT_PREFETCH)
            if str(prefetch).isdecimal():
                values = {**values, "commit_messages": max(1, min(500, int(prefetch) // 2))}
        return values

    @model_validator(mode="after")
    def _check_traps(self) -> Intake:
        require_utf8_names()
        if self.prefetch_count <= self.commit_messages:
            raise ValueError(
                f"prefetch_count ({self.prefetch_count}) must be larger than commit_messages "
                f"({self.commit_messages}): otherwise the queue stops delivering before a batch "
                f"is full, and every commit waits for flush_interval_seconds"
            )
        in_hand = self.process_count * self.prefetch_count
        if 0 < self.dedup_window_messages < in_hand:
            raise ValueError(
                f"dedup_window_messages ({self.dedup_window_messages}) must be 0 or at least "
                f"process_count times prefetch_count ({in_hand}): so many messages can come again "
                f"at once"
            )
        if self.lease_seconds > 60 or self.lease_seconds < 6:
            raise ValueError(
                f"lease_seconds ({self.lease_seconds:g}) must lie between 6 and 60: sensor ticks "
                f"come every 5 s, and switching the sensor off takes this long to stop the drain"
            )
        if self.flush_interval_seconds > LONGEST_FLUSH_SECONDS:
            raise ValueError(
                f"flush_interval_seconds ({self.flush_interval_seconds:g}) must be at most "
                f"{LONGEST_FLUSH_SECONDS:g}: a worker renews its claims between two batches"
            )
        if 0 < self.max_unshipped_bytes < 2 * self.seal_bytes:
            raise ValueError(
                f"max_unshipped_bytes ({self.max_unshipped_bytes:,}) must be at least twice "
                f"seal_bytes ({self.seal_bytes:,}), or 0: otherwise each sealed slot pauses the "
                f"drain until it is uploaded"
            )
        if inspect.iscoroutinefunction(self.file_name):
            raise ValueError("file_name must be a plain function, not an async one")
        taken = FIELDS_OF_ENVELOPE & set(self.name_fields)
        if taken and self.message_format == "envelope":
            raise ValueError(
                f"name_fields cannot contain {', '.join(sorted(taken))}: an envelope uses it "
                f"otherwise"
            )
        return self


class Takeover(BaseModel):
    """Where FUploader kept what is to be taken over. The defaults are right where this pipeline is
    pointed at the same storage root and Redis, and has the name of FUploader's task."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    enabled: bool = True
    """Whether what FUploader left is adopted without a command."""
    root: Annotated[Path, AfterValidator(Path.expanduser)] | None = None
    """Its `storage_root`; by default the pipeline's."""
    task_name: str | None = None
    """Its `task_name`, which begins its keys of style `legacy_meta`; by default the pipeline's."""
    node_id: str | None = None
    """Its `node_id`; by default the pipeline's, or else the one that it makes of the address."""
    key_prefix: str = "file_uploader:"
    """Its `key_prefix`, which begins its keys of style `default`."""
    redis_url: Secret | None = None
    """Its Redis, where that is not the one of this pipeline's state."""
    stored_below: str | None = None
    """What the keys of its archives begin with; by default what this pipeline's keys begin with."""


class Pipeline(Intake):
    """One queue's whole way into one object store."""

    takeover: Takeover = Takeover()
    """What FUploader left below its storage root: found, adopted and shipped (see the guide)."""
    store: InstanceOf[OpensObjectStore]
    """The object store."""
    former_stores: tuple[InstanceOf[OpensObjectStore], ...] = ()
    """Where archives of earlier days lie: read from, never written to."""
    packer: Strategy | None = None
    """Own packer `(Path) -> Path | None`, sync or async: gets a directory with real files."""
    compression_level: Annotated[int, Field(ge=1, le=19)] = 3
    """Of zstd: higher is smaller and slower."""
    pack_threads: Count = 2
    """Threads that compress one archive."""
    upload_threads: Count = 4
    """Archives uploaded at once within a run."""
    catalog: bool = True
    """Keep which archive holds the file of which name, for `fuploader find`: 44 bytes for a name
    of 24 characters."""
    runs_by: Literal["sensor", "automation"] = "sensor"
    """Who asks for the runs of new slots: the drain sensor with its tick, or Dagster's automation
    conditions, some seconds later and as backfills."""
    partitions_per_run: Annotated[int, Field(ge=1, le=1000)] = 64
    """A run costs seconds and a slot milliseconds: so many slots share one at most."""
    max_retries: Annotated[int, Field(ge=0)] = 2
    """Attempts after the first, within a run; the recovery schedule goes on after that."""
    retry_delay_seconds: Seconds = 5.0
    """Pause before the first of these attempts; doubles with each."""
    recovery_base_seconds: Seconds = 60.0
    """Pause before a failed slot is asked for again; doubles with each attempt."""
    recovery_cap_seconds: Seconds = 3600.0
    """The longest such pause."""
    retention_days: Seconds = 30.0
    """Verified partitions older than this are folded away; their history stays for
    `run_history_days`."""
    retention_partitions: Count = 20_000
    """So many verified partitions are kept at most, whatever their age."""
    run_history_days: Seconds = 30.0
    """Runs that ended longer ago are removed from Dagster's history, with their events and logs
    (about 160 kB each); not before their partitions are folded away (`retention_days`)."""
    tick_history_days: Seconds = 7.0
    """Ticks of this pipeline's sensors and schedules, and their log files, are removed after so
    many days."""
    scrub_cron: str = "23 3 * * *"
    """When stored archives are looked after; UTC."""
    scrub_archives: Annotated[int, Field(ge=0)] = 32
    """So many are picked each time, at random; 0 switches it off."""
    scrub_members: Count = 4
    """So many members of each are read back: at most as many MiB, for members of ordinary size."""
    max_dead_letters_per_hour: Annotated[int, Field(ge=0)] = 100
    """With more of them within an hour the asset check of `dead_letters` warns. A few are mistakes
    of somebody; a hundred mean that a producer or the parser has changed."""
    alert_webhook: Secret | None = None
    """An http(s) address that gets a POST of JSON when the drain stops, the object store does not
    answer, the disk is nearly full, dead letters exceed their mark, slots failed or were damaged;
    once each, and once when it is over. Its old name, `failure_webhook`, still works."""

    @model_validator(mode="before")
    @classmethod
    def _take_old_names(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "failure_webhook" not in values:
            return values
        renamed = {name: one for name, one in values.items() if name != "failure_webhook"}
        renamed["alert_webhook"] = renamed.get("alert_webhook") or values["failure_webhook"]
        _warn_of_old_name()
        return renamed

    @field_validator("alert_webhook")
    @classmethod
    def _is_an_address(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _WEB_ADDRESS.match(value.get_secret_value()):
            raise ValueError("it must be an address that begins with http:// or https://")
        return value

    @model_validator(mode="after")
    def _check_shipping_traps(self) -> Pipeline:
        if self.packer is None and self.archive_suffix not in BUILT_IN_SUFFIXES:
            raise ValueError(
                f"archive_suffix is {self.archive_suffix}, but without a packer of your own "
                f"archives are {' or '.join(BUILT_IN_SUFFIXES)}"
            )
        if self.recovery_base_seconds > self.recovery_cap_seconds:
            raise ValueError(
                f"recovery_base_seconds ({self.recovery_base_seconds:g}) must not be longer than "
                f"recovery_cap_seconds ({self.recovery_cap_seconds:g})"
            )
        return self

    @property
    def failure_webhook(self) -> SecretStr | None:
        """The old name of `alert_webhook`."""
        return self.alert_webhook

    def intake(self) -> Intake:
        """The half that a worker needs."""
        return Intake.model_construct(**{name: getattr(self, name) for name in Intake.model_fields})


@cache
def _warn_of_old_name() -> None:
    """Once a process, however many pipelines there are."""
    warnings.warn(
        "failure_webhook is now alert_webhook, and gets more than failed runs; the old name goes "
        "with the next major version",
        DeprecationWarning,
        stacklevel=2,
    )
