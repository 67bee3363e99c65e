"""Load of a replica: what it reported, and what was sent to it since."""

from __future__ import annotations

from dataclasses import dataclass

from fastslow.serve.engines.routing.report import ReplicaReport
from fastslow.serve.engines.routing.request import RoutedRequest
from fastslow.serve.engines.routing.settings import RoutingSettings


@dataclass(frozen=True, slots=True)
class Sent:
    """A request on its way to its end."""

    deep: bool
    urgent: bool
    unread: float  # prompt tokens that its replica has not read
    at: float


class ReplicaLoad:
    """Load of a replica. Reports are about a second old, and several routers may send to it. So the truth is the
    report, and what this router knows has changed since; and never less than what this router itself has there."""

    def __init__(self, settings: RoutingSettings) -> None:
        self._settings = settings
        self.heard_at: float | None = None  # when the latest report came, on this router's clock
        self._report: ReplicaReport | None = None
        self._at = 0.0  # of the report, at most when it came
        self._mine: dict[str, Sent] = {}
        self._since = _Count()  # all: as reported, and as it changed
        self._unread = 0.0  # tokens of prompts that it has to read, as far as this router knows,
        self._unread_at = 0.0  # at this time: it still reads
        self._step = settings.step_seconds
        self._rate = settings.prompt_rate

    @property
    def answers(self) -> int:
        """All that it answers, or that wait there."""
        return max(len(self._mine), self._since.answers)

    @property
    def urgent(self) -> int:
        """Of them, quick requests with a target."""
        return max(sum(sent.urgent for sent in self._mine.values()), self._since.urgent)

    def report(self, report: ReplicaReport, now: float) -> None:
        """It says how it is."""
        self._report = report
        self._at, self.heard_at = min(report.at, now), now  # its clock may run ahead
        self._step = _step(report) or self._settings.step_seconds
        self._rate = report.prompt_rate or self._settings.prompt_rate
        self._since = _Count(report.answers, report.deep, report.urgent)
        self._unread, self._unread_at = 0.0, self._at
        for sent in self._mine.values():
            if sent.at > self._at:
                self._since.add(sent, 1)
                self._unread += sent.unread

    def sent(self, request_id: str, sent: Sent) -> None:
        """A request goes there."""
        self._mine[request_id] = sent
        self._since.add(sent, 1)
        self._unread, self._unread_at = self._to_read(sent.at) + sent.unread, sent.at

    def ended(self, request_id: str) -> None:
        """It is over."""
        sent = self._mine.pop(request_id, None)
        if sent is not None:
            self._since.add(sent, -1)

    def seconds(self, request: RoutedRequest, cached: float, now: float) -> float:
        """Estimate the seconds that a request would wait there for its first token, and lose by what runs beside it.
        cached: tokens of its prompt that the replica has read before."""
        settings, report = self._settings, self._report
        places = settings.places if report is None or not report.places else report.places
        steps, queued = settings.full_steps * self.answers / places, 0.0
        if request.urgent:
            # engines let it pass answers that wait, but where all places are taken it waits for an end
            if self.answers >= places:
                mine = sum(sent.deep for sent in self._mine.values())
                steps += settings.deep_steps * max(mine, self._since.deep)
        elif report is not None and any(report.waiting.values()):
            queued = report.queue_seconds
        reading = (max(0.0, request.prompt_tokens - cached) + self._to_read(now)) / self._rate
        return reading + queued + steps * self._step

    def _to_read(self, now: float) -> float:
        return max(0.0, self._unread - self._rate * max(0.0, now - self._unread_at))


def _step(report: ReplicaReport) -> float:
    """Seconds of a step with what runs now; what other modes took may be long ago."""
    known = report.step_seconds
    now = [known[mode] for mode, count in report.running.items() if count and mode in known]
    return max(now or known.values(), default=0.0)


@dataclass(slots=True)
class _Count:
    answers: int = 0
    deep: int = 0
    urgent: int = 0

    def add(self, sent: Sent, count: int) -> None:
        """Count one more, or one less; ends may be heard of twice, by a report and by this router."""
        self.answers = max(0, self.answers + count)
        self.deep = max(0, self.deep + count * sent.deep)
        self.urgent = max(0, self.urgent + count * sent.urgent)
