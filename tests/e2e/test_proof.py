"""Who proves an undo is who holds its record: an agent that came back without it, and one that is not heard."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest

from tests.e2e.steps import await_active, kill_guard_and_agent, new_id, partition, submit
from tests.support import wait_until
from trogdor_bus.lab.cluster import Lab
from trogdor_bus.lab.namespaces import COORDINATOR

pytestmark = pytest.mark.e2e


def row_of(lab: Lab, node: str) -> Any:
    return next(row for row in lab.ask("nodes")["nodes"] if row["name"] == node)


def chains(lab: Lab, node: str) -> set[str]:
    saved = lab.run(node, "iptables-save").stdout + lab.run(node, "ip6tables-save").stdout
    return set(re.findall(r"TB-[0-9a-f]{16}", saved))


@pytest.mark.timeout(300)  # some thirty commands
def test_an_agent_that_came_back_without_its_journal_proves_nothing_of_the_former_one(lab: Lab) -> None:
    task, journal = new_id("lost"), row_of(lab, "node3")["journal"]
    former, other = lab.directory / "node3", lab.directory / "node3" / "other"
    submit(lab, task, partition(["node1", "node2"], ["node3"], duration_ms=600_000))
    await_active(lab, task)
    left = chains(lab, "node3")
    assert left
    kill_guard_and_agent(lab, "node3")
    lab.start_agent("node3", "--state-dir", str(other))
    try:
        wait_until(lambda: row_of(lab, "node3")["journal"] != journal and row_of(lab, "node3")["strays"], 20, "strays")
        told = row_of(lab, "node3")
        assert f"may hold task {task}" in told["unproven"][0]
        assert {chain for line in told["strays"] for chain in re.findall(r"TB-[0-9a-f]{16}", line)} == left
        assert all(f"heal --state-dir {former}" in line for line in told["strays"]), "its journal is still there"
        for name in former.glob("worker-*.json"):
            name.unlink()
        wait_until(
            lambda: "no journal that can be read" in row_of(lab, "node3")["strays"][0], 20, "the journal to be missed"
        )

        aborted = lab.trogdor("abort")
        assert aborted.returncode == 3, aborted.stdout + aborted.stderr
        assert "node3: aborted, but something may be left" in aborted.stdout
        assert "node3: ended" not in aborted.stdout and all(chain in aborted.stdout for chain in left)
        assert "trogdor-bus forget node3 --force" in aborted.stdout
        assert chains(lab, "node3") == left, "nobody removes what is nobody's"
        assert lab.trogdor("resume").returncode == 0
        assert re.search(r"^node3 +dirty ", lab.trogdor("nodes").stdout, re.M)
        refused = lab.trogdor("submit", '{"class": "port-block", "durationMs": 100, "nodes": ["node3"], "ports": [9]}')
        assert refused.returncode == 2 and "node3 is dirty" in refused.stderr, refused

        for line in row_of(lab, "node3")["strays"]:
            subprocess.run(["sh", "-ec", line.partition("by hand: ")[2]], check=True, capture_output=True)
        wait_until(lambda: not row_of(lab, "node3")["strays"], 20, "what is gone to be told no more")
        assert not chains(lab, "node3")
        assert lab.trogdor("abort").returncode == 3, "what else the former agent held, nobody knows"
        assert lab.trogdor("forget", "node3").returncode == 2
        given_up = lab.trogdor("forget", "node3", "--force")
        assert given_up.returncode == 0 and f"may hold task {task}" in given_up.stdout, given_up
        assert lab.trogdor("abort").returncode == 0
    finally:
        lab.end(lab.process("agent", "node3"))
        shutil.rmtree(other, ignore_errors=True)
        lab.start_agent("node3")
        lab.wait_ready()
        assert lab.trogdor("resume").returncode == 0


def test_a_node_that_is_cut_off_proves_nothing_also_after_its_task_was_destroyed(lab: Lab) -> None:
    task, coordinator = new_id("unheard"), lab.member(COORDINATOR).ipv4
    submit(lab, task, {"class": "port-block", "durationMs": 600_000, "nodes": ["node2"], "ports": [9]})
    await_active(lab, task)
    rules = [["INPUT", "-s", coordinator, "-j", "DROP"], ["OUTPUT", "-d", coordinator, "-j", "DROP"]]
    for rule in rules:
        assert lab.run("node2", "iptables", "-I", *rule).returncode == 0
    try:
        wait_until(lambda: not row_of(lab, "node2")["alive"], 20, "node2 to be silent")
        destroyed = lab.trogdor("destroy", task)
        assert destroyed.returncode == 3 and "No proof from node2" in destroyed.stdout, destroyed
        for options in ((), ("--node", "node2")):
            aborted = lab.trogdor("abort", *options)
            assert aborted.returncode == 3 and "No proof from node2" in aborted.stdout, aborted
        assert lab.trogdor("forget", "node2").returncode == 2
    finally:
        for rule in rules:
            lab.run("node2", "iptables", "-D", *rule)
        wait_until(lambda: "node2" in lab.alive(), 30, "node2 to be heard")
        wait_until(lambda: not row_of(lab, "node2")["unproven"], 20, "its journal to prove it")
        proven = lab.trogdor("abort")
        assert lab.trogdor("resume").returncode == 0
    assert proven.returncode == 0, proven.stdout
    unknown = lab.trogdor("destroy", "nosuch")
    assert unknown.returncode == 2 and 'No task with ID "nosuch" exists.' in unknown.stderr


def test_the_second_agent_of_a_name_says_that_it_is_refused(lab: Lab) -> None:
    second = lab.begin(
        "node1",
        "sh",
        "-c",
        f"exec trogdor-bus agent --node node2 --state-dir {lab.directory}/second 2>{lab.directory}/second.log",
    )
    log = lab.directory / "second.log"
    try:
        text = "refused: another agent named node2"
        wait_until(lambda: log.exists() and text in log.read_text(), 20, "the second agent to be told")
        assert "no word from the coordinator" not in log.read_text()
    finally:
        second.terminate()
        second.wait(10)
    assert lab.alive() >= {"node1", "node2", "node3"}
