"""Runs one experiment: its steps in order, what interrupts them, and the end that follows in any case."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import traceback
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from trogdor_bus import __version__
from trogdor_bus.client import Client
from trogdor_bus.clock import SteadyWallClock
from trogdor_bus.errors import HostError, SpecError, TrogdorBusError
from trogdor_bus.experiment import health, probing
from trogdor_bus.experiment.around import Around
from trogdor_bus.experiment.chaos import Chaos
from trogdor_bus.experiment.litmus import refuse_short_interval
from trogdor_bus.experiment.liveness import Liveness, new_run
from trogdor_bus.experiment.pipe import Begin, Pipe, Progressed
from trogdor_bus.experiment.probes import Looks
from trogdor_bus.experiment.result import UNKNOWN, ErrorOutput, Limits, Result, Topic
from trogdor_bus.experiment.verdict import judged
from trogdor_bus.experiment.watch import POLL_MS, Watch
from trogdor_bus.faults.experiment import ExperimentSpec
from trogdor_bus.kafka.access import Access
from trogdor_bus.messages import ExperimentProgress
from trogdor_bus.spec import wire

TELL_S = 0.5
FINISH_S = 120.0
"""What the end may take: it must fit into the time that the coordinator waits, and into the spec's own bound."""
HEAL_S, FLUSH_S, REREAD_S, DELETE_S = 40.0, 10.0, 45.0, 15.0
GONE_S = 5.0
"""What is done when the coordinator is gone may take no longer."""
CODES = {"pre-check": "STATUS_CHECKS_ERROR", "chaos": "CHAOS_INJECT_ERROR"}


class Interruption(NamedTuple):
    """What ends the steps early: somebody ("stopped"), a probe ("halted"), the stream ("stream")."""

    kind: str
    why: str


class Runner:
    """One experiment, as the coordinator began it."""

    def __init__(self, begin: Begin, spec: ExperimentSpec, pipe: Pipe) -> None:
        self._begin, self._spec, self._pipe = begin, spec, pipe
        self._clock, self._client = SteadyWallClock(), Client(pipe, "the coordinator")
        self._interrupted: asyncio.Future[Interruption] = asyncio.get_running_loop().create_future()
        self._abandoned: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._opened = contextlib.AsyncExitStack()
        self._lines: list[str] = []
        self._phase = "start"
        self._around: Around | None = None
        self._live: Liveness | None = None
        self._chaos: Chaos | None = None
        self._looks: Looks | None = None
        self._topic = Topic()
        self._found: dict[str, Any] = {
            "id": begin.id,
            "name": spec.name,
            "started_ms": self._clock.now_ms(),
            "spec": msgspec.json.decode(wire(spec)),
            "limits": Limits.of(spec),
            "not_used_here": spec.litmus.not_used if spec.litmus else (),
            "version": __version__,
        }
        self._warnings: list[str] = []

    def interrupt(self, kind: str, why: str) -> None:
        """End the steps now; the first interruption is the one that counts."""
        if not self._interrupted.done():
            self._interrupted.set_result(Interruption(kind, why))

    def abandon(self) -> None:
        """End at once: the coordinator is gone, so nobody hears the verdict, and its agents heal by their lease."""
        self.interrupt("stopped", "the coordinator is gone")
        if not self._abandoned.done():
            self._abandoned.set_result(None)

    async def run(self) -> Result:
        """Return the result, with a verdict, whatever happens."""
        telling = asyncio.create_task(self._tell_for_ever())
        limit_s = max(1.0, self._spec.longest_ms() / 1000 - FINISH_S - 10)
        await self._unless_interrupted(self._steps(), limit_s)
        if self._interrupted.done():
            kind, why = self._interrupted.result()
            self._say(f"ends now: {why}")
            self._found |= {kind: why} if kind in ("stopped", "halted") else {}
            self._found |= {"fail_step": self._phase}
        await self._end()
        await self._close()
        telling.cancel()
        self._tell()
        return self._result()

    # --- the steps ----------------------------------------------------------------------------------------------------

    async def _steps(self) -> None:
        spec = self._spec
        self._enter("pre-check")
        access = await asyncio.to_thread(self._access)
        if not spec.evidence_wanted():
            kind = spec.fault["class"]
            self._say(f"nothing is known that would show that {kind} took effect, and evidence is empty: not proven")
        run = new_run()
        live = None if spec.stream.off else Liveness(access, spec.stream, run, self._clock)
        session_ms = await self._check(access, live.topic if live else "")
        around = self._around
        assert around is not None
        if live is not None:
            self._enter("topic")
            self._live = live
            await live.make_topic()
            self._say(f"topic {live.topic} is made")
            self._enter("stream")
            await live.start()
            self._say("the stream flows")
        look = probing.kafka_look(access, around.watch, around.topic)
        looks = self._looks = Looks(spec.probes, look, commands=self._begin.probe_commands, to=self._begin.destinations)
        looks.broken.add_done_callback(lambda broken: self.interrupt("halted", broken.result()))
        self._enter("baseline")
        await looks.before()
        await asyncio.sleep((spec.baseline_ms + spec.ramp_ms) / 1000)
        self._enter("chaos")
        looks.during()
        self._chaos = Chaos(around, session_ms)
        await self._chaos.run()
        self._enter("quiet")
        await asyncio.sleep((spec.ramp_ms + spec.quiet_ms) / 1000)
        self._enter("after")
        await looks.after()

    async def _check(self, access: Access, topic: str) -> int:
        """Find out who is there and whether all is whole; return after what time a missing broker is noticed, ms."""
        spec = self._spec
        nodes = await self._client.nodes()
        brokers = {row.broker: row.name for row in nodes if row.broker is not None and not row.left}
        controllers = {row.controller: row.name for row in nodes if row.controller is not None}
        fault = spec.fault_spec()
        names = [row.name for row in nodes]
        named = fault.cluster_wanted(names).topics if fault.needs_cluster(names) else ()
        made_up = f"{spec.stream.topic_prefix}0"
        topics = tuple(dict.fromkeys(topic if one == made_up else one for one in (*named, *filter(None, [topic]))))
        watch = await self._opened.enter_async_context(Watch(access, topic, topics, self._clock))
        self._around = Around(
            id=self._begin.id,
            spec=spec,
            topic=topic,
            client=self._client,
            watch=watch,
            clock=self._clock,
            say=self._say,
            brokers=brokers,
            controllers=controllers,
        )
        view = await watch.whole()
        self._found["cluster_id"] = view.cluster_id
        if problems := await self._around.lacking():
            raise HostError(f"the cluster is not whole before anything was done: {'; '.join(problems)}")
        first = min(view.brokers, default=UNKNOWN)
        self._found["timeouts"] = times = health.timeouts(await watch.settings(first)) if first != UNKNOWN else {}
        self._found["resolution_ms"] = POLL_MS
        session_ms = times.get(health.SESSION, UNKNOWN)
        refuse_short_interval(spec, max(0, session_ms))
        replicas = spec.stream.replication_factor
        if not spec.stream.off and replicas > len(view.brokers):
            raise SpecError(
                f"{replicas} replicas need as many brokers, there are {len(view.brokers)}",
                path="$.stream.replicationFactor",
                remedy="make it smaller",
            )
        told = ", ".join(f"{name} = {value}" for name, value in times.items())
        self._say(f"cluster {view.cluster_id} is whole: {len(view.brokers)} brokers; {told}")
        return session_ms

    def _access(self) -> Access:
        bootstrap = self._spec.bootstrap or self._begin.bootstrap
        config = self._spec.config or ("" if self._spec.bootstrap else self._begin.config)
        if not bootstrap:
            raise SpecError(
                "nobody knows where the cluster under test is",
                path="$.bootstrap",
                remedy="start the coordinator with ‹cluster› HOST:PORT,..., or name it here",
            )
        if self._spec.bootstrap:
            self._begin.destinations.check_brokers(bootstrap)
        return Access(bootstrap, Path(config) if config else None)

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Finish in time; once the coordinator is gone only the topic is deleted, if that is possible quickly."""
        finishing = asyncio.create_task(self._finish())
        ends: set[asyncio.Future[Any]] = {finishing, self._abandoned}
        await asyncio.wait(ends, timeout=FINISH_S, return_when=asyncio.FIRST_COMPLETED)
        if self._abandoned.done():
            finishing.cancel()
            if self._live is not None and not self._topic.deleted:
                self._topic = await self._live.delete_topic(GONE_S - 1, keep=self._spec.keep_topic)
        elif not finishing.done():
            finishing.cancel()
            self._warnings.append(f"the end took longer than {FINISH_S:g} s, and was cut off")
        elif (error := finishing.exception()) is not None:
            self._broke(error)

    async def _finish(self) -> None:
        """Undo and stop whatever is under way, audit, and clean up; each part is tried though others fail."""
        if self._chaos is not None and (trouble := await self._chaos.stop(HEAL_S)):
            self._warnings.append(trouble)
        if self._looks is not None:
            await self._looks.end()
        if self._live is None:
            return
        self._enter("audit", keep=True)
        try:
            await self._live.stop(FLUSH_S)
            if not self._live.broken:
                await self._live.audit(REREAD_S)
        except TrogdorBusError as error:
            self._warnings.append(f"the audit failed: {error}")
            self._say(f"the audit failed: {error}")
        if self._live.broken:
            self._broke(HostError(f"the stream cannot be trusted: {self._live.broken}"))
        self._enter("clean-up", keep=True)
        self._topic = await self._live.delete_topic(DELETE_S, keep=self._spec.keep_topic)
        if self._topic.error:
            self._warnings.append(f"topic {self._topic.name} is left: {self._topic.error}")

    async def _close(self) -> None:
        with contextlib.suppress(TimeoutError, TrogdorBusError):
            async with asyncio.timeout(GONE_S):
                await self._opened.aclose()

    async def _unless_interrupted(self, steps: Coroutine[Any, Any, None], limit_s: float) -> None:
        """Let the steps go on to their end, an interruption, or the limit; an error breaks the experiment."""
        task = asyncio.create_task(steps)
        ends: set[asyncio.Future[Any]] = {task, self._interrupted}
        await asyncio.wait(ends, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=GONE_S)
            if not self._interrupted.done():
                self._broke(HostError(f"the steps took longer than {limit_s:g} s"))
        elif (error := task.exception()) is not None:
            self._broke(error)

    def _broke(self, error: BaseException) -> None:
        """Note why the experiment itself broke; the first reason is kept."""
        if not isinstance(error, TrogdorBusError):
            traceback.print_exception(error, file=sys.stderr)
            error = HostError(f"a mistake in trogdor-bus: {type(error).__name__}: {error}")
        self._say(f"{self._phase} broke: {error}")
        if "error_output" not in self._found:
            code = CODES.get(self._phase, "GENERIC_ERROR")
            self._found |= {
                "error_output": ErrorOutput(code=code, reason=str(error)),
                "fail_step": self._phase,
            }

    def _result(self) -> Result:
        live, around = self._live, self._around
        windows = tuple(self._chaos.windows) if self._chaos else ()
        found = dict(self._found)
        if live is not None:
            found |= {
                "producer_error": live.fatal,
                "findings": live.findings,
                "gaps": live.gaps(),
                "latencies": live.latencies(windows),
                "bins": live.bins(),
                "notes": live.notes(),
            }
        return judged(
            Result(
                **found,
                phase=self._phase,
                ended_ms=self._clock.now_ms(),
                seed=self._chaos.seed if self._chaos else None,
                faults=windows,
                leader_changes=tuple(around.watch.history.changes) if around else (),
                probes=self._looks.results() if self._looks else (),
                topic=self._topic,
                warnings=tuple(self._warnings),
            )
        )

    # --- telling ------------------------------------------------------------------------------------------------------

    def _enter(self, phase: str, *, keep: bool = False) -> None:
        """Begin a step; with `keep` the result names the step before it as the last one."""
        if not keep:
            self._phase = phase
        self._say(phase)

    def _say(self, text: str) -> None:
        self._lines.append(text)

    def _tell(self) -> None:
        live = self._live
        counts = live.counts() if live else None
        progress = ExperimentProgress(
            phase=self._phase,
            topic=live.topic if live else "",
            sent=counts.sent if counts else 0,
            acked=counts.acked if counts else 0,
            indeterminate=counts.indeterminate if counts else 0,
            failed=counts.failed if counts else 0,
            delivered=counts.delivered if counts else 0,
            gap_ms=live.gap_ms() if live else 0,
            faults=len(self._chaos.windows) if self._chaos else 0,
        )
        lines, self._lines = tuple(self._lines), []
        self._pipe.tell(Progressed(progress=progress, lines=lines))

    async def _tell_for_ever(self) -> None:
        while True:
            self._tell()
            if self._live is not None and (trouble := self._live.fatal or self._live.broken):
                self.interrupt("stream", f"the stream cannot go on: {trouble}")
            await asyncio.sleep(TELL_S)
