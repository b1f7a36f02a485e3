"""The labs that are there, of whatever kind, also those that somebody else made or left half made."""

from __future__ import annotations

import shutil

import msgspec

from trogdor_bus.errors import NotFoundError
from trogdor_bus.lab import kafka_lab
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.kafka_lab import KafkaLab
from trogdor_bus.lab.site import ROOT, LabState


def existing(name: str) -> Lab | KafkaLab:
    """Return the lab of that name as it was written down; NotFoundError if there is none."""
    try:
        state = msgspec.json.decode((ROOT / f"lab-{name}" / "lab.json").read_bytes(), type=LabState)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"there is no lab {name}; `trogdor-bus lab up --name {name}` makes it") from None
    return kafka_lab.again(state) if state.kafka else Lab(state.nodes, name).told(state)


def remove(name: str) -> bool:
    """Take a lab down, whole or half made; False if there is none of that name."""
    try:
        existing(name).down()
    except NotFoundError:
        swept = kafka_lab.sweep(name)
        half_made = ROOT / f"lab-{name}"  # it ended between making its directory and writing anything down
        if half_made.is_dir():
            shutil.rmtree(half_made)
            return True
        return swept
    return True
