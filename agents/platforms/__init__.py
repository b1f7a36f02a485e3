"""Platforms by name: `basic` is Linux; others come by the entry point group "trogdor_bus.platforms"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from trogdor_bus.errors import SpecError
from trogdor_bus.platform import Platform

ENTRY_POINT_GROUP = "trogdor_bus.platforms"
LINUX_NAMES = ("basic", "linux", "org.apache.kafka.trogdor.basic.BasicPlatform")


class LinuxSettings(msgspec.Struct, frozen=True, rename="camel"):
    """What the Linux platform takes from the agent's settings."""

    attach: str = ""
    allow_commands: tuple[tuple[str, ...], ...] = ()


def open_platform(name: str, settings: Mapping[str, Any]) -> Platform:
    """Return the platform of that name, made from the agent's settings; SpecError if there is none."""
    if name in LINUX_NAMES:
        from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform

        try:
            linux = msgspec.convert(dict(settings), LinuxSettings)
        except msgspec.ValidationError as error:
            text, _, path = str(error).partition(" - at `")
            raise SpecError(text, path=path.rstrip("`") or "$", remedy="correct the agent's configuration") from None
        return LinuxPlatform(linux.attach, linux.allow_commands)
    from importlib.metadata import entry_points  # late: a healer must start fast

    installed = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in installed:
        known = ", ".join([*LINUX_NAMES[:2], *sorted(installed)])
        raise SpecError(
            f"unknown platform {name!r}",
            path="$.platform",
            remedy=f"the platforms are {known}; others come with packages that offer {ENTRY_POINT_GROUP}",
        )
    platform: Platform = installed[name].load()(settings)
    return platform
