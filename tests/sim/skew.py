"""Peers of another version: what a newer one writes that nobody here knows, and the number of an older one."""

from __future__ import annotations

from random import Random
from typing import Any, Literal

import msgspec

Speech = Literal["ours", "newer", "older"]
NEWS = {"deep": [{"and": "wide"}]}


def newer_beat(frame: bytes, random: Random) -> tuple[bytes, set[int]]:
    """Return a beat as a newer agent says it, and the workers of whose reports a part is not known."""
    beat, strange = msgspec.json.decode(frame), set[int]()
    beat["news"] = NEWS
    for report in beat.get("reports", ()):
        report["news"] = NEWS
        if random.random() < 0.5:
            strange.add(report["worker"])
            over = report["state"] in ("DONE", "STUCK")
            report.update({"outcome": "weird"} if over else random.choice(({"state": "PAUSED"}, {"disturbed": 7})))
    if random.random() < 0.1:
        beat.setdefault("reports", []).append({"cable": "green"})
    return msgspec.json.encode(beat), strange


def newer_snapshot(frame: bytes, random: Random) -> bytes:
    """Return a word as a newer coordinator says it: some orders, or parts of them, are not known."""
    word = msgspec.json.decode(frame)
    word["news"] = word["stamp"]["news"] = NEWS
    for order in word.get("orders", ()):
        order["news"] = NEWS
        if random.random() < 0.5:
            _skew(order, random)
    if random.random() < 0.1:
        word.setdefault("orders", []).insert(0, {"cable": "green"})
    return msgspec.json.encode(word)


def _skew(order: dict[str, Any], random: Random) -> None:
    actions = order.get("actions")
    if actions:
        random.choice(actions).update(random.choice(({"action": "cut-cable"}, {"cable": "green"})))
    else:
        order["drift"] = {"cable": "green"}


def older(frame: bytes) -> bytes:
    """Return a frame as a peer of version 1 says it, as far as a number can tell."""
    return msgspec.json.encode({**msgspec.json.decode(frame), "v": 1})
