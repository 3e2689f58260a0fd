"""What calls cost, by the price list that comes with `genai-prices`: offline, and as old as that package.

The list is never fetched anew. It is imported at the first call to somebody who has prices.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from yunque.llm.face import Cost, Usage
from yunque.llm.names import RemoteName, parse_remote
from yunque.llm.providers import runs_elsewhere

_IDS = {"openai": "openai", "anthropic": "anthropic", "gemini": "google"}
# What runs on a machine of your own has no price by the token.
_OWN = ("ollama", "vllm", "llamacpp")


@dataclass(frozen=True)
class ListPrice:
    """US dollars per million tokens read, written, and read out of the cache; where it depends on the prompt's length
    the dearest. `date`: the list is at least as new. A price of None is not known."""

    input: float
    output: float
    cached: float | None
    date: str


def cost_of(name: RemoteName, usage: Usage) -> Cost | None:
    """What an answer cost; None where no price is known.

    The first usage of a model looks its prices up (two tenths of a second), later ones are arithmetic.
    """
    if _is_own(name):
        return Cost(0.0)
    now = datetime.now(UTC)
    rates = _rates(name.provider.name if name.provider else "", name.base_url, name.model, now.date())
    if rates is None:
        return None
    cached, written = usage.cached_tokens, usage.cache_write_tokens
    if rates.simple and not (cached and rates.cached is None) and not (written and rates.written is None):
        plain = usage.prompt_tokens - cached - written
        usd = plain * rates.read + usage.completion_tokens * rates.wrote
        usd += cached * (rates.cached or 0.0) + written * (rates.written or 0.0)
        return Cost(usd / 1e6, list_date())
    import genai_prices

    counted = genai_prices.Usage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cache_read_tokens=cached or None,
        cache_write_tokens=written or None,
    )
    try:
        price = rates.model.calc_price(counted, rates.provider, genai_request_timestamp=now)
    except (ValueError, LookupError, TypeError):
        return None  # a kind of token that the list has no price for
    return Cost(float(price.total_price), list_date())


def list_price(name: str) -> ListPrice | None:
    """The prices of the model called `name`; None where they are not known, and for what runs on your own machine.

    Raises UserError for an address that is none.
    """
    remote = parse_remote(name)
    if remote is None or _is_own(remote):
        return None
    today = datetime.now(UTC).date()
    rates = _rates(remote.provider.name if remote.provider else "", remote.base_url, remote.model, today)
    if rates is None:
        return None
    prices = rates.prices
    read, written = _dearest(prices, "input_mtok"), _dearest(prices, "output_mtok")
    if read is None or written is None:
        return None
    return ListPrice(read, written, _dearest(prices, "cache_read_mtok"), list_date())


def _is_own(name: RemoteName) -> bool:
    """Whether the model runs on this machine."""
    own = name.provider is not None and name.provider.name in _OWN and name.on_this_machine
    return own and not runs_elsewhere(name.name)


@dataclass(frozen=True)
class _Rates:
    """A model's prices (US dollars per million tokens) on a day. `simple`: they do not depend on anything else."""

    model: Any
    provider: Any
    prices: Any
    simple: bool
    read: float = 0.0
    wrote: float = 0.0
    cached: float | None = None
    written: float | None = None


@lru_cache(maxsize=256)
def _rates(provider: str, base_url: str, model: str, day: date) -> _Rates | None:
    """What the list says of a model; None where it has no such model."""
    # Whoever sells tokens does so over https.
    if provider in _OWN or (not provider and not base_url.startswith("https://")):
        return None
    try:
        from genai_prices import data_snapshot
        from genai_prices.types import StartDateConstraint
    except ImportError:
        return None
    known = _IDS.get(provider)
    try:
        found, entry = data_snapshot.get_snapshot().find_provider_model(
            model, None, known, None if known else base_url
        )
    except LookupError:
        return None
    prices = entry.get_prices(datetime(day.year, day.month, day.day, 23, 59, tzinfo=UTC))
    told = {name: price for name, price in vars(prices).items() if price is not None}
    read, wrote = told.get("input_mtok"), told.get("output_mtok")
    tokens = ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok")
    # A price by the request or the hour, or one that grows with the prompt, is left to the library.
    by_the_hour = isinstance(entry.prices, list) and any(
        each.constraint is not None and not isinstance(each.constraint, StartDateConstraint)
        for each in entry.prices
    )
    simple = (
        not by_the_hour
        and "requests_kcount" not in told
        and all(isinstance(told.get(name), Decimal | None) for name in tokens)
    )
    if not simple or not isinstance(read, Decimal) or not isinstance(wrote, Decimal):
        return _Rates(entry, found, prices, False)
    cached, written = told.get("cache_read_mtok"), told.get("cache_write_mtok")
    return _Rates(
        entry,
        found,
        prices,
        True,
        float(read),
        float(wrote),
        None if cached is None else float(cached),
        None if written is None else float(written),
    )


def _dearest(prices: Any, name: str) -> float | None:
    price = getattr(prices, name, None)
    if price is None:
        return None
    tiers = [tier.price for tier in getattr(price, "tiers", ())]
    return float(max([getattr(price, "base", price), *tiers]))


@lru_cache(maxsize=1)
def list_date() -> str:
    """A day that the price list is at least as new as: the package says no date of its own.

    It is the newest day that the list names and that had come when the package was installed.
    """
    from importlib.metadata import PackageNotFoundError, distribution, version

    try:
        path = Path(str(distribution("genai-prices").locate_file("genai_prices/data.py")))
        installed = date.fromtimestamp(path.stat().st_mtime).isoformat()
        text = path.read_text(encoding="utf-8")
    except (PackageNotFoundError, OSError, ValueError):
        return ""
    named = set(re.findall(r"\b20\d\d-[01]\d-[0-3]\d\b", text))
    named |= {
        f"{int(year):04}-{int(month):02}-{int(day):02}"
        for year, month, day in re.findall(r"datetime\.date\((20\d\d), (\d+), (\d+)\)", text)
    }
    past = [day for day in named if day <= installed]
    return max(past) if past else f"genai-prices {version('genai-prices')}"
