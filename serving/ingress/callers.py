"""Callers and their limits: API keys, rate limits, and limits of concurrent requests.

Keys are compared as digests in constant time. Rates are counted by the `limits` library in the memory of one ingress;
with several ingress replicas, the limits apply to each of them separately.
"""

import dataclasses
import hashlib
import hmac
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path

from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from dalle.errors import ConfigError
from serving.errors import ApiError
from serving.settings import LimitSettings, read_setting

__all__ = ["Callers", "Key", "read_keys"]

MIN_KEY_LENGTH = 16
MAX_USER_LENGTH = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """An API key."""

    digest: bytes
    trusted: bool
    """Whether its requests name their users truthfully, so that these take turns in the queue."""


def read_keys(path: Path | None) -> dict[str, Key] | None:
    """The key of each caller, by name, from a file with a line `NAME KEY` for each caller; None without a file. The
    third word `trusted` marks a key whose requests name their users truthfully, such as that of a front end.

    Raises `ConfigError` for a file that cannot be read, a line of another form, a key below 16 characters, or none.
    """
    if path is None:
        return None
    try:
        lines = read_setting(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the keys in {path} cannot be read: {error}") from error
    keys: dict[str, Key] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2 or words[2:] not in ([], ["trusted"]) or len(words[1]) < MIN_KEY_LENGTH:
            raise ConfigError(
                f"{path}, line {number}: expected NAME KEY, or NAME KEY trusted, the key at least {MIN_KEY_LENGTH} "
                "characters"
            )
        if words[0] in keys:
            raise ConfigError(f"{path}, line {number}: {words[0]} has a key already")
        keys[words[0]] = Key(digest=_digest(words[1]), trusted=len(words) == 3)
    if not keys:
        raise ConfigError(f"{path} has no keys: nobody could call the service")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class Callers:
    """API keys and limits of one ingress."""

    def __init__(self, keys: dict[str, Key] | None, limits: LimitSettings) -> None:
        self._keys = keys
        self._running: Counter[str] = Counter()
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self.limits = limits

    def name(self, authorization: str | None, host: str) -> str:
        """Name of the caller: that of the key, or the host if there are no keys. Raises `ApiError` 401."""
        if self._keys is None:
            return host
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip()) if scheme.lower() == "bearer" else b""
        found = None
        for name, one in self._keys.items():  # compares all keys, so that the duration reveals nothing
            if hmac.compare_digest(one.digest, given):
                found = name
        if found is None:
            what = "the API key is not known" if authorization else "an API key is needed"
            raise ApiError(
                401,
                f"{what}: send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found

    def turn(self, caller: str, user: str | None) -> str:
        """Key of a request's turn in the queue: the caller together with the user that it names. With a key that is not
        trusted it is the caller alone, whatever users it names."""
        key = None if self._keys is None else self._keys.get(caller)
        if self._keys is not None and (key is None or not key.trusted):
            return caller
        return f"{caller}/{(user or '')[:MAX_USER_LENGTH]}"

    async def spend(self, caller: str) -> dict[str, str]:
        """Count a request against the caller's rate. Returns the headers that report the remaining requests; raises
        `ApiError` 429."""
        if self.limits.rate is None:
            return {}
        rate = parse(self.limits.rate)
        allowed = await self._limiter.hit(rate, caller)
        stats = await self._limiter.get_window_stats(rate, caller)
        wait = max(1, ceil(stats.reset_time - time.time()))
        headers = {
            "x-ratelimit-limit-requests": str(rate.amount),
            "x-ratelimit-remaining-requests": str(max(0, stats.remaining)),
            "x-ratelimit-reset-requests": f"{wait}s",
        }
        if not allowed:
            raise ApiError(
                429,
                f"the limit is {rate}; try again in {wait} s",
                code="rate_limit_exceeded",
                headers=headers | {"Retry-After": str(wait)},
            )
        return headers

    @contextmanager
    def at_once(self, caller: str) -> Iterator[None]:
        """Count a request as running within a `with` block. Raises `ApiError` 429."""
        limit = self.limits.concurrency
        if limit is not None and self._running[caller] >= limit:
            raise ApiError(
                429,
                f"{self._running[caller]} requests are running, and the limit is {limit}: wait until one ends",
                code="too_many_concurrent_requests",
                headers={"Retry-After": "1"},
            )
        with self.running(caller):
            yield

    @contextmanager
    def running(self, caller: str) -> Iterator[None]:
        """Count a request as running within a `with` block, even above the limit."""
        self._running[caller] += 1
        try:
            yield
        finally:
            self._running[caller] -= 1
            if not self._running[caller]:
                del self._running[caller]
