"""Which function processes an item: `@processor(route=...)` and the table of a module's routes.

    @processor(route=r"thumb/(?P<width>\\d+)")
    def thumb(item: Item, width: str) -> Result: ...

    @processor
    def anything_else(item: Item) -> bytes: ...

What must always hold: the first route, in the order of the decorators, whose whole pattern matches
wins; then the default; without one the item is bad, and the reason names the value and the routes.
Named groups become keyword arguments; a group that took no part in the match is left out, so that
the function's own default holds.

What cannot work is refused when the module is imported, not item by item: a pattern that is none,
a function that does not take the groups, a second default, and a decorated function that the module
does not hold under a name (another one replaced it, or a decorator above `@processor` did).
"""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast, overload

from fuploader_dagster.contracts.functions import name_of
from fuploader_dagster.contracts.processor import Item
from fuploader_dagster.disk.header_text import folded
from fuploader_dagster.errors import BadItem, ConfigError

BY_NAME = "name"
"""The value of the setting `route_by` that matches routes against the item's name."""
_SHOWN = 200

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Route:
    """A function, and the values that it is for."""

    pattern: re.Pattern[str] | None
    """`None`: the default."""
    function: Callable[..., Any]
    name: str
    is_async: bool


_decorated: list[Route] = []
"""All of this process, in the order of their decorators."""


@overload
def processor(function: Function, /) -> Function: ...
@overload
def processor(*, route: str | None = None) -> Callable[[Function], Function]: ...
def processor(function: Any = None, /, *, route: str | None = None) -> Any:
    """Make a function process the items whose header matches `route`, or those that no route takes.

    The function, sync or async, gets the `Item` and the route's named groups. It returns a
    `Result`, bytes, text, a JSON value, or a list of these (also as a generator); `[]` is no
    result. What it raises makes the item a dead letter; it may raise `BadItem` and `RetryItem`.
    """

    def decorate(function: Any) -> Any:
        _decorated.append(_route_to(function, route))
        return function

    return decorate if function is None else decorate(function)


def from_buffer(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adapt a function `(buffer, args, content_type)`, as qiniu-ufop calls them.

    The buffer is a `BytesIO` of the content, the arguments are the route's groups, and the content
    type is that of the header `content-type`, or empty.

        thumb = processor(route=r"thumb/(?P<width>\\d+)")(from_buffer(old_module.thumb))
    """

    def call(item: Item, **groups: str) -> Any:
        return function(io.BytesIO(item.content), groups, _content_type_of(item))

    async def call_async(item: Item, **groups: str) -> Any:
        return await call(item, **groups)

    adapted: Any = call_async if _is_async(function) else call
    adapted.__name__ = getattr(function, "__name__", "adapted")
    adapted.__qualname__ = getattr(function, "__qualname__", "adapted")
    adapted.__module__ = getattr(function, "__module__", __name__)
    adapted.__doc__ = function.__doc__
    return cast(Callable[..., Any], adapted)


class Routes:
    """The routes of one module."""

    def __init__(self, module: Any) -> None:
        """Raises `ConfigError` if the module has no processor, or one that nothing would reach."""
        self.module = str(module.__name__)
        held = {id(value) for value in vars(module).values()}
        self._routes = [route for route in _decorated if id(route.function) in held]
        lost = [
            route
            for route in _decorated
            if id(route.function) not in held
            and getattr(route.function, "__module__", "") == self.module
        ]
        if lost:
            raise ConfigError(
                f"the module {self.module} does not hold the processor {lost[0].name} under a name",
                hint="give each function a name of its own at the top level of the module, and put "
                "@processor above other decorators",
            )
        if not self._routes:
            raise ConfigError(
                f"the module {self.module} has no processor",
                hint="put @processor above a function of it",
            )
        defaults = [route for route in self._routes if route.pattern is None]
        if len(defaults) > 1:
            raise ConfigError(
                f"the module {self.module} has {len(defaults)} default processors: "
                f"{', '.join(route.name for route in defaults)}",
                hint="give all but one a route",
            )
        self._default = defaults[0] if defaults else None

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes)

    def find(self, item: Item, route_by: str) -> tuple[Route, dict[str, str]]:
        """The function for an item, and its arguments. Raises `BadItem` if there is none."""
        value = item.name if route_by == BY_NAME else header_of(item.headers, route_by)
        if value is not None:
            for route in self._routes:
                if route.pattern is not None and (match := route.pattern.fullmatch(value)):
                    groups = {k: v for k, v in match.groupdict().items() if v is not None}
                    return route, groups
        if self._default is not None:
            return self._default, {}
        raise self._no_route(value, route_by)

    def _no_route(self, value: str | None, route_by: str) -> BadItem:
        known = ", ".join(route.pattern.pattern for route in self._routes if route.pattern)
        what = "name" if route_by == BY_NAME else f"header {route_by}"
        if value is None:
            return BadItem(
                f"the item has no {what}, and {self.module} has no default processor; its routes: "
                f"{known}",
                hint="the setting `headers` names the message headers that are kept",
            )
        return BadItem(
            f"no route of {self.module} matches the {what} {value[:_SHOWN]!a}; its routes: {known}",
            hint="a route has to match the whole value; @processor without a route takes the rest",
        )


def header_of(headers: Mapping[str, str], name: str) -> str | None:
    """A header, whatever its letter case, with `-` or `_`."""
    if (value := headers.get(name)) is not None:
        return value
    wanted = folded(name)
    return next((value for key, value in headers.items() if folded(key) == wanted), None)


def _content_type_of(item: Item) -> str:
    return header_of(item.headers, "content-type") or ""


def _route_to(function: Any, route: str | None) -> Route:
    if not callable(function):
        raise ConfigError(f"@processor decorates a function, not a {type(function).__name__}")
    name = _name_of(function)
    if not isinstance(route, (str, type(None))):
        raise ConfigError(f"the route of {name} is a {type(route).__name__}, not text")
    try:
        pattern = None if route is None else re.compile(route)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"the route of {name} is not a regular expression: {error}") from error
    _check_signature(function, name, () if pattern is None else tuple(pattern.groupindex))
    return Route(pattern, function, name, _is_async(function))


def _check_signature(function: Any, name: str, groups: Sequence[str]) -> None:
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return  # a built-in function, which does not say
    try:
        signature.bind(object(), **dict.fromkeys(groups, ""))
    except TypeError as error:
        wanted = ", ".join(["item", *groups])
        raise ConfigError(
            f"the processor {name} cannot be called as ({wanted}): {error}",
            hint="a processor takes the item, and the named groups of its route by their names",
        ) from None


def _is_async(function: Any) -> bool:
    for one in (function, getattr(function, "__call__", None)):  # noqa: B004 - an object's own
        if inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one):
            return True
    return False


def _name_of(function: Any) -> str:
    try:
        return name_of(function)
    except AttributeError:  # an object that can be called
        return name_of(type(function))
