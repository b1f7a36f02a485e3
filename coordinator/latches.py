"""Aborts: which nodes must keep a latch, and which latches may be dropped. Pure; kept among the counters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from trogdor_bus.coordinator.changes import Meta
from trogdor_bus.errors import RefusedError

EVERYWHERE = ""
"""The name under which an abort of all nodes is kept."""
KEEP_RESUMED = 1_000
"""So many ids are remembered as resumed; an agent that slept for longer is resumed once more by hand."""


def nodes(meta: Meta) -> set[str]:
    """Return the nodes that are aborted each by itself."""
    return meta.latches.keys() - {EVERYWHERE}


def ordered(meta: Meta, node: str) -> str:
    """Return the id of the latch that a node must keep, "" for none."""
    return meta.latches.get(EVERYWHERE) or meta.latches.get(node, "")


def closed(meta: Meta, node: str, held: str) -> bool:
    """Return whether nothing may start on a node whose agent says that it keeps the latch `held`."""
    return bool(ordered(meta, node)) or (bool(held) and held not in meta.resumed)


def check(meta: Meta, held: Mapping[str, str]) -> None:
    """Raise RefusedError if nothing may start on one of the nodes; `held` are the latches that their agents keep."""
    shut = [name for name, latch in held.items() if closed(meta, name, latch)]
    if shut:
        raise RefusedError(f"aborted: nothing may start on {', '.join(shut)} until `‹resume›`")


def check_everywhere(meta: Meta) -> None:
    """Raise RefusedError if all nodes are aborted."""
    if EVERYWHERE in meta.latches:
        raise RefusedError("aborted: nothing may start anywhere until `‹resume›`")


def resumable(meta: Meta, node: str, held: str) -> str:
    """Return the id of the latch that a node may drop, "" for none."""
    return held if held and held in meta.resumed and not ordered(meta, node) else ""


def abort(meta: Meta, latch: str, node: str) -> Meta:
    """Return the counters with a latch on one node, or on all (""); one that is there already stays."""
    if ordered(meta, node) and (node != EVERYWHERE or EVERYWHERE in meta.latches):
        return meta
    return msgspec.structs.replace(meta, latches={**meta.latches, node: latch})


def drop(meta: Meta, node: str) -> Meta:
    """Return the counters without the latch of a node that is gone; an agent that keeps it keeps it until a resume."""
    return msgspec.structs.replace(meta, latches={name: one for name, one in meta.latches.items() if name != node})


def check_resume(meta: Meta, node: str) -> None:
    """Raise RefusedError for one node while all are aborted."""
    if node != EVERYWHERE and EVERYWHERE in meta.latches:
        raise RefusedError(f"every node is aborted, not {node} alone: resume without ‹node›")


def resume(meta: Meta, node: str, held: Iterable[str]) -> Meta:
    """Return the counters without the latch of one node, or without any ("").

    `held` are the ids that agents were heard to keep.
    """
    kept = {} if node == EVERYWHERE else drop(meta, node).latches
    gone = [latch for name, latch in meta.latches.items() if name not in kept]
    resumed = dict.fromkeys([*meta.resumed, *gone, *filter(None, held)])
    return msgspec.structs.replace(meta, latches=kept, resumed=tuple(resumed)[-KEEP_RESUMED:])
