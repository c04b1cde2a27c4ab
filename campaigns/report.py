"""What a campaign of many answers found: how many of each, the slowest, memory, faults."""

import os
import threading
from collections import Counter
from dataclasses import dataclass, field

from . import mixed

_MOST_FAULTS = 30


@dataclass(slots=True)
class Report:
    """May be written by several threads."""

    slow_s: float
    """What takes longer is a fault."""
    seconds: float = 0.0
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Kind of request and how it was answered -> how many."""
    slowest: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Kind -> seconds, and which request."""
    memory: dict[str, list[float]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def count(self) -> int:
        return sum(self.answers.values())

    def note(self, kind: str, answer: str, took: float, which: str) -> None:
        with self.lock:
            self.answers[kind, answer] += 1
            self.slowest[kind] = max(self.slowest.get(kind, (0.0, "")), (took, which))
        if took > self.slow_s:
            self.fault(f"{kind} took {took:.1f} s ({answer}): {which}")

    def fault(self, words: str) -> None:
        """The first ones tell enough."""
        with self.lock:
            if len(self.faults) < _MOST_FAULTS:
                self.faults.append(words)

    def __str__(self) -> str:
        lines = [f"{self.count} answers in {self.seconds:.0f} s, {self.count / max(self.seconds, 0.001):.0f} a second"]
        lines += [f"{kind:32} {answer:7} {times:7}" for (kind, answer), times in sorted(self.answers.items())]
        lines += [f"slowest {kind:32} {took:6.2f} s, {which}" for kind, (took, which) in sorted(self.slowest.items())]
        lines.append("memory, MB     second quarter   last quarter")
        for role, samples in sorted(self.memory.items()):
            before, after = mixed.quarters(samples)
            lines.append(f"{role:14} {before:14.0f} {after:14.0f}")
        lines.append(f"machine        {os.cpu_count()} cores")
        return "\n".join(lines + [f"  {fault}" for fault in self.faults])
