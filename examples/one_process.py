"""A whole pipeline in one process, without Dagster: publish, drain, pack, store.

    python examples/one_process.py [FOLDER]

To use your own queue and bucket, replace the three by RabbitMQ(...), RedisState(...) and S3(...),
COS(...) or OSS(...). Without `until_empty` it runs until Ctrl-C.
"""

import json
import sys
from pathlib import Path

from fuploader_dagster import (
    EmbeddedQueue,
    FileMessage,
    Local,
    Pipeline,
    SqliteState,
    encode_file_message,
    run_pipeline,
)


def main(folder: Path) -> None:
    pipeline = Pipeline(
        name="example",
        storage_root=folder / "data",
        source=EmbeddedQueue(path=folder / "queue"),
        state=SqliteState(path=folder / "state.sqlite"),
        store=Local(path=str(folder / "archives")),
    )
    publisher = pipeline.source.publisher()
    messages = (
        encode_file_message(FileMessage(file_name=f"{number}.json", payload={"number": number}))
        for number in range(1000)
    )
    publisher.publish((json.dumps(message).encode(), {}) for message in messages)
    publisher.close()

    shipped = run_pipeline(pipeline, until_empty=True)
    print(f"{shipped.messages} messages in {shipped.archives} archives below {folder / 'archives'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example"))
