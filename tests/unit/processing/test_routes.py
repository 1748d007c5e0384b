"""Which function processes an item."""

from __future__ import annotations

import functools
import io
import types
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from fuploader_dagster import Item, from_buffer, processor
from fuploader_dagster.errors import BadItem, ConfigError
from fuploader_dagster.processing.routes import Routes


def module_of(**functions: Callable[..., Any]) -> types.ModuleType:
    module = types.ModuleType(f"app_{uuid.uuid4().hex}")
    vars(module).update(functions)
    return module


def item(value: str | None = None, header: str = "cmd", name: str = "n") -> Item:
    return Item(name, b"content", {} if value is None else {header: value})


def found(module: types.ModuleType, one: Item, route_by: str = "cmd") -> tuple[object, object]:
    route, groups = Routes(module).find(one, route_by)
    return route.function, groups


def test_the_first_route_that_matches_the_whole_value_wins_then_the_default() -> None:
    @processor(route=r"thumb/(?P<width>\d+)")
    def thumb(item: Item, width: str) -> bytes: ...

    @processor
    def default(item: Item) -> bytes: ...

    @processor(route=r"thumb/.*")
    def other(item: Item) -> bytes: ...

    module = module_of(other=other, thumb=thumb, default=default)
    assert found(module, item("thumb/64")) == (thumb, {"width": "64"})
    assert found(module, item("thumb/64x")) == (other, {})
    assert found(module, item("a thumb/64")) == (default, {})
    assert found(module, item("")) == (default, {})
    assert found(module, item(None)) == (default, {})


def test_a_group_that_took_no_part_is_left_to_the_functions_default() -> None:
    @processor(route=r"hello(?:/(?P<name>\w+))?")
    def hello(item: Item, name: str = "world") -> str: ...

    assert found(module_of(f=hello), item("hello")) == (hello, {})
    assert found(module_of(f=hello), item("hello/qq")) == (hello, {"name": "qq"})


@pytest.mark.parametrize("header", ["cmd", "CMD", "Cmd"])
def test_a_header_is_found_whatever_its_letter_case(header: str) -> None:
    @processor(route="a")
    def f(item: Item) -> bytes: ...

    assert found(module_of(f=f), item("a", header)) == (f, {})


def test_another_header_or_the_name_can_decide() -> None:
    @processor(route=r".+\.png")
    def f(item: Item) -> bytes: ...

    assert found(module_of(f=f), item(name="a.png"), "name") == (f, {})
    assert found(module_of(f=f), item("a.png", "x_file"), "X-File") == (f, {})


def test_without_a_route_or_a_default_the_reason_names_the_value_and_the_routes() -> None:
    @processor(route=r"a/(?P<n>\d)")
    def f(item: Item, n: str) -> bytes: ...

    @processor(route="b")
    def g(item: Item) -> bytes: ...

    module = module_of(f=f, g=g)
    with pytest.raises(BadItem, match=r"matches the header cmd 'x'; its routes: a/.*\\d.*, b"):
        found(module, item("x"))
    with pytest.raises(BadItem, match=r"has no header cmd, and app_.*its routes: a/.*headers"):
        found(module, item(None))
    with pytest.raises(BadItem) as caught:
        found(module, item("\n" * 10_000))
    assert len(str(caught.value)) < 2_000
    assert "\n" not in str(caught.value)


def test_one_function_can_have_several_routes_and_any_object_that_can_be_called_one() -> None:
    class Resize:
        async def __call__(self, item: Item) -> bytes: ...

    def f(item: Item, width: int) -> bytes: ...

    both = processor(route="a")(processor(route="b")(Resize()))
    partial = processor(route="c")(functools.partial(f, width=3))
    module = module_of(both=both, partial=partial)
    assert [found(module, item(value))[0] for value in "abc"] == [both, both, partial]
    assert [route.is_async for route in Routes(module)] == [True, True, False]


def test_a_module_can_take_over_the_processors_of_another_one() -> None:
    @processor(route="a")
    def f(item: Item) -> bytes: ...

    assert found(module_of(f=f), item("a")) == found(module_of(borrowed=f), item("a"))


def test_a_module_without_a_processor_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no processor"):
        Routes(module_of(f=len))


def test_two_defaults_are_refused() -> None:
    f, g = (processor(lambda item: b"") for _ in range(2))
    with pytest.raises(ConfigError, match="2 default processors"):
        Routes(module_of(f=f, g=g))


def test_a_processor_that_another_one_replaced_is_refused() -> None:
    def one(item: Item) -> bytes: ...
    def two(item: Item) -> bytes: ...

    module = module_of()
    one.__module__ = two.__module__ = module.__name__
    vars(module)["f"] = processor(route="a")(one)
    Routes(module)
    vars(module)["f"] = processor(route="b")(two)
    with pytest.raises(ConfigError, match=r"does not hold the processor app_.*one under a name"):
        Routes(module)


@pytest.mark.parametrize("route", ["(", "(?P<n>", 3, b"a"])
def test_a_route_that_is_no_pattern_is_refused_at_the_decorator(route: Any) -> None:
    with pytest.raises(ConfigError, match=r"route of .* is (not a regular expression|a \w+, not)"):
        processor(route=route)(lambda item: b"")


@pytest.mark.parametrize(
    "function",
    [lambda: b"", lambda item: b"", lambda item, height: b"", lambda item, width, x: b"", 3],
)
def test_a_function_that_cannot_take_the_groups_is_refused_at_the_decorator(function: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot be called as \(item, width\)|decorates a func"):
        processor(route=r"(?P<width>\d+)")(function)


def test_functions_of_a_buffer_are_adapted_in_one_line() -> None:
    def old(buffer: io.BytesIO, args: dict[str, str], content_type: str) -> str:
        return f"{buffer.read().decode()} {args.get('name', 'world')} {content_type}"

    async def old_async(buffer: io.BytesIO, args: dict[str, str], content_type: str) -> str:
        return old(buffer, args, content_type)

    f = processor(route=r"hello(?:/(?P<name>\w+))?")(from_buffer(old))
    g = processor(route="async")(from_buffer(old_async))
    module = module_of(f=f, g=g)
    sync, async_ = Routes(module)
    assert (sync.is_async, async_.is_async) == (False, True)
    assert sync.name.endswith("old")
    one = Item("n", b"hello", {"content_type": "text/x", "cmd": "hello/qq"})
    route, groups = Routes(module).find(one, "cmd")
    assert route.function(one, **groups) == "hello qq text/x"
    assert sync.function(Item("n", b"hello")) == "hello world "
