"""Classes that are found: those in the modules of a folder of ours, and those that other packages bring."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)
MEND = "mend its package, or uninstall it"


class Kinds(Generic[T]):
    """The public subclasses of `base` by their tags, in the modules of the package of that name.

    Other packages name classes, or modules of them, as entry points of `group`. These are loaded once a tag is asked
    for that is none of ours: what cannot be loaded there costs nobody anything else, and `broken` says why.
    """

    def __init__(self, base: type[T], package: str, group: str) -> None:
        self._base, self._package, self._group = base, package, group

    def of(self, tag: object) -> type[T] | None:
        """Return the class with that tag; ours, if others claim it."""
        return (self.ours.get(tag) or self.others[0].get(tag)) if isinstance(tag, str) else None

    @property
    def broken(self) -> tuple[str, ...]:
        """Return why some of what other packages bring cannot be had, a line each."""
        return self.others[1]

    @functools.cached_property
    def ours(self) -> Mapping[str, type[T]]:
        """The classes of this package, which must have a tag each."""
        package = importlib.import_module(self._package)
        modules = [
            importlib.import_module(f"{self._package}.{info.name}") for info in pkgutil.iter_modules(package.__path__)
        ]
        found: dict[str, type[T]] = {}
        for kind in (kind for module in (package, *modules) for kind in self._in(module)):
            assert found.setdefault(_tag(kind), kind) is kind, f"two claim {_tag(kind)}"
        return found

    @functools.cached_property
    def others(self) -> tuple[Mapping[str, type[T]], tuple[str, ...]]:
        """The classes of other packages, the first one of each tag, and why the rest cannot be had."""
        from importlib.metadata import entry_points  # late: a healer must start fast

        found: dict[str, type[T]] = {}
        broken: list[str] = []
        for entry in entry_points(group=self._group):
            try:
                for kind in self._named(entry.load()):
                    msgspec.json.Decoder(kind)  # what cannot be decoded is told now, and not of each frame
                    if self.ours.get(_tag(kind)) or found.setdefault(_tag(kind), kind) is not kind:
                        broken.append(f"{entry.value} claims {_tag(kind)!r}, which is another's; rename it")
            except (Exception, SystemExit) as error:
                broken.append(f"the entry point {entry.name} = {entry.value} cannot be loaded: {error!r}; {MEND}")
        return found, tuple(broken)

    def _named(self, found: object) -> Iterable[type[T]]:
        if isinstance(found, ModuleType):
            return self._in(found)
        if isinstance(found, type) and issubclass(found, self._base):
            return (found,)
        raise TypeError(f"it is neither a {self._base.__name__} nor a module of them")

    def _in(self, module: ModuleType) -> Iterator[type[T]]:
        for _, value in sorted(vars(module).items()):
            theirs = isinstance(value, type) and issubclass(value, self._base) and value.__module__ == module.__name__
            if theirs and value is not self._base and not value.__name__.startswith("_"):
                yield value


def _tag(kind: type[msgspec.Struct]) -> str:
    return str(kind.__struct_config__.tag)
