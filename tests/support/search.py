"""A search of all that several attempts can do to one output, by the code that does it.

An attempt is a function of a store, run by the real functions of the worker. It is replayed on the
answers that it has had so far, up to the request that comes next: so the state of an attempt is
those answers, and all interleavings of several can be visited without a thread. A crash needs no
step of its own: an attempt that is never run again has crashed, and one that is run again much
later was paused.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from worker.errors import InfrastructureError, WorkerError
from worker.store import ObjectInfo, ObjectMissing, Piece

Objects = dict[str, bytes]
Program = Callable[["Replayed"], str]
"""What an attempt does; returns how it ended."""


class Request(NamedTuple):
    """A request of an attempt: the method of the store, the key, and what it writes over what."""

    method: str
    key: str
    data: bytes = b""
    version: str = ""


class _Suspended(BaseException):
    """The attempt has made a request that is not answered yet."""

    def __init__(self, request: Request) -> None:
        self.request = request


class Replayed:
    """A `Store` that gives the answers it is told, and suspends the attempt when they are over."""

    uri = "mem://output/"
    fences = True

    def __init__(self, answers: tuple[Any, ...]) -> None:
        self._answers = list(reversed(answers))

    def _ask(self, *request: Any) -> Any:
        if not self._answers:
            raise _Suspended(Request(*request))
        answer = self._answers.pop()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        data: bytes = self._ask("get", key)
        return data[start:stop]

    def put(self, key: str, data: bytes) -> None:
        self._ask("put", key, data)

    def put_stream(self, key: str, size: int, pieces: Iterable[Piece]) -> None:
        self.put(key, b"".join(pieces))

    def put_if_absent(
        self, key: str, data: bytes, check: Callable[[], None] = lambda: None
    ) -> bool:
        check()
        return bool(self._ask("put_if_absent", key, data))

    def replace(self, key: str, size: int, pieces: Iterable[Piece], version: str) -> bool:
        return bool(self._ask("replace", key, b"".join(pieces), version))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        yield from self._ask("list", prefix)

    def delete(self, key: str) -> None:
        self._ask("delete", key)

    def abort_uploads(self, key: str) -> int:
        return 0


def served(objects: Objects, request: Request) -> tuple[Any, Objects]:
    """The answer to a request, and the objects after it."""
    method, key, data, version = request
    match method:
        case "get":
            missing = ObjectMissing(f"{key}: no such object")
            return objects.get(key, missing), objects
        case "list":
            found = sorted(name for name in objects if name.startswith(key))
            return tuple(
                ObjectInfo(
                    key=name, size=len(objects[name]), modified=0.0, version=objects[name].hex()
                )
                for name in found
            ), objects
        case "put":
            return None, {**objects, key: data}
        case "put_if_absent" if key in objects:
            return objects[key] == data, objects
        case "put_if_absent":
            return True, {**objects, key: data}
        case "replace" if objects.get(key, b"").hex() == version:
            return True, {**objects, key: data}
        case "replace":
            return False, objects
        case "delete":
            return None, {name: kept for name, kept in objects.items() if name != key}
    raise AssertionError(method)


@dataclass(frozen=True, eq=False)
class Actor:
    """An attempt under way; `ended` says how, once it has.

    There is one object for each history of answers, so that each is replayed once only.
    """

    name: str
    program: Program
    answers: tuple[Any, ...] = ()
    request: Request | None = None
    ended: str | None = None
    _next: "dict[Any, Actor]" = field(default_factory=dict)

    def started(self) -> "Actor":
        """The attempt up to its first request."""
        return self._replayed("", ())

    def answered(self, answer: Any) -> "Actor":
        """The attempt once it has this answer, up to its next request."""
        key = str(answer) if isinstance(answer, Exception) else answer
        return self._replayed((type(answer), key), (*self.answers, answer))

    def _replayed(self, key: Any, answers: tuple[Any, ...]) -> "Actor":
        if key not in self._next:
            request = ended = None
            try:
                ended = self.program(Replayed(answers))
            except _Suspended as suspended:
                request = suspended.request
            except WorkerError as error:
                ended = error.code.name
            self._next[key] = Actor(self.name, self.program, answers, request, ended)
        return self._next[key]


@dataclass(frozen=True)
class World:
    """The objects of an output, the attempts, and how many requests may still fail."""

    objects: Objects
    actors: tuple[Actor, ...]
    faults: int = 0

    @property
    def key(self) -> Any:
        """What tells this state from others."""
        return frozenset(self.objects.items()), self.actors, self.faults

    def after(self, index: int) -> "World":
        """The world once an attempt has had its request answered."""
        request = self.actors[index].request
        assert request
        answer, objects = served(self.objects, request)
        return self._with(index, answer, objects, self.faults)

    def failed(self, index: int, lost: bool) -> "World":
        """The world once a request has failed, with its effect if only the answer was `lost`."""
        request = self.actors[index].request
        assert request
        objects = served(self.objects, request)[1] if lost else self.objects
        error = InfrastructureError("the store gave up")
        return self._with(index, error, objects, self.faults - 1)

    def _with(self, index: int, answer: Any, objects: Objects, faults: int) -> "World":
        actor = self.actors[index].answered(answer)
        return World(objects, (*self.actors[:index], actor, *self.actors[index + 1 :]), faults)

    def running(self) -> list[int]:
        """The attempts that have not ended."""
        return [index for index, actor in enumerate(self.actors) if actor.ended is None]

    def joined(self, actor: Actor) -> "World":
        """The world with another attempt, which has just been started."""
        return replace(self, actors=(*self.actors, actor.started()))


class Violation(Exception):
    """Something happened that must not."""


Check = Callable[[World | None, World], None]
"""Is called with the world before and after each step; raises `Violation`."""


class Search:
    """Visits worlds; in each, a rescue is tried as well, after which the others go on.

    Args:
        check: What must hold.
    """

    def __init__(self, check: Check) -> None:
        self._check = check
        self._visited: set[Any] = set()
        self._run_alone: dict[Any, tuple[Objects, Actor]] = {}

    def rescues(self, world: World) -> Iterator[tuple[Actor, str]]:
        """The attempts that may start when all others have crashed or are paused; their ends."""
        raise NotImplementedError

    def exhaust(self, actors: tuple[Actor, ...], faults: int = 0) -> int:
        """Visit all that can be; returns the number of worlds."""
        return self.exhaust_from(World({}, tuple(actor.started() for actor in actors), faults))

    def exhaust_from(self, first: World) -> int:
        """Visit all that can follow; returns the number of worlds."""
        self._check(None, first)
        stack = [first]
        while stack:
            world = stack.pop()
            if world.key in self._visited:
                continue
            self._visited.add(world.key)
            self._rescue(world)
            for index in world.running():
                for after in self._successors(world, index):
                    self._check(world, after)
                    stack.append(after)
        return len(self._visited)

    def wander(self, actors: tuple[Actor, ...], faults: int, chance: random.Random) -> None:
        """Follow one interleaving, by chance, with a rescue at one place."""
        world = World({}, tuple(actor.started() for actor in actors), faults)
        rescue_at = chance.randrange(150)
        for step in itertools.count():
            running = world.running()
            if not running:
                return
            after = chance.choice(list(self._successors(world, chance.choice(running))))
            self._check(world, after)
            world = after
            if step == rescue_at:
                self._rescue(world)

    def _successors(self, world: World, index: int) -> Iterator[World]:
        yield world.after(index)
        if world.faults:
            yield world.failed(index, lost=False)
            yield world.failed(index, lost=True)

    def _rescue(self, world: World) -> None:
        for rescue, end in self.rescues(world):
            after = self.alone(world.joined(rescue), len(world.actors))
            if after.actors[-1].ended != end:
                raise Violation(f"a new attempt ends with {after.actors[-1].ended}, not {end}")
            for order in {tuple(world.running()), tuple(reversed(world.running()))}:
                woken = after
                for index in order:
                    woken = self.alone(woken, index)

    def alone(self, world: World, index: int) -> World:
        """The world after an attempt has run to its end alone."""
        key = frozenset(world.objects.items()), world.actors[index]
        if key not in self._run_alone:
            after = World(world.objects, (world.actors[index],))
            while after.running():
                before, after = after, after.after(0)
                self._check(before, after)
            self._run_alone[key] = after.objects, after.actors[0]
        objects, actor = self._run_alone[key]
        return World(objects, (*world.actors[:index], actor, *world.actors[index + 1 :]))
