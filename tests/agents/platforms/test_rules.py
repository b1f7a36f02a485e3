from __future__ import annotations

import contextlib
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trogdor_bus.actions import Peer
from trogdor_bus.actions.network import BlockPorts
from trogdor_bus.agents.platforms.linux import rules
from trogdor_bus.agents.platforms.linux.chains import Chain, Rule, Table
from trogdor_bus.errors import HostError
from trogdor_bus.platform import Endpoint

NAME = "TB-0123456789abcdef"
PORT = r"(?:[1-9][0-9]{0,4})"
ADDRESS = r"[0-9a-f:.]{2,39}"
RULE = (
    rf"-A TB-[0-9a-f]{{16}}(?: -s {ADDRESS})?(?: -d {ADDRESS})?(?: ! -[io] lo)?(?: -p (?:tcp|udp))?"
    rf"(?: -p ipv6-icmp -m icmp6 --icmpv6-type 13[56])?"
    rf"(?: -m multiport --[sd]ports {PORT}(?:,{PORT}){{0,14}})?"
    rf"(?: -m conntrack --ctorigdstport {PORT} --ctdir ORIGINAL)?"
    rf"(?: -m conntrack --ctreplsrc {ADDRESS} --ctdir REPLY)? -j (?:DROP|RETURN)"
)
GRAMMAR = re.compile(
    rf"\*filter|:TB-[0-9a-f]{{16}} - \[0:0\]|{RULE}|-I (?:INPUT|OUTPUT) 1 -j TB-[0-9a-f]{{16}}|COMMIT", re.ASCII
)

hostile = st.one_of(
    st.text(),
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map(lambda ip: f"{ip}%eth0\n-F"),
    st.sampled_from(
        ["", "10.0.0.1/0", "0/0", "! 10.0.0.1", "10.0.0.1\n-F INPUT", "::1%lo", "010.0.0.1", "fe80::1%1 -j"]
    ),
)
hostile_ports = st.lists(
    st.one_of(st.integers(1, 65535), st.integers(), st.text(), st.booleans(), st.floats(allow_nan=False)), max_size=40
)


def render(chains: list[Chain], before: rules.Ruleset | None = None) -> list[str]:
    text = rules.render_install(chains, before or rules.Ruleset({}))
    assert text.endswith("\n")
    return text[:-1].split("\n")


@given(addresses=st.lists(hostile, max_size=5), control=st.lists(st.tuples(hostile, hostile_ports), max_size=3))
def test_hostile_addresses_and_ports_never_leave_the_grammar(
    addresses: list[str], control: list[tuple[str, list[int]]]
) -> None:
    endpoints = [Endpoint(address, tuple(ports)) for address, ports in control]
    for family in (4, 6):
        with contextlib.suppress(HostError):
            drops = rules.drop_sources([Peer("n", tuple(addresses))], family, tracked=True)
            spared = rules.spare_control(endpoints, ["10.0.0.9", "fd00::9"], local=True, hook="INPUT", family=family)
            for line in render([Chain(NAME, "INPUT", spared + drops)]):
                assert GRAMMAR.fullmatch(line), line


@given(ports=hostile_ports, name=st.one_of(st.text(), st.just(NAME + "\n"), st.just("INPUT")))
def test_hostile_ports_and_chain_names_never_leave_the_grammar(ports: list[int], name: str) -> None:
    with contextlib.suppress(HostError):
        drops = rules.drop_ports(BlockPorts(ports=tuple(ports)), "OUTPUT", tracked=True)
        for line in render([Chain(name, "OUTPUT", drops)]):
            assert GRAMMAR.fullmatch(line), line


@given(rule=st.fixed_dictionaries({}, optional={key: st.text() for key in Rule.__struct_fields__}))
def test_a_rule_from_the_journal_is_strict(rule: dict[str, str]) -> None:
    table = {"tool": "/usr/sbin/iptables", "chains": [{"name": NAME, "hook": "INPUT", "rules": [rule]}]}
    with contextlib.suppress(HostError, msgspec.ValidationError):
        for line in render(list(msgspec.convert(table, Table).chains)):
            assert GRAMMAR.fullmatch(line), line


@pytest.mark.parametrize("bad", [NAME + "\n", "INPUT", "TB-", NAME + "0", NAME.upper(), ""])
def test_only_chains_of_ours_are_removed(bad: str) -> None:
    with pytest.raises(HostError, match="not the name of a chain of ours"):
        rules.render_remove([bad], rules.Ruleset({bad: ()}))


@given(ports=st.lists(st.integers(1, 65535), min_size=1, unique=True, max_size=50))
def test_every_port_is_in_exactly_one_rule(ports: list[int]) -> None:
    drops = rules.drop_ports(BlockPorts(ports=tuple(ports)), "INPUT")
    assert [port for rule in drops for port in rule.destination_ports] == ports
    assert all(len(rule.destination_ports) <= 15 for rule in drops)


@given(peers=st.lists(st.ip_addresses(), max_size=8))
def test_what_is_rendered_is_read_back_the_same(peers: list[object]) -> None:
    for family in (4, 6):
        drops = rules.drop_sources([Peer("n", tuple(map(str, peers)))], family, tracked=True)
        chain = Chain(NAME, "INPUT", drops)
        lines = render([chain])
        saved = ["-A INPUT -j " + NAME]
        saved += [re.sub(r"-s (\S+)", r"-s \1/32" if family == 4 else r"-s \1/128", line) for line in lines[2:-2]]
        text = "\n".join(["*filter", ":INPUT ACCEPT [0:0]", f":{NAME} - [0:0]", *saved, "COMMIT"])
        assert rules.deviation(chain, rules.parse(text)) == ""


@given(ports=st.lists(st.integers(1, 65535), min_size=1, unique=True, max_size=40))
def test_where_connections_are_tracked_each_port_is_matched_as_it_was_asked_for_too(ports: list[int]) -> None:
    drops = rules.drop_ports(BlockPorts(ports=tuple(ports)), "INPUT", tracked=True)
    plain = rules.drop_ports(BlockPorts(ports=tuple(ports)), "INPUT")
    assert drops[: len(plain)] == plain, "what is not tracked is met all the same"
    assert [rule.original_port for rule in drops[len(plain) :]] == ports
    chain = Chain(NAME, "INPUT", drops)
    text = "\n".join(["*filter", f"-A INPUT -j {NAME}", *render([chain])[1:-2], "COMMIT"])
    assert rules.deviation(chain, rules.parse(text)) == ""


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ("", False),
        ("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n*filter\n-A INPUT -j ACCEPT\nCOMMIT", False),
        ("*filter\n-A INPUT -j ACCEPT\nCOMMIT\n*nat\n:X - [0:0]\n-A X -p tcp -j REDIRECT --to-ports 9\nCOMMIT", True),
    ],
)
def test_whether_anything_rewrites_ports(saved: str, expected: bool) -> None:
    assert rules.rewrites(saved) is expected


def test_mapped_addresses_are_those_that_packets_carry() -> None:
    assert rules.drop_sources([Peer("n", ("::ffff:10.0.0.1", "10.0.0.1"))], 4) == (Rule(source="10.0.0.1"),)


def test_a_first_jump_is_not_made_twice_and_a_later_one_is_moved() -> None:
    chain = Chain(NAME, "INPUT", (Rule(source="10.0.0.1"),))
    jump, other = f"-j {NAME}", "-p tcp -j ACCEPT"
    declared = ["*filter", f":{NAME} - [0:0]", f"-A {NAME} -s 10.0.0.1 -j DROP"]
    first = f"-I INPUT 1 -j {NAME}"
    assert render([chain]) == [*declared, first, "COMMIT"]
    assert render([chain], rules.Ruleset({"INPUT": (jump, other), NAME: ()})) == [*declared, "COMMIT"]
    moved = [*declared, f"-D INPUT -j {NAME}", first, "COMMIT"]
    assert render([chain], rules.Ruleset({"INPUT": (other, jump), NAME: ()})) == moved


def test_nothing_there_is_nothing_to_remove() -> None:
    assert rules.render_remove([NAME], rules.parse("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n")) == ""


def test_a_table_that_iptables_cannot_read_is_not_taken_for_an_empty_one() -> None:
    with pytest.raises(HostError, match="cannot read the filter table"):
        rules.parse("# Table `filter' is incompatible, use 'nft' tool.\n")


def test_rules_of_other_tables_are_not_taken_for_ours() -> None:
    assert rules.parse(f"*nat\n:INPUT ACCEPT [0:0]\n-A INPUT -j {NAME}\nCOMMIT\n") == rules.Ruleset({})


def test_control_is_spared_exactly() -> None:
    control = [Endpoint("10.0.0.5", (7300, 7301)), Endpoint("127.0.0.1", (7302,))]
    own = ["10.0.0.1", "fd00::1"]

    def spared(hook: str, family: int, local: bool = True) -> list[str]:
        found = rules.spare_control(control, own, local=local, hook=hook, family=family)  # type: ignore[arg-type]
        return [line.removeprefix(f"-A {NAME} ") for line in render([Chain(NAME, "INPUT", found)])[2:-2]]

    assert spared("INPUT", 4) == [
        "-s 10.0.0.5 -p tcp -m multiport --sports 7300,7301 -j RETURN",
        "-d 10.0.0.1 -p tcp -m multiport --dports 7302 -j RETURN",
    ]
    assert spared("OUTPUT", 4) == [
        "-d 10.0.0.5 -p tcp -m multiport --dports 7300,7301 -j RETURN",
        "-s 10.0.0.1 -p tcp -m multiport --sports 7302 -j RETURN",
    ]
    assert spared("INPUT", 6) == ["-d fd00::1 -p tcp -m multiport --dports 7302 -j RETURN"]
    assert spared("INPUT", 6, local=False) == []


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ("", False),
        ("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT", False),
        ("# Warning: iptables-legacy tables present", False),
        ("*filter\n:INPUT DROP [0:0]\nCOMMIT", True),
        ("*filter\n:MINE - [0:0]\nCOMMIT", True),
        ("*nat\n:INPUT ACCEPT [0:0]\n-A INPUT -j RETURN\nCOMMIT", True),
    ],
)
def test_which_tables_are_in_use(saved: str, expected: bool) -> None:
    assert rules.has_rules(saved) is expected
