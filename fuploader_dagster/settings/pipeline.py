"""Settings of a pipeline: one validated model, from Python, YAML and the environment.

`Intake` is the half that a drain worker needs (queue to sealed slot), `Pipeline` adds the other
half (sealed slot to stored object). A worker gets its `Intake` as JSON through its stdin, so it
never loads Dagster, a store's client library, or a file that has changed in the meantime.

Unknown names, impossible values, and values that do not go together fail at load.
"""

from __future__ import annotations

import inspect
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    SecretStr,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from fuploader_dagster.contracts.functions import Strategy
from fuploader_dagster.contracts.object_store import OpensObjectStore
from fuploader_dagster.contracts.processor import ProcessorSettings
from fuploader_dagster.contracts.settings import Count, Seconds, Settings
from fuploader_dagster.contracts.source import SourceSettings
from fuploader_dagster.contracts.state import StateSettings
from fuploader_dagster.disk.layout import NO_NODE, Layout
from fuploader_dagster.disk.names_in_utf8 import require_utf8_names
from fuploader_dagster.settings.archive_formats import (
    ArchiveFormat,
    ColumnType,
    check_format,
    named_for_format,
    why_unreadable,
)
from fuploader_dagster.settings.batches import DEFAULT_PREFETCH, fitted_to_prefetch
from fuploader_dagster.settings.names import comma_separated, each_header_once
from fuploader_dagster.settings.notify import Notify, check_notify
from fuploader_dagster.settings.secret import Secret, place_of_unset
from fuploader_dagster.settings.serve import MaybeServe
from fuploader_dagster.settings.sinks import Sinks, check_sinks
from fuploader_dagster.settings.split import SplitBy, check_split
from fuploader_dagster.settings.takeover import Takeover
from fuploader_dagster.settings.user_functions import KeyStrategy, zone_name

MIB = 1024 * 1024
DEFAULT_KEY = "{pipeline}/{sealed_at:%Y%m%d}/{archive}"

FIELDS_OF_ENVELOPE = {"payload", "compression", "content_type"}
SHORTEST_FRESH_HOURS = 0.05
"""Dagster looks twice a minute, and takes no window below a minute."""
LONGEST_FRESH_HOURS = 8_784.0
"""A year. Dagster's UI cannot count the seconds of 68."""
LONGEST_FLUSH_SECONDS = 10.0
"""Between two batches a worker renews its claims (they last 30 s) and reports what it is doing."""

_OWNER = re.compile(r"team:.+|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}")
_TAG = re.compile(r"([A-Za-z0-9_.-]{1,63}/)?[A-Za-z0-9_.-]{1,63}")
_TAG_VALUE = re.compile(r"[A-Za-z0-9_.-]{0,63}")
_WEB_ADDRESS = re.compile(r"https?://[^/?#\s]+[^\s]*\Z")


class Intake(Settings):
    """Everything between the queue and a sealed slot."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    """Name of the pipeline, used for folders, asset keys, partition sets and sensors: lower-case
    letters, digits and underscores."""
    node_id: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = None
    """Name of this machine, where several machines share a queue. Part of partition keys and asset
    keys; asset keys spell `node-1` as `node_1_xd`."""
    storage_root: Annotated[Path, AfterValidator(Path.expanduser), Field(validate_default=True)] = (
        Path("data")
    )
    """Local folder for slots and archives. The disk must honour fsync."""
    source: SerializeAsAny[InstanceOf[SourceSettings]]
    """The queue that messages come from."""
    state: SerializeAsAny[InstanceOf[StateSettings]]
    """The store in which workers and sensor keep counts, claims and the list of sealed slots."""

    message_format: Literal["envelope", "json", "raw"] = "envelope"
    """`envelope`: FUploader's format. `json`: the body is the file, and one of its fields names it.
    `raw`: the body is the file, named by the message id or by the body's own digest."""
    name_fields: Annotated[tuple[str, ...], BeforeValidator(comma_separated)] = (
        "file_name",
        "file_id",
        "aweme_id",
    )
    """Fields that may name the file: the first non-empty one wins. If a message has none of them,
    or this list is empty, the name is made from the body."""
    headers: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        Field(max_length=32),
        BeforeValidator(comma_separated),
        AfterValidator(each_header_once),
    ] = ()
    """Message headers to keep with each file, in the archive too: of AMQP, also the properties by
    their AMQP names (`content_type`, `message_id`). Letter case, `-` and `_` make no difference.
    At most 16 KiB per message: one with more becomes a dead letter."""
    max_unpacked_bytes: Count = 64 * MIB
    """A message that unpacks to more than this becomes a dead letter."""
    parser: Strategy | None = None
    """Your own message parser, sync or async: takes the body; returns bytes, text, an envelope, or
    anything that JSON can write."""
    file_name: Strategy | None = None
    """Your own file name generator: takes what the parser returned, returns the name."""
    parser_timeout_seconds: Seconds = 300.0
    """Longest time that a parser or name generator may take for one message. One that takes longer
    is considered hung, and its worker is ended."""
    max_deliveries: Annotated[int, Field(ge=3)] = 4
    """Number of deliveries after which a message that keeps killing its worker (its parser crashes,
    hangs or eats all memory) becomes a dead letter. At least 3: in its batch, among the redelivered
    messages, and alone to prove it is the cause. One more allows for a worker that was killed for
    another reason."""
    worker_memory_bytes: Annotated[int, Field(ge=128 * MIB)] | None = None
    """Memory limit of a worker (RLIMIT_DATA), so that a parser that eats memory fails instead of
    the machine. The worker itself needs about 100 MiB. Without a limit the kernel chooses which
    process to kill."""
    split_by: SplitBy = Field({})
    """Fields of the messages' JSON that are in `key`: `[tenant]`, or `{tenant: meta.tenant}` for
    one inside another. A slot is divided when it is sealed: one archive for each value (see the
    page on keys)."""
    split_limit: Annotated[int, Field(ge=1, le=1000)] = 50
    """Most values of `split_by` that a slot is divided into. The messages of all others, the rarer
    ones, share one more archive, with `_other` in its key."""
    key: KeyStrategy = DEFAULT_KEY
    """Object key: a template with {pipeline} {node} {slot} {number} {sealed_at:%Y%m%d} {partition}
    {archive} and fields of `split_by`, or a function `(archive name) -> key`. A slot's key is fixed
    when it is sealed."""
    timezone: Annotated[str, BeforeValidator(zone_name)] = "UTC"
    """Time zone of the times in `key`, by its IANA name: `Europe/Berlin`. An hour that comes
    twice, where clocks go back, has the same digits both times; archive names still differ.
    Everything else is UTC: partition keys, archive names, receipts, `replay --since`."""
    archive_format: ArchiveFormat = "tar.zst"
    """What archives are, unless you have a `packer`. `jsonl.zst`: an object of JSON per file, for
    queries. `zip`: opens everywhere. `parquet`: a row per file, its fields as columns (needs the
    extra `parquet`). A slot's archive keeps the format of the moment when the slot
    was sealed."""
    archive_suffix: Annotated[str, Field(pattern=r"^(\.[A-Za-z0-9]{1,10}){1,3}$")] = ".tar.zst"
    """File extension of archives. Where this is not set, that of `archive_format`. A custom packer
    must write files with this extension."""

    slot_format: Literal["segment", "files"] = "segment"
    """`segment`: one append-only tar per directory, fast. `files`: one file per message."""
    process_count: Count = 1
    """Number of worker processes. They drain side by side, and each owns its slots."""
    slots_per_worker: Count = 1
    """Number of slots that a worker fills in turn, batch by batch. More slots give smaller archives
    side by side, at no cost."""
    max_tasks_per_child: Annotated[int, Field(ge=0)] = 0
    """Number of messages after which a worker is replaced. 0: never."""
    drain_by: Literal["sensor", "command"] = "sensor"
    """`sensor`: the sensor runs the workers. `command`: `fuploader drain` runs the workers, and the
    sensor only registers sealed slots."""

    prefetch_count: Annotated[int, Field(ge=2)] = DEFAULT_PREFETCH
    """Maximum number of unacknowledged messages that the queue gives to a worker. Must be larger
    than `commit_messages`."""
    commit_messages: Count = 500
    """Messages per durable commit, and so per acknowledgement. Where this is not set, at most half
    of `prefetch_count`."""
    commit_bytes: Count = 16 * MIB
    """A batch that reaches this size is committed, even with fewer than `commit_messages`."""
    flush_interval_seconds: Seconds = 1.0
    """Longest time that a message from a slow queue waits for its commit."""

    dedup_window_messages: Annotated[int, Field(ge=0)] = 1_000_000
    """Number of recently stored messages that a redelivered message is compared with, so that it is
    not stored twice: those of all workers of this node, uploaded ones included. Choose many times
    what the workers have in hand, because other messages are stored in between. Costs about 100
    bytes of disk per message (with `seal_each: message`, a small file) and, after a redelivery, 8
    bytes of memory per message and worker. Where this is not set with `seal_each: message`, four
    times what the workers have in hand. 0: redelivered messages are compared only with the
    directory that is being written."""

    seal_each: Literal["slot", "message"] = "slot"
    """`message`: each message becomes a slot of its own as soon as its batch is committed, and so
    an archive of its own; for messages that are tasks. `slot`: the limits below decide."""
    seal_messages: Count = 10_000
    """A directory with this many messages is sealed. Checked after each commit, so it can hold up
    to `commit_messages` more. A sealed slot costs Dagster about 40 ms: smaller ones soon cost more
    than their messages."""
    seal_bytes: Count = 128 * MIB
    """A directory with this many payload bytes is sealed, however few its messages."""
    seal_age_seconds: Seconds = 300.0
    """A directory is sealed this long after its first message, however little it holds."""
    residue_file_upload: bool = False
    """Seal what is left when a worker is told to stop. `fuploader drain` then packs and uploads it
    before it exits; under Dagster that happens at the next start, or with `fuploader ship`."""

    min_free_bytes: Annotated[int, Field(ge=0)] = 512 * MIB
    """With less free disk space than this, the drain pauses and messages stay in the queue. The
    reserve is for the archives of slots that are being shipped: by default, four uploads of 128
    MiB."""
    min_free_inodes: Annotated[int, Field(ge=0)] = 10_000
    """With fewer free inodes than this, the drain pauses too. A slot that is being shipped needs
    about ten, but a custom packer gets one file per message."""
    max_unshipped_bytes: Annotated[int, Field(ge=0)] = 0
    """With more than this in sealed slots and archives that the object store has not confirmed, the
    drain pauses too. For a disk that is shared, or where a person should look before an object
    store that is down has filled it. 0: no limit but the disk."""
    lease_seconds: Seconds = 8.5
    """Workers stop by themselves when no sensor tick came for this long. Ticks come every 5 s."""

    @property
    def divides(self) -> bool:
        """Whether a directory may become several sealed slots."""
        return bool(self.split_by) or self.seal_each == "message"

    @property
    def layout(self) -> Layout:
        return Layout(self.storage_root.absolute() / self.name)

    @property
    def node(self) -> str:
        return self.node_id or NO_NODE

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    def slots_of(self, worker: int) -> range:
        """Slot numbers that a worker owns."""
        return range(worker * self.slots_per_worker, (worker + 1) * self.slots_per_worker)

    @model_validator(mode="before")
    @classmethod
    def _fit_to_prefetch(cls, values: Any) -> Any:
        return fitted_to_prefetch(values)

    @model_validator(mode="before")
    @classmethod
    def _name_archives_for_their_format(cls, values: Any) -> Any:
        return named_for_format(values)

    @model_validator(mode="after")
    def _check_traps(self) -> Intake:
        require_utf8_names()
        check_split(self)
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
                f"process_count times prefetch_count ({in_hand}), the number of messages that can "
                f"be redelivered at once"
            )
        if self.lease_seconds > 60 or self.lease_seconds < 6:
            raise ValueError(
                f"lease_seconds ({self.lease_seconds:g}) must be between 6 and 60: sensor ticks "
                f"come every 5 s, and the drain stops this long after the sensor is switched off"
            )
        if self.flush_interval_seconds > LONGEST_FLUSH_SECONDS:
            raise ValueError(
                f"flush_interval_seconds ({self.flush_interval_seconds:g}) must be at most "
                f"{LONGEST_FLUSH_SECONDS:g}: a worker renews its claims only between two batches"
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
                f"name_fields cannot contain {', '.join(sorted(taken))}: in an envelope it means "
                f"something else"
            )
        return self


class Pipeline(Intake):
    """The whole way from one queue to one object store."""

    takeover: Takeover = Takeover()
    """Where FUploader kept its data, for `fuploader migrate` (see the guide)."""
    store: InstanceOf[OpensObjectStore]
    """The object store that archives go to."""
    former_stores: tuple[InstanceOf[OpensObjectStore], ...] = ()
    """Object stores that hold older archives: they are read from, never written to."""
    process: SerializeAsAny[InstanceOf[ProcessorSettings]] | None = None
    """Work on the files of sealed slots, before they are packed: functions of your own, or a
    handler behind HTTP (see the page on processing)."""
    sinks: Sinks = Field({})
    """Where rows that are made of the files go, each sink by a name of yours: tables, for example
    (see the page on sinks)."""
    notify: Notify = ()
    """Who is told of a task's start, of each result, and of its end: one, or a list of several.
    Needs `seal_each: message` (see the page on notices)."""
    serve: MaybeServe = None
    """`true`, or settings of its own: `fuploader serve` takes messages for it over HTTP, and says
    where they are (see the page on serving)."""
    packer: Strategy | None = None
    """Your own packer `(Path) -> Path | None`, sync or async: takes a directory with real files,
    returns the archive it wrote."""
    parquet_columns: dict[str, ColumnType] = Field(default_factory=dict)
    """Fields of your JSON that are columns of `archive_format: parquet`, each with its type:
    `bool`, `int64`, `double` or `string`. What does not fit is NULL. Without any, each archive has
    the columns that its files have."""
    parquet_content: bool = True
    """If false, a Parquet archive has only the columns, for queries: half the size, but the files
    are gone. No `cat`, `restore`, `replay`, re-packing or processing again."""
    compression_level: Annotated[int, Field(ge=1, le=19)] = 3
    """Compression level of zstd: a higher one is slower and gives smaller archives."""
    pack_threads: Count = 2
    """Threads that compress one archive."""
    upload_threads: Count = 4
    """Number of archives that a run uploads at once."""
    catalog: bool = True
    """Keep a catalog of which archive holds which file, for `fuploader find`. How large it is:
    docs/archives.md."""
    runs_by: Literal["sensor", "automation"] = "sensor"
    """Who requests the runs for new slots. `sensor`: the drain sensor, at its tick. `automation`:
    Dagster's automation conditions, some seconds later and as backfills."""
    partitions_per_run: Annotated[int, Field(ge=1, le=1000)] = 64
    """Maximum number of slots in one run. A run costs seconds, a slot milliseconds."""
    max_retries: Annotated[int, Field(ge=0)] = 2
    """Attempts after the first, within a run. After these, the recovery schedule takes over."""
    retry_delay_seconds: Seconds = 5.0
    """Pause before the first retry. Doubles with each retry."""
    recovery_base_seconds: Seconds = 60.0
    """Pause before the recovery schedule requests a failed slot again. Doubles with each
    attempt."""
    recovery_cap_seconds: Seconds = 3600.0
    """The longest such pause."""
    retention_days: Seconds = 30.0
    """Verified partitions older than this are removed from Dagster's partition set. Their history
    stays for `run_history_days`."""
    retention_partitions: Count = 20_000
    """Maximum number of verified partitions to keep, regardless of age."""
    run_history_days: Seconds = 30.0
    """Runs that ended longer ago than this are removed from Dagster's history with their events and
    logs (about 160 kB each), but not before their partitions are removed (`retention_days`)."""
    tick_history_days: Seconds = 7.0
    """Ticks of this pipeline's sensors and schedules, and their log files, are removed after this
    many days."""
    scrub_cron: str = "23 3 * * *"
    """When stored archives are checked, as a cron expression in UTC."""
    scrub_archives: Annotated[int, Field(ge=0)] = 32
    """Number of archives that are checked each time, picked at random. 0: none."""
    scrub_members: Count = 4
    """Number of members of each of them that are read back. Members of ordinary size take at most 1
    MiB each."""
    late_after_seconds: Seconds = 900.0
    """With messages that are not in the object store this long after their slot should have been
    sealed (`seal_age_seconds`), or a queue that grows and needs longer than this to be drained, the
    asset check `keeping_up` fails. Processing that takes long needs more."""
    archives_within_hours: (
        Annotated[float, Field(ge=SHORTEST_FRESH_HOURS, le=LONGEST_FRESH_HOURS)] | None
    ) = None
    """An archive should be stored at least this often. Dagster's freshness of `uploaded_archive`
    warns when nine tenths of it are over without one, and fails when all of it is. For a queue that
    always gets messages: one that may be quiet makes no archives, and nothing is wrong then."""
    max_dead_letters_per_hour: Annotated[int, Field(ge=0)] = 100
    """With more dead letters than this within an hour, the asset check of `dead_letters` warns. A
    few are somebody's mistakes; a hundred mean that a producer or the parser has changed."""
    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Serve metrics for Prometheus at this port, from the process that runs the drain workers: the
    code server, or `fuploader drain`. Pipelines of one process may share a port."""
    metrics_host: str = "127.0.0.1"
    """Address that `metrics_port` listens on. Everybody who reaches it sees the metrics: names of
    pipelines and figures, no messages. In a container, or for a Prometheus on another machine, this
    is `0.0.0.0`."""
    owners: Annotated[tuple[str, ...], BeforeValidator(comma_separated)] = ()
    """Who answers for the pipeline, as Dagster shows it at its assets: e-mail addresses, or
    `team:NAME`."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Tags of its assets in Dagster, to search and select by: `{domain: documents}`."""
    alert_webhook: Secret | None = None
    """An http(s) address that gets a POST of JSON when the drain stops, the object store does not
    answer, the disk is nearly full, there are too many dead letters, or slots failed or were
    damaged: once for each, and once when it is over. The old name `failure_webhook` still works."""

    @model_validator(mode="before")
    @classmethod
    def _take_old_names(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "failure_webhook" not in values:
            return values
        renamed = {name: one for name, one in values.items() if name != "failure_webhook"}
        renamed["alert_webhook"] = renamed.get("alert_webhook") or values["failure_webhook"]
        _warn_of_old_name()
        return renamed

    @field_validator("owners")
    @classmethod
    def _can_be_owners(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for one in values:
            if not _OWNER.fullmatch(one):
                raise ValueError(f"{one!r} is neither an e-mail address nor team:NAME")
        return values

    @field_validator("tags")
    @classmethod
    def _can_be_tags(cls, values: dict[str, str]) -> dict[str, str]:
        for key, value in values.items():
            if not (_TAG.fullmatch(key) and _TAG_VALUE.fullmatch(value)):
                raise ValueError(
                    f"{key!r}: {value!r} is no tag: Dagster takes at most 63 letters, digits, '_', "
                    f"'-' and '.', in the key also a prefix and '/'"
                )
        return values

    @field_validator("alert_webhook")
    @classmethod
    def _is_an_address(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or place_of_unset(value):
            return value
        if not _WEB_ADDRESS.match(value.get_secret_value()):
            raise ValueError("it must be an address that begins with http:// or https://")
        return value

    @model_validator(mode="after")
    def _check_shipping_traps(self) -> Pipeline:
        check_format(self)
        check_notify(self)
        check_sinks(self.sinks, self.process, unreadable=why_unreadable(self))
        if self.recovery_base_seconds > self.recovery_cap_seconds:
            raise ValueError(
                f"recovery_base_seconds ({self.recovery_base_seconds:g}) must not be more than "
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
    """Once per process, however many pipelines there are."""
    warnings.warn(
        "failure_webhook is now alert_webhook, and receives more than failed runs; the next major "
        "version removes the old name",
        DeprecationWarning,
        stacklevel=2,
    )
