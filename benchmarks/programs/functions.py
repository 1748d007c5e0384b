"""The functions of `work` as processors; the item's name says which one."""

from __future__ import annotations

from benchmarks.programs import work
from fuploader_dagster import Item, processor


@processor(route="steady-.*")
def steady(item: Item) -> bytes:
    return work.steady(item.content)


@processor(route="short-.*")
def short(item: Item) -> bytes:
    return work.short(item.content)
