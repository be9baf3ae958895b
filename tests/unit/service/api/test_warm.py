"""Routing is built before there are callers, so that the first scrape holds up nobody."""

import asyncio
import time

from fastapi import FastAPI

from service.api.warm import warm


def test_the_first_scrape_after_it_costs_what_later_ones_cost():
    app = FastAPI()
    seen = []

    async def other():
        return {}

    for number in range(50):
        app.get(f"/{number}")(other)

    @app.get("/metrics")
    async def metrics():
        seen.append(time.thread_time())
        return {}

    async def use():
        await warm(app)
        took = []
        for _ in range(2):
            begun = time.thread_time()
            await warm(app)
            took.append(time.thread_time() - begun)
        return took

    first, second = asyncio.run(use())
    assert len(seen) == 3
    assert first < 2 * second + 0.002


def test_nothing_is_sent_to_anyone_and_what_waits_for_the_caller_goes_on_waiting():
    asked = []

    async def app(scope, receive, send):
        asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        leaving = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        assert not leaving.done()
        leaving.cancel()

    asyncio.run(warm(app))
    assert asked == ["/metrics", "/-"]
