"""Every interleaving of attempts that claim, commit and finish one output."""

import functools
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.search import Actor, Objects, Program, Replayed, Search, Violation, World
from worker.checkpoint import claim as attempt
from worker.checkpoint.claim import Identity, claim_attempt, ensure_newest, read_attempt
from worker.checkpoint.commit import (
    PART_NAMES,
    CommitName,
    Part,
    list_commits,
    publish_commit,
    read_commit_record,
)
from worker.checkpoint.output_owner import owner_of
from worker.checkpoint.publication_record import stage_part
from worker.checkpoint.publish import publish, settle
from worker.checkpoint.tensor_files import stream_bytes
from worker.errors import ConfigurationError, Superseded

RESULT = ("final/model.json",)
STEPS = 0  # and one more per epoch


def require_own(store: Replayed, own: Identity) -> None:
    owner = owner_of(store)
    if owner and own != owner:
        raise ConfigurationError("the output belongs to another job")


Claim = Callable[[Replayed, Identity], int]
Finish = Callable[[Replayed, int, int], None]


def claim(store: Replayed, identity: Identity) -> int:
    return claim_attempt(store, identity, {}, functools.partial(require_own, store, identity))


def finish(store: Replayed, number: int, epochs: int) -> None:
    """As `train/finish.py` does; what it writes is of this attempt alone."""
    parts = [
        stage_part(store, number, name, stream_bytes(f"{name} of {number}".encode()))
        for name in RESULT
    ]
    check = functools.partial(ensure_newest, store, number)
    step = STEPS + epochs
    result = {"epochs": epochs, "step": step, "weights": {"step": step, "accuracy": None}}
    if not publish(store, number, parts, result=result, check=check):
        raise Superseded("another attempt has meanwhile finished the job")


def commit(store: Replayed, name: CommitName) -> None:
    ensure_newest(store, name.attempt)
    parts = [Part(part, 1, hashlib.sha256(part.encode()).hexdigest()) for part in PART_NAMES]
    publish_commit(store, name, parts)


def life(store: Replayed, name: str, epochs: int, claim: Claim, finish: Finish) -> str:
    """An attempt from its start to its end, without the training."""
    setattr(attempt, "_origin", lambda: {"id": name})
    number = claim(store, {"job": name.split()[0]})
    if settle(store, epochs):
        return "DONE"
    commits = [name for name in list_commits(store) if read_commit_record(store, name)]
    for step in range(commits[0].step if commits else 0, STEPS + epochs):
        commit(store, CommitName(step + 1, number))
    if settle(store, epochs):
        return "DONE"
    ensure_newest(store, number)
    finish(store, number, epochs)
    return "DONE"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    origin = attempt._origin
    yield
    attempt._origin = origin


def actor(name: str, epochs: int = 1, claim: Claim = claim, finish: Finish = finish) -> Actor:
    """An attempt; the first word of its name is its job."""
    program: Program = functools.partial(life, name=name, epochs=epochs, claim=claim, finish=finish)
    return Actor(name, program)


@functools.cache
def parsed(data: bytes) -> Any:
    return json.loads(data)


@functools.cache
def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def owners(objects: Objects) -> set[str]:
    """The jobs that have claimed an output."""
    return {
        str(parsed(data)["identity"]["job"])
        for key, data in objects.items()
        if key.startswith("attempts/")
    }


def foremost(objects: Objects) -> dict[str, Any]:
    """What `done.json` is to say: the first publication of those with the most epochs."""
    names = sorted(key for key in objects if key.startswith("publications/"))
    results = [parsed(objects[name])["done"] for name in names]
    return max(results, key=lambda result: result["epochs"], default={})


def check_result(was: bytes | None, objects: Objects) -> None:
    """A result is replaced by one of more epochs alone, and then part by part."""
    done = objects.get("done.json")
    if was and was != done and (not done or parsed(done)["epochs"] <= parsed(was)["epochs"]):
        raise Violation("what was done has changed")
    if done:
        next_parts = {part["name"]: part for part in foremost(objects).get("parts", ())}
        for part in parsed(done)["parts"]:
            digest = digest_of(objects.get(part["name"], b""))
            if digest not in (part["sha256"], next_parts.get(part["name"], part)["sha256"]):
                raise Violation(f"{part['name']} is not what done.json says")


def check(before: World | None, world: World) -> None:
    """What must hold in every world; the name of an actor begins with that of its job."""
    jobs = owners(world.objects)
    if len(jobs) > 1:
        raise Violation("two jobs have claimed one output")
    was = before.objects.get("done.json") if before else None
    check_result(was, world.objects)
    attempts = sum(key.startswith("attempts/") for key in world.objects)
    for actor in world.actors:
        job = actor.name.split()[0]
        if actor.ended == "CONFIGURATION" and jobs != {"theirs" if job == "ours" else "ours"}:
            raise Violation(f"{actor.name} is refused, though nobody else owns the output")
        if actor.ended == "SUPERSEDED" and attempts < 2:
            raise Violation("superseded by nobody")


class Attempts(Search):
    """After each step, a new attempt of the owner must succeed, and another job's be refused."""

    def __init__(self, *rescuers: Actor) -> None:
        super().__init__(check)
        self._rescuers = rescuers or (actor("ours rescue"), actor("theirs rescue"))

    def rescues(self, world: World) -> Iterator[tuple[Actor, str]]:
        jobs = owners(world.objects)
        for rescuer in self._rescuers:
            refused = jobs and rescuer.name.split()[0] not in jobs
            yield rescuer, "CONFIGURATION" if refused else "DONE"
            after = self.alone(world.joined(rescuer), len(world.actors)).objects
            if refused and after != world.objects:
                raise Violation("a refused start leaves something")
            if not refused and parsed(after["done.json"]) != (
                foremost(after) or parsed(after["done.json"])
            ):
                raise Violation("a new attempt ends beside another result")


@pytest.mark.e2e
def test_two_attempts_of_one_job_in_every_order() -> None:
    assert Attempts().exhaust((actor("ours a"), actor("ours b"))) > 1000


def test_two_jobs_on_one_output_in_every_order() -> None:
    assert Attempts().exhaust((actor("ours a"), actor("theirs b"))) > 50


@pytest.mark.e2e
def test_an_attempt_that_trains_on_while_the_result_is_copied() -> None:
    """Every order of an attempt that has published its result and one of more epochs."""
    search = Attempts(actor("ours rescue"), actor("ours longer rescue", epochs=2))
    published = World({}, (actor("ours a").started(),))
    while not any(key.startswith("publications/") for key in published.objects):
        published = published.after(0)
    assert search.exhaust_from(published.joined(actor("ours b", epochs=2))) > 1000


def test_a_paused_attempt_writes_nothing_over_the_result_of_more_epochs() -> None:
    """Paused at any request, it wakes once another has trained on to the end."""
    assert Attempts(actor("ours longer rescue", epochs=2)).exhaust((actor("ours a"),)) > 20


def test_attempts_whose_requests_fail_anywhere() -> None:
    """They come to nothing, or only their answers are lost."""
    assert Attempts().exhaust((actor("ours a"),), faults=1) > 50


@pytest.mark.parametrize("seed", range(20))
def test_three_attempts_in_an_order_of_chance(seed: int) -> None:
    chance = random.Random(seed)
    search = Attempts()
    for _ in range(20):
        actors = [
            actor(f"{chance.choice(['ours', 'ours', 'theirs'])} {letter}", chance.choice([1, 1, 2]))
            for letter in "abc"
        ]
        search.wander(tuple(actors), chance.randrange(3), chance)


def claim_first(store: Replayed, identity: Identity) -> int:
    """As it was: a number first, and then a look at the attempt before."""
    number = claim_attempt(store, identity, {}, lambda: None)
    earlier = read_attempt(store, number - 1) if number > 1 else None
    if earlier and identity != earlier.identity:
        raise ConfigurationError("the output belongs to another job")
    return number


def write_in_place(store: Replayed, number: int, epochs: int) -> None:
    """As it was: the result where users look for it, and then `done.json`."""
    ensure_newest(store, number)
    fields: list[dict[str, Any]] = []
    for name in ("final/model.safetensors", "final/model.json"):
        data = f"{name} of {number}".encode()
        store.put(name, data)
        fields.append({"name": name, "sha256": hashlib.sha256(data).hexdigest()})
    done = {
        "attempt": number,
        "epochs": epochs,
        "step": STEPS,
        "weights": {"step": STEPS},
        "parts": fields,
    }
    check = functools.partial(ensure_newest, store, number)
    if not store.put_if_absent("done.json", json.dumps(done).encode(), check):
        raise Superseded("done")


def test_the_search_finds_the_faults_that_it_is_for() -> None:
    with pytest.raises(Violation, match="two jobs have claimed one output"):
        Attempts().exhaust(
            (actor("ours a", claim=claim_first), actor("theirs b", claim=claim_first))
        )
    with pytest.raises(Violation, match=r"final/model\.\w+ is not what done.json says"):
        first, second = (actor(f"ours {name}", finish=write_in_place) for name in "ab")
        Attempts().exhaust((first, second))


def test_what_is_published_is_completed_by_whoever_comes_by() -> None:
    """Of an attempt that crashed right after it had published, everything is kept."""
    world = World({}, (actor("ours a").started(),))
    while not any(key.startswith("publications/") for key in world.objects):
        world = world.after(0)
    assert "done.json" not in world.objects
    after = Attempts().alone(world.joined(actor("ours b")), 1)
    assert after.actors[1].ended == "DONE"
    assert after.objects["final/model.json"] == b"final/model.json of 1"
    assert json.loads(after.objects["done.json"])["attempt"] == 1
    assert not any("/result/" in key for key in after.objects)
