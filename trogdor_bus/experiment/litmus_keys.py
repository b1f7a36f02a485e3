"""The keys of a ChaosEngine: which are used, which mean nothing here, and the way through a document of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from trogdor_bus.errors import SpecError
from trogdor_bus.names import shown


def _names(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text))


ENGINE_UNUSED = _names(
    "annotationCheck appinfo auxiliaryAppInfo chaosServiceAccount components defaultAppHealthCheck jobCleanUpPolicy"
    " monitoring selectors terminationGracePeriodSeconds"
)
METADATA_UNUSED = _names(
    "annotations creationTimestamp finalizers generation labels managedFields namespace ownerReferences resourceVersion"
    " selfLink uid"
)
COMPONENTS_UNUSED = _names(
    "configMaps experimentAnnotations experimentImage imagePullSecrets nodeSelector resources secrets securityContext"
    " sidecar tolerations"
)
ENV_USED = _names(
    "CHAOS_INTERVAL DEFAULT_HEALTH_CHECK FORCE INSTANCE_ID KAFKA_BROKER KAFKA_CONSUMER_TIMEOUT KAFKA_LIVENESS_STREAM"
    " KAFKA_PORT KAFKA_REPLICATION_FACTOR PODS_AFFECTED_PERC RAMP_TIME RANDOMNESS SEQUENCE STATUS_CHECK_DELAY"
    " STATUS_CHECK_TIMEOUT TOTAL_CHAOS_DURATION"
)
ENV_UNUSED = _names(
    "CHAOSENGINE CHAOS_NAMESPACE CHAOS_SERVICE_ACCOUNT CHAOS_UID JOB_CLEANUP_POLICY KAFKA_INSTANCE_NAME KAFKA_KIND"
    " KAFKA_LABEL KAFKA_LIVENESS_IMAGE KAFKA_NAMESPACE KAFKA_SASL_AUTH KAFKA_SASL_PASSWORD KAFKA_SASL_USERNAME"
    " KAFKA_SERVICE LIB LIB_IMAGE POD_NAME TARGETS TARGET_CONTAINER TARGET_PODS ZOOKEEPER_LABEL ZOOKEEPER_NAMESPACE"
    " ZOOKEEPER_PORT ZOOKEEPER_SERVICE"
)


def sort_out(
    given: Mapping[str, Any], used: Iterable[str], unused: Iterable[str], path: str, not_used_here: list[str]
) -> None:
    """Append the keys of `given` that mean nothing here to `not_used_here`; SpecError suggests a known one."""
    known, nothing = set(used), set(unused)
    for key in given:
        if key in nothing:
            where = path.removeprefix("$").removeprefix(".").partition(".experiments[")[0]
            not_used_here.append(key if key.isupper() or not where else f"{where}.{key}")
        elif key not in known:
            near = difflib.get_close_matches(str(key), sorted(known | nothing), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known | nothing))}"
            raise SpecError(f"'{shown(str(key))}' is not known", path=path, remedy=hint)


def mapping(value: Any, path: str) -> Mapping[str, Any]:
    """Return an object, empty for nothing; SpecError if it is something else."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SpecError("is not an object", path=path, remedy="write names and values")
    return value


def sequence(value: Any, path: str) -> list[Any]:
    """Return a list, empty for nothing; SpecError if it is something else."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise SpecError("is not a list", path=path, remedy="write a list")
    return value


def whole(value: Any, path: str) -> int:
    """Return a whole number that is not negative; SpecError if it is something else."""
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}", str(value)):
        raise SpecError(f"'{shown(str(value))}' is not a whole number", path=path, remedy="give digits only")
    return int(value)
