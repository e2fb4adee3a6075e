"""A made-up cluster, clock and worker group around a real coordinator."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pft_ray.cluster.cluster_view import NodeView
from pft_ray.cluster.elastic_settings import ElasticSettings, NodeKind
from pft_ray.cluster.resizer import Resizer
from pft_ray.scaling import Hold, Limits
from tests.cluster.reserved import reserve

SLOW = [{"serial_s": 0.1, "parallel_s": 1000.0, "keep_s": 0.0}] * 2


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeNodes:
    """Nodes by name; remembers what was asked of it."""

    there: dict[str, NodeView] = field(default_factory=dict)
    pending: dict[str, int] = field(default_factory=dict)
    mute: set[str] = field(default_factory=set)
    asked: list[int] = field(default_factory=list)
    drained: list[str] = field(default_factory=list)
    impossible: bool = False

    def add(self, name: str, **more) -> None:
        self.there[name] = NodeView(name, "kind", more.pop("num_slots", 1), **more)

    def change(self, name: str, **more) -> None:
        self.there[name] = replace(self.there[name], **more)

    def views(self, roster):
        return [
            replace(view, is_ours=bool(roster.get(name)) and view.is_ours)
            for name, view in self.there.items()
        ]

    def num_pending(self):
        return self.pending

    def answers(self, node_id):
        return node_id not in self.mute

    def ask(self, num_workers):
        self.asked.append(num_workers)

    def cannot_add(self):
        return self.impossible

    def drain(self, node_id, reason, deadline_s):
        self.drained.append(node_id)
        self.change(node_id, is_draining=True, leaves_in_s=deadline_s)


class Watched:
    """The real coordinator; remembers calls, and may be out of reach."""

    def __init__(self, coordinator) -> None:
        self.inner = coordinator
        self.calls: list[tuple] = []
        self.told: list[tuple[dict, bool]] = []
        self.unreachable = False
        self.loses_reply_of = ""

    def __getattr__(self, name):
        def call(*args, **named):
            if self.unreachable:
                raise ConnectionError(name)
            result = getattr(self.inner, name)(*args, **named)
            if name == "tell_scaling":
                self.told.append((args[0], named["is_new"]))
            elif name != "scaling_view":
                self.calls.append((name, *args, result))
            if name == self.loses_reply_of:
                self.loses_reply_of = ""
                raise ConnectionError(name)
            return result

        return call

    def named(self, name):
        return [call for call in self.calls if call[0] == name]

    @property
    def stage(self):
        return self.inner.scaling_view()["boundary"]["stage"]


class Run:
    """A resizer, and a worker group that makes grants of three steps."""

    def __init__(self, folder, **settings) -> None:
        self.clock = Clock()
        most = settings.get("limits", limits_of()).num_shares
        self.reserved = reserve(folder, num_shares=most)
        self.coordinator = self.reserved.coordinator()
        self.coordinator._resizes.boundary.clock = self.clock
        self.line = Watched(self.coordinator)
        self.nodes = FakeNodes()
        self.settings = settings_of(**settings)
        self.resizer = Resizer(self.settings, self.nodes, self.line, self.clock)
        self.roster: dict[str, int] = {}
        self.tokens: list[bytes] = []
        self.step, self.attempt, self.waits = 0, 0, False
        self._serial = 0

    def start(self, *names: str, reason: str = "start") -> None:
        """A group with one worker on each named node opens its attempt."""
        self.roster = {name: names.count(name) for name in names}
        self.tokens = []
        for _ in names:
            self._serial += 1
            self.tokens.append(self._serial.to_bytes(16, "big"))
        self.attempt = self.coordinator.open_attempt(self.tokens, self.step, reason)
        self.coordinator.tell_step_times(SLOW)
        self.waits = False
        for name in names:
            if name != "head":
                self.nodes.change(name, is_ours=True)

    def work(self) -> str:
        """One grant, or one look of parked workers; returns the reply's status."""
        token = self.tokens[0]
        if self.waits and self.coordinator.park(self.attempt, 0, token, self.step):
            return "parked"
        self.waits = False
        stop = min(self.step + 3, 12)
        replies = {
            self.coordinator.request(self.attempt, rank, each, self.step, stop).status
            for rank, each in enumerate(self.tokens)
        }
        (status,) = replies
        if status == "granted":
            self.step = stop
            self.coordinator.progress(self.attempt, self.step)
        if status == "boundary":
            self.coordinator.checkpoint_registered(self.attempt, self.step, "c")
            self.waits = True
            self.coordinator.park(self.attempt, 0, token, self.step)
        return status

    def look(self, seconds: float = 2.0) -> int | None:
        """The controller polls the running group some seconds later."""
        self.clock.now += seconds
        return self.resizer.while_running(self.roster)

    def wait(self, seconds: float = 1.0) -> int | None:
        """The controller asks for the size of a group that does not run."""
        self.clock.now += seconds
        return self.resizer.at_start()

    def last_told(self) -> dict:
        return self.line.told[-1][0]


def limits_of(least=1, most=3, **more) -> Limits:
    chosen = {"num_shares": most, "resize_s": 1.0, "min_interval_s": 0.0} | more
    return Limits(least, most, **chosen)


def settings_of(**more) -> ElasticSettings:
    chosen = {
        "run_id": "run-1",
        "start_workers": 1,
        "cpus_per_worker": 1.0,
        "limits": limits_of(),
        "phase_steps": (6, 6),
        "node_start_s": 10.0,
        "placement_timeout_s": 60.0,
        "kinds": (NodeKind("kind", 1, 4, "", is_spot=False),),
        "max_nodes": 4,
    }
    return ElasticSettings(**(chosen | more))


def raising(snapshot):
    """A plug-in that fails."""
    raise ZeroDivisionError("with private text")


SCRIPT: list = []


def scripted(snapshot):
    """A plug-in that says what the test wants."""
    return SCRIPT[0] if SCRIPT else Hold("Nothing to do.")


SCRIPTED = "tests.cluster.resizing:scripted"


def scripted_run(folder, decision, *names, **limits):
    run = Run(folder, policy=SCRIPTED, limits=limits_of(1, 3, **limits))
    for name in names:
        run.nodes.add(name)
    run.start(*names)
    SCRIPT[:] = [decision]
    return run
