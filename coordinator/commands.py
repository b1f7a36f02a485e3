"""The only way in: whatever bus, one-shot and experiments ask of a coordinator is a request that is carried out here.

A door turns what it hears into a request, once, and words the response, or the error, for whoever asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from trogdor_bus.coordinator.api import Api, decode_spec
from trogdor_bus.coordinator.events import Sighting
from trogdor_bus.coordinator.pages import Page, check_fits
from trogdor_bus.coordinator.planner import Terms
from trogdor_bus.errors import TrogdorBusError
from trogdor_bus.messages import (
    CHANGES,
    AnyRequest,
    ExperimentInfo,
    GetExperiment,
    Plan,
    Reply,
    ValidateSpec,
    decode,
    encode,
)
from trogdor_bus.roles import Wanted
from trogdor_bus.states import TaskRow


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a request: `result` is of the type that the request's class names, None if it names none.

    `replicated` tells of what changes something whether the log has it; None without a log, and for questions. `more`,
    "" if this is all of it, is where the next page begins.
    """

    result: Any = None
    replicated: bool | None = None
    more: str = ""


class Commands:
    """Carries out requests, and waits for all that an answer needs.

    `look` looks at the cluster under test, `told` tells how an experiment goes, and `kept`, None without a log, tells
    whether the log has what was stored until now, having waited for it.
    """

    def __init__(
        self,
        api: Api,
        *,
        look: Callable[[Wanted], Awaitable[Sighting]],
        told: Callable[[TaskRow, GetExperiment], Awaitable[ExperimentInfo]],
        kept: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._api, self._look, self._told, self._kept = api, look, told, kept

    async def execute(self, request: AnyRequest, *, parent: str = "") -> Response:
        """Return what came of a request; raise the TrogdorBusError by which it is refused, and nothing has changed.

        What it creates belongs to the task `parent`, if given. A change has happened before anything is waited for.
        """
        match request:
            case ValidateSpec():
                return Response(result=await self._validate(request))
            case GetExperiment():
                return Response(result=await self._told(self._api.experiment(request.id), request))
        found = self._api.perform(request, parent)
        result, more = found if isinstance(found, Page) else (found, "")
        if self._kept is None or not isinstance(request, CHANGES):
            return Response(result=result, more=more)
        return Response(result=result, replicated=await self._kept(), more=more)

    async def _validate(self, request: ValidateSpec) -> Plan:
        spec, terms = decode_spec(request.spec), Terms(request.force, request.allow, request.own_topics)
        wanted = self._api.wanted(spec, terms)
        plan = self._api.validate(spec, terms, await self._look(wanted) if wanted else None)
        return msgspec.structs.replace(plan, nodes=()) if request.brief else plan


async def answer(commands: Commands, frame: bytes, parent: str = "") -> bytes:
    """Return the frame of the reply to a request's frame, the door of whoever speaks in frames; an error is a reply."""
    try:
        request = decode(frame, AnyRequest)
        response = await commands.execute(request, parent=parent)
        result = encode(response.result)
        check_fits(result, request)
    except TrogdorBusError as error:
        return encode(Reply.refusing(error))
    return encode(Reply(result=msgspec.Raw(result), replicated=response.replicated, more=response.more))
