"""A program that speaks the pipe as an experiment's does; the name of its experiment says what happens to it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec

from trogdor_bus.client import Client
from trogdor_bus.errors import TrogdorBusError
from trogdor_bus.experiment.pipe import Begin, Ended, Pipe, Progressed, open_pipe
from trogdor_bus.experiment.probes import Looks
from trogdor_bus.faults.stream import ProbeSpec
from trogdor_bus.messages import ExperimentProgress
from trogdor_bus.states import Outcome

SLEEP_S = 917
FAULT = b'{"class": "port-block", "durationMs": 60000, "nodes": ["a"], "ports": [9092]}'


async def main() -> int:
    pipe = await open_pipe()
    begin = await pipe.begin()
    stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    listening = asyncio.create_task(pipe.listen(lambda why: stop.done() or stop.set_result(why)))
    try:
        return await act(msgspec.json.decode(begin.spec)["name"], begin, pipe, stop)
    finally:
        await pipe.finish()
        listening.cancel()


async def act(name: str, begin: Begin, pipe: Pipe, stop: asyncio.Future[str]) -> int:
    client = Client(pipe, "the coordinator")
    print("this must not get into the pipe")
    pipe.tell(Progressed(progress=ExperimentProgress(phase=name, topic="own-topic", sent=1), lines=("one", "two")))
    if name == "fault" or name.startswith("dies"):
        await client.create(f"{begin.id}-f1", FAULT)
    match name:
        case "passes" | "fault":
            result = {"verdict": "Pass", "spec": begin.id, "bootstrap": begin.bootstrap, "large": "x" * 300_000}
            pipe.tell(Ended(outcome=Outcome.DONE, result=msgspec.Raw(msgspec.json.encode(result))))
        case "asks":
            try:
                await client.show("nothing")
            except TrogdorBusError as error:
                nodes = [node.name for node in await client.nodes()]
                pipe.tell(Ended(outcome=Outcome.FAILED, error=f"{type(error).__name__}: {error} {nodes}"))
        case "stops":
            why = await stop
            result = msgspec.json.encode({"verdict": "Stopped", "stopped": why})
            pipe.tell(Ended(outcome=Outcome.CANCELLED, error=f"Stopped: {why}", result=msgspec.Raw(result)))
        case "deaf":
            await asyncio.Event().wait()
        case "dies-by-itself":
            print("the disk is full", file=sys.stderr)
            return 3
        case "dies-by-a-signal":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "dies-in-a-frame":
            os.write(pipe_fd(), b"\0\0\1\0half")
            return 0
        case "dies-over-its-probes":
            script = f"setsid sleep {SLEEP_S} & exec sleep {SLEEP_S}"
            data = {"name": "p", "type": "command", "command": ["sh", "-c", script], "timeoutMs": 60_000}
            look = Looks((msgspec.convert(data, ProbeSpec),), asked_nothing, commands=True).before()
            going = asyncio.create_task(look)
            await stop
            going.cancel()
        case "babbles":
            os.write(pipe_fd(), b"Hello, world")
            await asyncio.Event().wait()
    return 0


async def asked_nothing(_: ProbeSpec) -> str:
    return ""


def pipe_fd() -> int:
    """Return the pipe that is neither standard error nor standard output."""
    for file in Path("/proc/self/fd").iterdir():
        try:
            if int(file.name) > 2 and str(file.readlink()).startswith("pipe:"):
                os.write(int(file.name), b"")
                return int(file.name)
        except OSError:
            continue
    raise AssertionError("no pipe")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
