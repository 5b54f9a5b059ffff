"""Types of flags."""

from __future__ import annotations

import re

import click

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h)")
_DURATION = re.compile(r"(?:\d{1,12}(?:\.\d{1,9})?(?:ms|s|m|h))+")


class Seconds(click.ParamType[float]):
    """A duration: plain seconds as SPIRE's integer flags take them ("600"), or Go's notation ("1h30m", "500ms")."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, (int, float)):
            return float(value)
        text = str(value)
        if re.fullmatch(r"\d{1,12}", text):
            return float(text)
        if not _DURATION.fullmatch(text):
            self.fail("write seconds, or a duration such as 90s, 10m or 1h30m", param, ctx)
        return float(sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text)))


class WholeSeconds(click.ParamType[int]):
    """A duration of whole seconds that fits the wire's int32."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        seconds = Seconds().convert(value, param, ctx)
        if seconds != int(seconds) or seconds > 2**31 - 1:
            self.fail("must be whole seconds, at most 2147483647", param, ctx)
        return int(seconds)


SECONDS = Seconds()
WHOLE_SECONDS = WholeSeconds()
