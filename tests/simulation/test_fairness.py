"""Apps share an executor: what one has queued does not hold up another."""

from libs.events.model import CommandRejected, NodeStarted, RunAccepted
from tests.documents import code, document, edges, end, start
from tests.simulation.world import World

QUEUED = 300
SLOTS = 2


def test_queued_runs_of_one_app_do_not_delay_anothers_first() -> None:
    world = World(slots={"wait": SLOTS, "process": SLOTS})
    digest = world.add("d", document([start("q"), code("a"), code("b"), end()], edges("start > a > b > end")))
    crowd = {world.request(digest, app_id="crowd") for _ in range(QUEUED)}
    other = world.request(digest, app_id="other")
    world.start_executor()
    world.run(until=lambda: any(key.startswith(f"{other}/b/") for key in world.effects.calls))
    seen = world.events()
    accepted = next(n for n, one in enumerate(seen) if one.run_id == other and isinstance(one.event, RunAccepted))
    started = next(
        n
        for n, one in enumerate(seen)
        if one.run_id == other and isinstance(one.event, NodeStarted) and one.event.node_id == "a"
    )
    before = [
        one
        for one in seen[accepted:started]
        if one.run_id in crowd and isinstance(one.event, NodeStarted) and one.event.node_type == "code"
    ]
    # Those that have the slots already, and one turn of the crowd; without turns it would be all of them.
    assert len(before) <= SLOTS + 1
    world.close()


def test_a_limit_of_runs_holds_when_the_owner_dies_at_any_append() -> None:
    landings = 0
    while _two_of_four_are_accepted(landings):
        landings += 1
    assert landings > 5


def _two_of_four_are_accepted(landings: int) -> bool:
    """The owner dies behind so many appends; whether it came to that."""
    world = World()
    digest = world.add("d", document([start("q"), code("a"), end()], edges("start > a > end")))
    runs = [world.request(digest, max_app_runs=2) for _ in range(4)]
    world.start_executor()
    died = world.run(landings=landings, until=lambda: len(world.effects.calls) == 2)
    if died:
        world.crash()
        world.start_executor()
        world.run(until=lambda: len(world.effects.finished) == 2)
    accepted = [one.run_id for one in world.events() if isinstance(one.event, RunAccepted)]
    rejected = [one.event.code for one in world.events() if isinstance(one.event, CommandRejected)]
    assert (accepted, rejected) == (runs[:2], ["too_many_requests"] * 2)
    world.close()
    return died


def test_all_of_them_end() -> None:
    world = World(slots={"wait": SLOTS, "process": SLOTS}, delay_s=0.01)
    digest = world.add("d", document([start("q"), code("a"), end()], edges("start > a > end")))
    runs = [world.request(digest, app_id=f"app-{number % 7}") for number in range(100)]
    world.start_executor()
    world.run(horizon_s=10_000)
    assert {world.fold(run_id).status for run_id in runs} == {"succeeded"}
    world.close()
