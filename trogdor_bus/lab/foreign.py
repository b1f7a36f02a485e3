"""What a lab node carries that is not ours, so that "as before" means something."""

from __future__ import annotations

import sys

from trogdor_bus.lab.namespaces import Member, inside, run

_STOP_AND_SLEEP = """
import os, signal, time
os.kill(os.getpid(), signal.SIGSTOP)
while True:
    time.sleep(3600)
"""
SLEEPER = [sys.executable, "-c", _STOP_AND_SLEEP, "a-process-stopped-before"]
"""The command line of the process that is already stopped before any fault."""


def add_foreign(member: Member, backend: str = "") -> None:
    """Give the member filter rules for IPv4 and IPv6 and a tbf queueing discipline that no fault made.

    `backend` is "-nft", "-legacy", or "" for what the host uses.
    """
    run(inside(member.namespace, [f"iptables{backend}-restore", "--noflush", "-w"]), _rules("192.0.2.0/24"))
    run(inside(member.namespace, [f"ip6tables{backend}-restore", "--noflush", "-w"]), _rules("2001:db8::/32"))
    qdisc = "tc qdisc add dev eth0 root handle 77: tbf rate 1gbit burst 1mb latency 50ms"
    run(inside(member.namespace, qdisc.split()))


def _rules(documentation_range: str) -> str:
    return f"""*filter
:FOREIGN - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 9 -j FOREIGN
-A OUTPUT -d {documentation_range} -j DROP
-A FOREIGN -s {documentation_range} -m comment --comment "not of trogdor-bus" -j RETURN
-A FOREIGN -j DROP
COMMIT
"""
