"""`make demo`: the main job, end to end, on a gateway of its own. Exit code 1 if a step is not as it should be."""

import argparse
import signal
import sys
import time
import warnings
from types import FrameType

import httpx

from .gateway import Gateway
from .screen import NotAsItShouldBe, Screen


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Shows the main job, from end to end.")
    parser.add_argument("--keep", action="store_true", help="leave the gateway running until Ctrl-C")
    keep: bool = parser.parse_args().keep
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started it in the background, without SIGINT
        signal.signal(number, _interrupt)
    warnings.filterwarnings("ignore", module="pydicom")  # about the files; they are sent as they are
    screen = Screen()
    began = time.monotonic()
    with Gateway() as gateway:
        from .story import Story  # its libraries load while the gateway starts

        try:
            Story(screen, gateway).tell()
            screen.say(f"\nAll as it should be, in {time.monotonic() - began:.0f} s.", "bold green")
            if keep:
                screen.say("The gateway runs until you press Ctrl-C.")
                gateway.wait()
            else:
                screen.say("This gateway ends now. To try the commands: make demo ARGS=--keep leaves one running.")
        except KeyboardInterrupt:
            screen.say("\nEnded.")
        except (NotAsItShouldBe, httpx.HTTPError) as fault:
            screen.say(f"\nNot as it should be: {fault}", "bold red")
            for line in gateway.last_words():
                screen.say(line, "dim")
            return 1
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
