"""Personal data by patterns, each with a validator, so that a look-alike (a version, a build number) stays.

Kinds and the sources of their rules: e-mail (RFC 5322's common form), phone (E.164, and Korea's domestic form),
card (ISO/IEC 7812: length, leading digit, Luhn), IBAN (ISO 13616: length by country, mod 97), Korean resident
registration number (date, century digit, checksum; since October 2020 new numbers have random last digits and no
checksum), IP addresses. Names and places are out of reach of patterns.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Iterable
from datetime import date
from typing import Any

IBAN_LENGTHS = {
    15: "NO",
    16: "BE",
    18: "DK FI FO GL NL",
    19: "MK SI",
    20: "AT BA EE KZ LT LU XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HU LB PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU",
    31: "MT SC",
    32: "LC",
}
"""Countries by the number of characters of their IBANs (SWIFT's IBAN registry)."""

_RANDOM_KOREAN_IDS_SINCE = date(2020, 10, 5)


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _is_card(text: str) -> bool:
    digits = _digits(text)
    if digits[0] not in "3456" or len(set(digits)) == 1:
        return False
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def _is_iban(text: str) -> bool:
    plain = text.replace(" ", "").upper()
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 == 1


def _is_korean_id(text: str) -> bool:
    digits = _digits(text)
    century = {"1": 1900, "2": 1900, "3": 2000, "4": 2000, "5": 1900, "6": 1900, "7": 2000, "8": 2000}.get(digits[6])
    if century is None:
        return False
    try:
        born = date(century + int(digits[:2]), int(digits[2:4]), int(digits[4:6]))
    except ValueError:
        return False
    weights = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
    rest = sum(weight * int(digit) for weight, digit in zip(weights, digits, strict=False)) % 11
    foreigner = digits[6] in "5678"
    check = ((13 if foreigner else 11) - rest) % 10
    return check == int(digits[12]) or ("-" in text and born >= _RANDOM_KOREAN_IDS_SINCE)


def _is_phone(text: str) -> bool:
    digits = _digits(text)
    return 8 <= len(digits) <= 15 if text.startswith("+") else 9 <= len(digits) <= 11


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


_IBAN = "|".join(
    rf"(?:{countries.replace(' ', '|')})\d{{2}}(?: ?[A-Z0-9]){{{length - 4}}}"
    for length, countries in IBAN_LENGTHS.items()
)
_START, _END = r"(?<![\w.+/-])", r"(?![\w-])"
_PATTERNS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "email": (
        re.compile(
            r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,8}[a-z]{2,24}(?![\w-])",
            re.IGNORECASE | re.ASCII,
        ),
        lambda _: True,
    ),
    "korean_id": (re.compile(_START + r"\d{6}[- ]?[1-8]\d{6}" + _END, re.ASCII), _is_korean_id),
    "iban": (re.compile(_START + f"(?:{_IBAN})" + _END, re.ASCII | re.IGNORECASE), _is_iban),
    "card": (
        re.compile(
            _START + r"(?:\d{13,19}|\d{4}(?P<blank>[ -])\d{4}(?P=blank)\d{4}(?P=blank)\d{4}"
            r"|3\d{3}(?P<gap>[ -])\d{6}(?P=gap)\d{5})" + _END,
            re.ASCII,
        ),
        _is_card,
    ),
    "phone": (
        re.compile(
            _START + r"(?:\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}"
            r"|\(?0(?:10|11|16|17|18|19|2|[3-6][1-5]|70|50\d)\)?[ .-]?\d{3,4}[ .-]?\d{4})" + _END,
            re.ASCII,
        ),
        _is_phone,
    ),
    "ip": (
        re.compile(
            r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)|(?<![\w.:-])[0-9a-f]{0,4}:[0-9a-f:]{1,40}(?![\w:-])",
            re.ASCII | re.IGNORECASE,
        ),
        _is_ip,
    ),
}
KINDS = tuple(_PATTERNS)
"""In the order in which they are replaced: a number that is a valid card is not taken for a phone number."""


def redact(text: str, kinds: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """Return `text` with what is found replaced by <EMAIL>, <PHONE>, …, and the kinds found, as ordered in `KINDS`."""
    found = []
    wanted = set(kinds)
    for kind in KINDS:
        if kind in wanted:
            pattern, valid = _PATTERNS[kind]
            placeholder = f"<{kind.upper()}>"

            def replace(
                match: re.Match[str], valid: Callable[[str], bool] = valid, placeholder: str = placeholder
            ) -> str:
                return placeholder if valid(match[0]) else match[0]

            redacted = pattern.sub(replace, text)
            if redacted != text:
                found.append(kind)
                text = redacted
    return text, tuple(found)


def redact_value(value: Any, kinds: Iterable[str]) -> Any:
    """Return a JSON value with every text, key and number in it redacted; a number beyond all floats becomes text."""
    if isinstance(value, str):
        return redact(value, kinds)[0]
    if isinstance(value, dict):
        return {redact(key, kinds)[0]: redact_value(item, kinds) for key, item in value.items()}
    if isinstance(value, list):
        return [redact_value(item, kinds) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        redacted, found = redact(str(value), kinds)
        beyond = isinstance(value, float) and not math.isfinite(value)
        return redacted if found or beyond else value
    return value
