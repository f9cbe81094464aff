"""An executor that is asked to stop: what the next owner finds."""

import asyncio

from libs.events.log import Topic
from libs.events.model import PartitionReleased
from tests.documents import chain
from tests.simulation.world import World


def test_a_stop_waits_only_until_its_last_records_are_confirmed_and_points_at_its_checkpoint() -> None:
    world = World()
    world.submit(world.add("document", chain(2)))
    executor = world.start_executor()
    world.run()
    began = world.loop.time()
    stopping = asyncio.ensure_future(executor.stop(), loop=world.loop)
    while not stopping.done():
        world.loop.settle()
        if world.log.waiting():
            world.log.land()
            world.log.deliver()
        elif not stopping.done():
            timer = world.loop.next_timer()
            assert timer is not None
            world.loop.advance(timer)
    assert world.loop.time() - began < 0.1, "it waited for acknowledgements that had come"
    assert isinstance(world.events()[-1].event, PartitionReleased)
    assert world.log.bounds(Topic.INDEX, 0)[1] == 1
    world.close()
