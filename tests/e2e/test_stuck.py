"""An undo that fails for real: somebody's rule keeps our chain busy. It is loud everywhere until it is mended."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.steps import await_active, await_done, new_id, partition, submit
from tests.support import wait_until
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.namespaces import COORDINATOR

pytestmark = pytest.mark.e2e


@contextmanager
def kept_busy(lab: Lab, node: str) -> Iterator[str]:
    """Have somebody's chain lead to ours, so that ours cannot be removed; yield the name of ours."""
    found = re.search(r"-j (TB-[0-9a-f]{16})", lab.run(node, "iptables", "-S", "INPUT").stdout)
    assert found
    theirs = ["FOREIGN", "-p", "udp", "--dport", "9", "-j", found[1]]
    assert lab.run(node, "iptables", "-A", *theirs).returncode == 0
    try:
        yield found[1]
    finally:
        lab.run(node, "iptables", "-D", *theirs)


def node_row(lab: Lab, node: str) -> Any:
    return next(row for row in lab.ask("nodes")["nodes"] if row["name"] == node)


def await_clean(lab: Lab, node: str) -> None:
    wait_until(lambda: node_row(lab, node)["alive"] and not node_row(lab, node)["dirty"], 25, f"{node} to be clean")


def on_node(lab: Lab, node: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Submit a fault that touches nothing else there, and wait for its end."""
    spec = {"class": "port-block", "durationMs": 200, "nodes": [node], "ports": [9]}
    return lab.trogdor("submit", "-", "--wait", *options, given=json.dumps(spec))


def all_but_one(lab: Lab) -> str:
    """Return how `abort` counts; other tests of this lab may have brought nodes of their own."""
    known = len(lab.ask("nodes")["nodes"])
    return f"Aborted: {known - 1} of {known} nodes hold nothing and start nothing."


def one_line(text: str) -> str:
    return " ".join(text.split())


def await_late(lab: Lab, task: str, node: str, what: str) -> None:
    """Wait until a node is clean; its task then says that the undo came late, and of nothing that it would be left."""
    await_clean(lab, node)
    ended = lab.ask("show", task)
    late = re.escape("undone late, and nothing is left; at first its undo failed: ") + f".*{what}"
    assert ended["outcome"] == "failed" and re.match(late, ended["error"]), ended
    worker = next(one for one in ended["workers"] if one["node"] == node)
    assert (worker["state"], worker["residue"], worker["byHand"]) == ("DONE", [], []), worker


def test_a_stuck_undo_is_loud_everywhere_until_what_keeps_it_is_gone(lab: Lab) -> None:
    task = new_id("stuck")
    heard = {option: lab.directory / f"{task}{option}.log" for option in ("", "--json")}
    monitors = [
        lab.begin(COORDINATOR, "sh", "-c", f"exec trogdor-bus monitor {option} >{path}")
        for option, path in heard.items()
    ]
    wait_until(lambda: all(path.exists() and path.stat().st_size for path in heard.values()), what="both monitors")
    submit(lab, task, partition(["node1", "node2"], ["node3"]))
    await_active(lab, task)
    with kept_busy(lab, "node3") as chain:
        stopped = lab.trogdor("stop", task, "--wait")
        assert stopped.returncode == 1, stopped.stdout + stopped.stderr
        told = await_done(lab, task)
        assert (told["outcome"], chain in told["error"]) == ("failed", True), told
        worker = next(one for one in told["workers"] if one["node"] == "node3")
        (left,) = worker["residue"]
        (typed,) = worker["byHand"]
        assert (worker["state"], left.startswith(f"chain {chain} in iptables")) == ("STUCK", True), worker
        shown = lab.trogdor("show", task).stdout
        assert all(words in shown for words in ("STUCK", "left behind: chain", chain)), shown
        assert f"node3, by hand: {typed}" in shown.splitlines() and f"-X {chain} -w" in typed, shown
        dirty = f"the undo of task {task} is stuck; by hand: {typed}"
        assert node_row(lab, "node3")["dirty"] == [dirty]
        listed = lab.trogdor("nodes").stdout
        assert re.search(r"^node3 +dirty ", listed, re.M) and f"node3: {dirty}" in listed.splitlines(), listed
        assert [node_row(lab, node)["dirty"] for node in ("node1", "node2")] == [[], []]

        refused = on_node(lab, "node3")
        assert refused.returncode == 1, refused.stdout + refused.stderr
        assert f"node node3 is dirty, the undo of task {task} is stuck; heal it, or submit with --force" in one_line(
            refused.stdout
        )
        assert on_node(lab, "node3", "--force").returncode == 0
        assert on_node(lab, "node1").returncode == 0

        forced = {"class": "port-block", "durationMs": 60_000, "nodes": ["node3"], "ports": [9]}
        submit(lab, f"{task}-forced", forced, "--force")
        await_active(lab, f"{task}-forced")
        aborted = lab.trogdor("abort")
        assert lab.ask("show", f"{task}-forced")["state"] == "DONE"
        assert aborted.returncode == 1, aborted.stdout + aborted.stderr
        assert f"  node3: aborted, but an undo is stuck\nnode3: {dirty}\n" in aborted.stdout, aborted.stdout
        assert all_but_one(lab) in aborted.stdout, aborted.stdout
    await_late(lab, task, "node3", chain)  # the agent tries again by itself
    assert lab.trogdor("abort").returncode == 0
    assert lab.trogdor("resume").returncode == 0
    assert on_node(lab, "node3").returncode == 0

    for monitor in monitors:
        monitor.send_signal(signal.SIGINT)
        monitor.communicate(timeout=10)
    plain, events = (path.read_text() for path in heard.values())
    assert any(f"task {task} on node3: " in line and f"by hand: {typed}" in line for line in plain.splitlines()), plain
    told_machines = [json.loads(line) for line in events.splitlines()]
    rows = [event["worker"] for event in told_machines if event.get("event") == "worker"]
    assert any(row["state"] == "STUCK" and row["byHand"] == [typed] for row in rows)
    nodes = [event["node"] for event in told_machines if event.get("event") == "node"]
    said = [tuple(row["dirty"]) for row in nodes if row["name"] == "node3"]
    assert (dirty,) in said and said[-1] == ()


def test_a_stuck_undo_is_mended_by_hand_and_by_heal(lab: Lab) -> None:
    first, second = new_id("stuck"), new_id("stuck")
    submit(lab, first, partition(["node1", "node2"], ["node3"]))
    await_active(lab, first)
    with kept_busy(lab, "node3"):
        assert lab.trogdor("stop", first, "--wait").returncode == 1
        (typed,) = next(one for one in lab.ask("show", first)["workers"] if one["node"] == "node3")["byHand"]
    before = lab.run("node3", "iptables", "-S").stdout
    assert "TB-" in before
    done = subprocess.run(["/bin/sh", "-c", typed], capture_output=True, text=True, check=False)
    assert "TB-" not in lab.run("node3", "iptables", "-S").stdout, done.stderr
    await_clean(lab, "node3")

    submit(lab, second, partition(["node1", "node2"], ["node3"]))
    await_active(lab, second)
    heal = ("trogdor-bus", "heal", "--state-dir", str(lab.directory / "node3"))
    with kept_busy(lab, "node3") as chain:
        assert lab.trogdor("stop", second, "--wait").returncode == 1
        lab.end(lab.process("agent", "node3"))
        failed = lab.run("node3", *heal)
        assert (failed.returncode, chain in failed.stdout + failed.stderr) == (1, True), failed.stdout + failed.stderr
        lab.start_agent("node3")
        lab.wait_ready()
        assert node_row(lab, "node3")["dirty"], "what an earlier life could not undo is told as well"
        lab.end(lab.process("agent", "node3"))
    try:
        healed = lab.run("node3", *heal)
        assert healed.returncode == 0, healed.stdout + healed.stderr
        assert "TB-" not in lab.run("node3", "iptables", "-S").stdout
    finally:
        lab.start_agent("node3")
        lab.wait_ready()
    await_clean(lab, "node3")
    assert on_node(lab, "node3").returncode == 0
