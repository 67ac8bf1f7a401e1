"""The pace and the key of requests to a chat endpoint. tests/trainer/teaching/test_teacher.py runs whole runs."""

import asyncio

from querylift.trainer.chat.chat_run import RequestPacer
from querylift.trainer.chat.endpoint_plan import choose_api_key


def test_the_teachers_own_key_comes_before_that_of_openai() -> None:
    assert choose_api_key({"OPENAI_API_KEY": "o", "QUERYLIFT_TEACHER_API_KEY": "t"}) == "t"
    assert choose_api_key({"OPENAI_API_KEY": "o", "QUERYLIFT_TEACHER_API_KEY": ""}) == "o"
    assert choose_api_key({}) == "none"


def test_requests_are_spread_over_the_minute() -> None:
    pauses_s: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses_s.append(seconds)

    async def record_pauses(per_minute: float | None) -> list[float]:
        pauses_s.clear()
        pacer = RequestPacer(per_minute, clock=lambda: 1000.0, sleep=sleep)
        for _ in range(4):
            await pacer.wait_for_turn()
        return list(pauses_s)

    assert asyncio.run(record_pauses(30)) == [2.0, 4.0, 6.0]
    assert asyncio.run(record_pauses(None)) == []
