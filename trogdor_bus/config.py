"""Configuration, read once at the front door: the cluster's nodes, and the settings of each daemon."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from trogdor_bus import document
from trogdor_bus.errors import NotFoundError, SpecError
from trogdor_bus.names import check_name, check_tag, shown
from trogdor_bus.topology import Node

AGENT_PORT = "trogdor.agent.port"
COORDINATOR_PORT = "trogdor.coordinator.port"
BROKER_ID = "trogdor.broker.id"
CONTROLLER_ID = "trogdor.controller.id"
MAX_BROKER_ID = 2**31 - 1
DEFAULT_LEASE_MS = 30_000
DEFAULT_CEILING_MS = 86_400_000
DEFAULT_LATE_MS = 1_000
MIN_STANDBY_MS = 3_000

_TROGDOR_PLATFORMS = {"org.apache.kafka.trogdor.basic.BasicPlatform": "basic"}
_DURATION = re.compile(r"([0-9]{1,15})(ms|s|m|h|d)")
_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class ClusterConfig(msgspec.Struct, frozen=True):
    """The nodes by name, and the platform that performs faults on them."""

    platform: str = "basic"
    nodes: dict[str, Node] = {}

    def require(self, name: str) -> Node:
        """Return the node of that name; NotFoundError, in Trogdor's words, if there is none."""
        if name not in self.nodes:
            known = ",".join(sorted(self.nodes))
            raise NotFoundError(f"No node named {name} found in the cluster!  Cluster nodes are: {known}")
        return self.nodes[name]


class AgentSection(msgspec.Struct, frozen=True, kw_only=True):
    """The `agent` section: what agents on this host may do. `lease_ms` None means no lease.

    `broker` and `controller` are the ids of the Kafka broker and of the controller on this host, None to let the agent
    find out.
    """

    lease_ms: int | None = DEFAULT_LEASE_MS
    ceiling_ms: int = DEFAULT_CEILING_MS
    late_ms: int = DEFAULT_LATE_MS
    allow_commands: tuple[tuple[str, ...], ...] = ()
    broker: int | None = None
    controller: int | None = None


class CoordinatorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a coordinator needs to run; `keys` None means no encryption.

    `standby_ms`: wait until no leader was seen for so long, and take over then; None leads at once. `cluster` are the
    brokers of the Kafka cluster under test (HOST:PORT,...; "" for none), `cluster_config` librdkafka's properties for
    it.
    `allow_probe_commands`: probes of experiments may start programs on the coordinator's host, as its user;
    `allow_probes` is where else than to the cluster they may connect from there.
    """

    url: str
    state_dir: Path
    keys: Path | None
    config: ClusterConfig | None = None
    adopt: bool = False
    abort_all: bool = False
    take_over: bool = False
    standby_ms: int | None = None
    allow_probe_commands: bool = False
    allow_probes: tuple[str, ...] = ()
    beat_ms: int = 1000
    lease_ms: int = DEFAULT_LEASE_MS
    cluster: str = ""
    cluster_config: Path | None = None


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that an agent needs to run; `keys` None means no encryption, `lease_ms` None no lease.

    `ceiling_ms` is the longest that a fault may last on this host, a fault that is undone later than `late_ms` after
    its end is LATE, `allow_commands` are the commands that a spec may name, `broker` and `controller` the ids of the
    Kafka broker and the controller that the node is (None: the agent finds out).
    """

    node: str
    url: str
    state_dir: Path
    keys: Path | None
    platform: str = "basic"
    attach: str = ""
    allow_commands: tuple[tuple[str, ...], ...] = ()
    lease_ms: int | None = DEFAULT_LEASE_MS
    ceiling_ms: int = DEFAULT_CEILING_MS
    late_ms: int = DEFAULT_LATE_MS
    beat_ms: int = 1000
    broker: int | None = None
    controller: int | None = None


def load_cluster(path: Path) -> ClusterConfig:
    """Return the cluster that a file describes: Trogdor's JSON as it is, or our YAML form.

    SpecError or NotFoundError says what is wrong and where.
    """
    return load_config(path)[0]


def load_config(path: Path) -> tuple[ClusterConfig, AgentSection]:
    """Return the cluster and the `agent` section of a file; SpecError or NotFoundError if it is wrong."""
    name = str(path)
    text = document.read_file(path)
    root = document.parse(text, name)
    if not isinstance(root, dict):
        raise _wrong(name, "$", "the configuration is not an object with 'platform' and 'nodes'")
    reader = _OurForm(name) if document.is_yaml(text, name) else _TrogdorForm(name)
    cluster = reader.cluster(root)
    _one_node_each(cluster.nodes.values(), name)
    return cluster, _agent_section(root.get("agent"), name)


def parse_duration_ms(text: object, what: str = "the duration", path: str = "$") -> int:
    """Return the ms of "500ms", "30s", "5m", "2h", "1d"; SpecError otherwise."""
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if not found:
        raise SpecError(f"{what} is {_short(text)}", path=path, remedy="write a number and ms, s, m, h or d: 30s")
    return int(found[1]) * _UNITS_MS[found[2]]


def parse_lease_ms(text: object, path: str = "$") -> int | None:
    """Return the ms of a lease such as "30s", or None for "off"; SpecError otherwise."""
    if text == "off" or text is False:
        return None
    lease_ms = parse_duration_ms(text, "the lease", path)
    if lease_ms < 1000:
        raise SpecError(f"the lease is {text}", path=path, remedy='use at least 1s, or "off" for none')
    return lease_ms


def parse_standby_ms(text: str) -> int:
    """Return the ms that a standby waits without seeing a coordinator; SpecError if that is too short to tell."""
    after_ms = parse_duration_ms(text, "‹standby-after›")
    if after_ms < MIN_STANDBY_MS:
        raise SpecError(f"‹standby-after› is {text}", remedy="use at least 3s: a coordinator is heard once a second")
    return after_ms


class _TrogdorForm:
    """Trogdor's JSON: `platform` and `nodes` are required, other root keys are ignored."""

    def __init__(self, file: str) -> None:
        self.file = file

    def cluster(self, root: Mapping[str, Any]) -> ClusterConfig:
        if "platform" not in root:
            raise _wrong(self.file, "$", "Expected to find a 'platform' field in the root JSON configuration object")
        if "nodes" not in root:
            raise _wrong(self.file, "$", "Expected to find a 'nodes' field in the root JSON configuration object")
        platform = _text(root["platform"], "$.platform", self.file)
        nodes = root["nodes"]
        if not isinstance(nodes, dict):
            raise _wrong(self.file, "$.nodes", "Expected the 'nodes' field to be a JSON object.")
        return ClusterConfig(
            _TROGDOR_PLATFORMS.get(platform, platform), {name: self.node(name, value) for name, value in nodes.items()}
        )

    def node(self, name: str, value: object) -> Node:
        path = f"$.nodes.{shown(name)}"
        check_name(name, "node name", path)
        if not isinstance(value, dict):
            raise _wrong(self.file, path, "Expected the node to be a JSON object.")
        config = {key: _as_text(item) for key, item in value.items() if key not in ("hostname", "tags")}
        return Node(
            name=name,
            hostname=_text(value["hostname"], f"{path}.hostname", self.file) if "hostname" in value else "",
            tags=_tags(value.get("tags"), f"{path}.tags", self.file),
            agent=AGENT_PORT in config or COORDINATOR_PORT not in config,
            config=config,
            broker=_kafka_id(value.get(BROKER_ID), f"{path}.{BROKER_ID}", self.file),
            controller=_kafka_id(value.get(CONTROLLER_ID), f"{path}.{CONTROLLER_ID}", self.file, "controller"),
        )


class _OurForm:
    """Our YAML form: `platform`, `nodes` and `agent`, and no key that we do not know."""

    def __init__(self, file: str) -> None:
        self.file = file

    def cluster(self, root: Mapping[str, Any]) -> ClusterConfig:
        _only(root, ("platform", "nodes", "agent"), "$", self.file)
        nodes = root.get("nodes") or {}
        if not isinstance(nodes, dict):
            raise _wrong(self.file, "$.nodes", "expected a node per line, `name: {hostname: ...}` or `name: address`")
        platform = _text(root.get("platform", "basic"), "$.platform", self.file)
        return ClusterConfig(platform, {name: self.node(name, value) for name, value in nodes.items()})

    def node(self, name: str, value: object) -> Node:
        path = f"$.nodes.{shown(name)}"
        check_name(name, "node name", path)
        if value is None:
            return Node(name=name)
        if isinstance(value, str):
            return Node(name=name, hostname=_text(value, path, self.file))
        if not isinstance(value, dict):
            raise _wrong(self.file, path, "expected an address, or {hostname: ..., tags: [...]}")
        _only(value, ("hostname", "tags", "agent", "config", "broker", "controller"), path, self.file)
        agent = value.get("agent", True)
        if not isinstance(agent, bool):
            raise _wrong(self.file, f"{path}.agent", "expected true or false")
        config = value.get("config") or {}
        if not isinstance(config, dict):
            raise _wrong(self.file, f"{path}.config", "expected an object")
        return Node(
            name=name,
            hostname=_text(value["hostname"], f"{path}.hostname", self.file) if "hostname" in value else "",
            tags=_tags(value.get("tags"), f"{path}.tags", self.file),
            agent=agent,
            config={key: _as_text(item) for key, item in config.items()},
            broker=_kafka_id(value.get("broker"), f"{path}.broker", self.file),
            controller=_kafka_id(value.get("controller"), f"{path}.controller", self.file, "controller"),
        )


def _agent_section(section: object, file: str) -> AgentSection:
    if section is None:
        return AgentSection()
    if not isinstance(section, dict):
        raise _wrong(file, "$.agent", "expected an object")
    _only(section, ("lease", "ceiling", "late", "allowCommands", "broker", "controller"), "$.agent", file)
    commands = section.get("allowCommands") or []
    if not isinstance(commands, list):
        raise _wrong(file, "$.agent.allowCommands", "expected a list of commands")
    for index, command in enumerate(commands):
        if not (isinstance(command, list) and command and all(isinstance(word, str) and word for word in command)):
            where = f"$.agent.allowCommands[{index}]"
            raise _wrong(file, where, "expected a list of words", remedy='such as ["systemctl", "start", "kafka"]')
    default = AgentSection()
    return AgentSection(
        lease_ms=parse_lease_ms(section["lease"], "$.agent.lease") if "lease" in section else default.lease_ms,
        ceiling_ms=parse_duration_ms(section["ceiling"], "the ceiling", "$.agent.ceiling")
        if "ceiling" in section
        else default.ceiling_ms,
        late_ms=parse_duration_ms(section["late"], "what is late", "$.agent.late")
        if "late" in section
        else default.late_ms,
        allow_commands=tuple(tuple(command) for command in commands),
        broker=_kafka_id(section.get("broker"), "$.agent.broker", file),
        controller=_kafka_id(section.get("controller"), "$.agent.controller", file, "controller"),
    )


def _only(value: Mapping[str, Any], known: Collection[str], path: str, file: str) -> None:
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
            raise _wrong(file, f"{path}.{shown(key)}", "unknown key", remedy=hint)


def _kafka_id(value: object, path: str, file: str, what: str = "broker") -> int | None:
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch("[0-9]{1,10}", value):  # Trogdor's values may be texts
        value = int(value)
    if type(value) is not int or not 0 <= value <= MAX_BROKER_ID:
        raise _wrong(file, path, f"expected the id of a {what}, found {_short(value)}", remedy="such as 1")
    return value


def _one_node_each(nodes: Iterable[Node], file: str) -> None:
    seen: dict[tuple[str, int], str] = {}
    for node in nodes:
        for what, number in (("broker", node.broker), ("controller", node.controller)):
            if number is None:
                continue
            if (what, number) in seen:
                raise _wrong(
                    file,
                    f"$.nodes.{node.name}",
                    f"{what} {number} is node {seen[what, number]} as well",
                    remedy=f"give each {what} one node",
                )
            seen[what, number] = node.name


def _tags(value: object, path: str, file: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not (isinstance(value, list) and all(isinstance(tag, str) for tag in value)):
        raise _wrong(file, path, "Expected the 'tags' field to be an array of strings.")
    return tuple(check_tag(tag, "tag", f"{path}[{index}]") for index, tag in enumerate(value))


def _text(value: object, path: str, file: str) -> str:
    if not isinstance(value, str) or not value or not value.isprintable() or " " in value:
        raise _wrong(file, path, f"expected a name without blanks, found {_short(value)}")
    return value


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _wrong(file: str, path: str, message: str, remedy: str = "") -> SpecError:
    return SpecError(f"{message} [in {file}]", path=path, remedy=remedy)
