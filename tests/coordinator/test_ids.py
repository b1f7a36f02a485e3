"""Ids of tasks: new ones can be seen and typed, old ones go on."""

from __future__ import annotations

import msgspec
import pytest

from tests.coordinator.driver import Cluster
from trogdor_bus.coordinator.changes import AppendEvent, PutTask
from trogdor_bus.coordinator.events import CreateRequested, DestroyRequested
from trogdor_bus.errors import SpecError
from trogdor_bus.messages import TaskChanged
from trogdor_bus.registry import registry
from trogdor_bus.states import TaskRow


@pytest.mark.parametrize("task", ["a\u202eb", " ", "-x"])
def test_an_id_that_cannot_be_seen_or_typed_is_refused_but_an_old_one_goes_on(task: str) -> None:
    cluster = Cluster()
    with pytest.raises(SpecError) as caught:
        cluster.create(task)
    assert caught.value.path == "$.id" and caught.value.remedy
    spec = msgspec.Raw(b'{"class":"noop"}')
    old = TaskRow(id=task, original=spec, spec=spec)  # as 0.1 left it
    told = AppendEvent(TaskChanged(seq=cluster.machine.view.seq + 1, at_ms=cluster.now, task=old))
    cluster.store.commit([PutTask(old), told], durable=True)
    cluster.start()
    cluster.lead()
    cluster.give(CreateRequested(task, registry().decode({"class": "noop"}), bytes(spec)))  # the same again is no error
    cluster.give(DestroyRequested(task))
    assert task not in cluster.machine.view.tasks
