"""Options of the commands that ask a large model over HTTP, and the consent to what a run costs."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from querylift.plugin.errors import SettingsError

if TYPE_CHECKING:
    from querylift.trainer.chat.endpoint_plan import EndpointPlan, UsageEstimate

MODEL_OPTIONS = (
    click.option(
        "--thinking/--no-thinking",
        "enable_thinking",
        default=None,
        help="Whether a model that can do both thinks before it answers. vLLM, SGLang and llama-server know this switch "
        "[default: the model's own].",
    ),
    click.option(
        "--extra-body",
        metavar="JSON",
        help="""JSON object whose keys are added to every request, such as '{"top_p": 0.8}'.""",
    ),
)
"""How the model is asked beyond what every endpoint knows."""

PACE_OPTIONS = (
    click.option("--concurrency", type=int, default=8, show_default=True, help="Requests that run at the same time."),
    click.option("--requests-per-minute", type=float, help="Highest rate of requests [default: no limit]."),
    click.option(
        "--token-budget",
        type=int,
        help="Tokens that this run may use, in prompts and answers together [default: no limit].",
    ),
    click.option("--price-in", type=float, help="Price of a million prompt tokens."),
    click.option("--price-out", type=float, help="Price of a million answer tokens."),
    click.option("--yes", is_flag=True, help="Start a run that costs money without asking."),
)
"""How fast the model is asked, and at what price."""


def read_model_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `MODEL_OPTIONS` were given, as arguments of a plan. Raises SettingsError when --extra-body is no object."""
    from querylift.plugin.generators.chat_request import parse_extra_body

    text = options["extra_body"]
    try:
        extra_body = {} if text is None else parse_extra_body(text)
    except ValueError as error:
        raise SettingsError(f"--extra-body is {text!r}: {error}") from None
    return {"enable_thinking": options["enable_thinking"], "extra_body": extra_body}


def confirm_cost(usage: UsageEstimate, plan: EndpointPlan) -> None:
    """Ask on the terminal before a run that costs money. Raises SettingsError when there is no terminal."""
    if not usage.cost:
        return
    sentence = format_usage(usage, plan)
    if not sys.stdin.isatty():
        raise SettingsError(f"{sentence}; no terminal can ask you, so agree with --yes")
    click.confirm(f"{sentence}. Go on?", abort=True, err=True)


def format_usage(usage: UsageEstimate, plan: EndpointPlan) -> str:
    """Return how many requests and tokens a run takes, and what it costs if a price is known."""
    requests = "1 request" if usage.requests == 1 else f"{usage.requests:,} requests"
    verb = "takes" if usage.requests == 1 else "take"
    tokens = (
        f"{requests} to {plan.model} {verb} about {usage.tokens_in:,} prompt tokens and at most "
        f"{usage.tokens_out:,} answer tokens"
    )
    cost = f", and cost at most about {format_price(usage.cost)}" if usage.cost is not None else ""
    return tokens + cost + (f", stopping at {plan.token_budget:,} tokens" if plan.token_budget else "")


def format_price(amount: float) -> str:
    """Return the amount with two decimals, or with as many as show two digits."""
    decimals = 1 - math.floor(math.log10(amount)) if 0 < amount < 0.1 else 2
    return f"{amount:,.{decimals}f}"


def format_left_requests(*, failed: int, left: int, tokens_in: int, plan: EndpointPlan, last_failure: str = "") -> str:
    """Return how many requests are unanswered, and the remedy. The text is empty when all are answered.

    `last_failure` says why the last failed request failed. It is empty when that is not known.
    """
    if not left + failed:
        return ""
    remedy = "run the same command again to go on"
    if left and not tokens_in:
        remedy = f"raise --token-budget: {plan.token_budget:,} does not pay for the first of them"
    requests = "1 request is" if left + failed == 1 else f"{left + failed:,} requests are"
    reason = f" (the last one: {last_failure})" if last_failure else ""
    return f"{requests} left: {failed:,} failed{reason}, {left:,} beyond the token budget; {remedy}"
