"""STOW of one instance while processes are killed: the request ends well, or what it brought is found, and once."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from campaigns.faces import Faces
from campaigns.instances import Instance, make
from tests.running import ALONE, RunningGateway

_PATIENCE_S = 30.0


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def spooled(data: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(data / "spool"))


def test_who_dies_while_an_instance_is_handed_over(start_gateway: Callable[..., RunningGateway]) -> None:
    """One gateway, several stations: starting costs seconds."""
    gateway = start_gateway(env=ALONE)
    data = gateway.data
    warm, dies, between, orphan = (make(1, 1, 1, number) for number in (1, 2, 3, 4))

    with Faces(gateway) as faces, ThreadPoolExecutor(1) as pool:

        def found() -> int:
            return len(faces.rows(f"/studies/{warm.study}/instances"))

        def send(instance: Instance) -> set[str]:
            with Faces(gateway) as own:
                return own.stow([instance])

        def hand_over_to_nobody(victim: str, instance: Instance) -> Future[set[str]]:
            """Stops the worker, sends, and kills once the instance is in its hands, or nearly.

            A worker that was stopped before it said that it is free again gets a job: what follows holds then, too.
            """
            os.kill(gateway.pids()["worker"], signal.SIGSTOP)
            before = spooled(data)
            asking = pool.submit(send, instance)
            until(lambda: spooled(data) > before)
            os.kill(gateway.pids()[victim], signal.SIGKILL)
            return asking

        # The first request looks for workers, the ones after it find them.
        assert faces.stow([warm]) == {warm.sop}
        until(lambda: bool(faces.stow([warm])) and gateway.asked("SELECT count(*) FROM work") == 0)

        # The worker: another takes its place, the request is answered.
        before = gateway.restarts("worker")
        asking = hand_over_to_nobody("worker", dies)
        assert asking.result(_PATIENCE_S) == {dies.sop}
        gateway.wait_for_restart("worker", before)
        assert found() == 2
        assert faces.stow([between]) == {between.sop}
        assert found() == 3

        # The web process: nobody was told anything; what had come in whole is imported, once.
        before = gateway.restarts("web")
        asking = hand_over_to_nobody("web", orphan)
        with pytest.raises(httpx.HTTPError):
            asking.result(_PATIENCE_S)
        os.kill(gateway.pids()["worker"], signal.SIGCONT)
        gateway.wait_for_restart("web", before)
        until(lambda: found() == 4)

    def settled() -> bool:
        return not gateway.asked("SELECT count(*) FROM pixel WHERE state='raw'")

    until(settled)
    gateway.restart()
    jobs = gateway.asked("SELECT count(*) FROM job")
    until(lambda: not os.listdir(data / "spool"))
    assert gateway.asked("SELECT count(*) FROM job") == jobs
    assert gateway.asked("SELECT count(*) FROM record") == 4
    assert gateway.asked("SELECT max(version) FROM version") == 4
