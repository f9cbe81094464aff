"""What does a code node cost? Latency of a trivial function in the warm sandbox, fully contained, and calls a second.

`at once`: each call right after the one before; `paused`: 5 ms between calls, as in a run with other steps; JavaScript
where its engine is installed; a template in the sandbox and one that is cheap enough to be rendered inline.

    python -m benchmarks.sandbox [--calls 300]
"""

import argparse
import asyncio
import importlib.util
import json
import time
from collections.abc import Awaitable, Callable

from benchmarks.machine import machine
from services.executor.sandbox import Sandbox
from services.executor.sandbox.inside.templates import ENVIRONMENT, render_bounded

CODE = {"python3": "def main(a):\n    return {'b': a + 1}\n", "javascript": "const main = ({a}) => ({b: a + 1})"}


async def _call(sandbox: Sandbox, language: str = "python3") -> None:
    outcome = await sandbox.run(language, CODE[language], {"a": 1}, timeout_s=10)
    assert outcome.result == {"b": 2}, outcome.error


async def _render(sandbox: Sandbox) -> None:
    assert await sandbox.render("{{ a * 2 }}", {"a": 1}, limit_chars=100, timeout_s=10) == "2"


async def _latencies_ms(work: Callable[[], Awaitable[None]], calls: int, pause_s: float) -> dict[str, float]:
    spent: list[float] = []
    for _ in range(calls):
        began = time.perf_counter()
        await work()
        spent.append(time.perf_counter() - began)
        await asyncio.sleep(pause_s)
    spent.sort()
    return {"p50_ms": round(spent[calls // 2] * 1e3, 2), "p99_ms": round(spent[calls * 99 // 100] * 1e3, 2)}


async def _calls_per_s(sandbox: Sandbox, calls: int, side_by_side: int) -> float:
    async def some() -> None:
        for _ in range(calls // side_by_side):
            await _call(sandbox)

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(side_by_side)))
    return round(calls / (time.perf_counter() - began), 1)


def _inline_us(rounds: int) -> float:
    template = ENVIRONMENT.from_string("Hello {{ a }}")
    began = time.perf_counter()
    for _ in range(rounds):
        render_bounded(template, {"a": 1}, 100)
    return round((time.perf_counter() - began) / rounds * 1e6, 1)


async def measure(calls: int) -> dict[str, object]:
    sandbox = Sandbox("strict")
    try:
        began = time.perf_counter()
        await sandbox.check()
        start_ms = round((time.perf_counter() - began) * 1e3)
        for _ in range(20):
            await _call(sandbox)
        return {
            "name": "sandbox",
            "n": calls,
            "start_ms": start_ms,
            "at_once": await _latencies_ms(lambda: _call(sandbox), calls, 0),
            "paused": await _latencies_ms(lambda: _call(sandbox), calls, 0.005),
            "javascript": await _latencies_ms(lambda: _call(sandbox, "javascript"), calls, 0.005)
            if importlib.util.find_spec("quickjs")
            else None,
            "template": await _latencies_ms(lambda: _render(sandbox), calls, 0.005),
            "calls_per_s_at_4": await _calls_per_s(sandbox, calls, 4),
            "inline_template_us": _inline_us(10_000),
        }
    finally:
        sandbox.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="latency of code nodes in the sandbox")
    parser.add_argument("--calls", type=int, default=300)
    print(json.dumps({**asyncio.run(measure(parser.parse_args().calls)), **machine()}))  # noqa: T201  # the result
