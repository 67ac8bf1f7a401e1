"""Answers of a teacher that grades, for `TeacherServer`."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from tests.helpers.teacher_server import Handler, make_answer

CRITERIA_GRADES = {"exactness": 2, "topicality": 3, "coverage": 2, "contextual_fit": 1}


def format_judge_answer(**changes: Any) -> str:
    """Return a valid answer as JSON, with these values in place of its own."""
    return json.dumps({"reasoning": "It names the cause.", **CRITERIA_GRADES, "grade": 2} | changes)


def make_judge_handler(*answers: str) -> Handler:
    """Return a handler that gives these answers in turn, and the last one from then on."""
    remaining = list(answers)

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        return make_answer(remaining.pop(0) if len(remaining) > 1 else remaining[0])

    return handle
