"""What is made of a file: this is the file to edit.

The first route whose whole pattern matches the header `cmd` of a message wins; a function without
a route gets what is left. A function that raises costs its file only: it becomes a dead letter.
"""

from __future__ import annotations

from collections import Counter
from io import BytesIO
from typing import Any

from fuploader_dagster import Item, Result, from_buffer, processor


@processor(route=r"words/(?P<most>\d+)")
def words(item: Item, most: str) -> Any:
    """The most frequent words, as JSON."""
    return dict(Counter(item.content.decode().split()).most_common(int(most)))


def shout(buffer: BytesIO, args: dict[str, str], content_type: str) -> bytes:
    """A function with the signature of ufop: the next line makes it one of ours."""
    return buffer.read().upper()


shouted = processor(route="shout")(from_buffer(shout))


@processor
def anything_else(item: Item) -> Result:
    return Result(item.content[::-1], content_type="application/octet-stream")
