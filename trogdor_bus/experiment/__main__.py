"""The program of one experiment, as the coordinator starts it."""

from __future__ import annotations

import asyncio
import os
import sys

import msgspec

from trogdor_bus import badge
from trogdor_bus.errors import BusError, TrogdorBusError
from trogdor_bus.experiment.pipe import Ended, open_pipe
from trogdor_bus.experiment.result import Result
from trogdor_bus.experiment.runner import Runner
from trogdor_bus.faults.experiment import ExperimentSpec
from trogdor_bus.logs import quiet_drivers
from trogdor_bus.registry import registry
from trogdor_bus.states import Outcome

OUTCOMES = {"Pass": Outcome.DONE, "Stopped": Outcome.CANCELLED}


def main() -> int:
    """Run the experiment; return the exit status, which only says whether the pipe was spoken."""
    badge.wear()
    quiet_drivers()
    try:
        return asyncio.run(_main())
    except TrogdorBusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        sys.stderr.flush()


async def _main() -> int:
    pipe = await open_pipe()
    begin = await pipe.begin()
    spec = registry().decode(msgspec.json.decode(begin.spec))
    if not isinstance(spec, ExperimentSpec):
        raise BusError(f"task {begin.id} is no experiment")
    runner = Runner(begin, spec, pipe)

    def stop(why: str) -> None:
        if why:
            runner.interrupt("stopped", why)
        else:
            runner.abandon()  # its keeper sees to it that this ends

    listening = asyncio.create_task(pipe.listen(stop))
    result = await runner.run()
    pipe.tell(_ended(result))
    await pipe.finish()
    listening.cancel()
    sys.stderr.flush()
    os._exit(0)  # threads that wait for silent brokers are not waited for


def _ended(result: Result) -> Ended:
    reasons = "; ".join(reason.text for reason in result.reasons)
    error = "" if result.verdict == "Pass" else f"{result.verdict}: {reasons}"
    outcome = OUTCOMES.get(result.verdict, Outcome.FAILED)
    return Ended(outcome=outcome, error=error, result=msgspec.Raw(msgspec.json.encode(result)))


if __name__ == "__main__":
    sys.exit(main())
