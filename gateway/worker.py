"""The worker process: the backend's importing loop in a thread, ended when the process has to stop."""

import asyncio
from typing import Protocol


class Work(Protocol):
    """A loop over the work queue: lease, run, retry, and look after the store."""

    def run(self) -> None:
        """Works until `stop`; finishes what it has begun, then returns. *Blocking.*"""
        ...

    def stop(self) -> None:
        """Asks `run` to return; from any thread."""
        ...


async def serve(work: Work, stop: asyncio.Event) -> None:
    """Runs the loop until `stop` is set; raises what the loop raises."""
    running = asyncio.create_task(asyncio.to_thread(work.run))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        work.stop()
        await running
    finally:
        stopping.cancel()
