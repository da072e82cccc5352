"""Personal data is found where its checksum holds, and look-alikes of operations work stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.common.pii import KINDS, redact, redact_value

FOUND = [
    ("mail kim.cheolsu+ops@mail.example.co.kr now", "email", "mail <EMAIL> now"),
    ("연락처는 ops@example.com입니다", "email", "연락처는 <EMAIL>입니다"),
    ("전화 010-1234-5678로", "phone", "전화 <PHONE>로"),
    ("call 01098765432", "phone", "call <PHONE>"),
    ("call (02) 555-0199", "phone", "call <PHONE>"),
    ("call +82 10-1234-5678.", "phone", "call <PHONE>."),
    ("call +1 (415) 555-2671", "phone", "call <PHONE>"),
    ("call +442071838750", "phone", "call <PHONE>"),
    ("card 4111 1111 1111 1111 12/27", "card", "card <CARD> 12/27"),
    ("card 5500-0000-0000-0004", "card", "card <CARD>"),
    ("card 3782 822463 10005", "card", "card <CARD>"),
    ("카드 4012888888881881", "card", "카드 <CARD>"),
    ("pay DE89 3704 0044 0532 0130 00 please", "iban", "pay <IBAN> please"),
    ("pay gb82west12345698765432", "iban", "pay <IBAN>"),
    ("주민번호 900101-1234568", "korean_id", "주민번호 <KOREAN_ID>"),
    ("주민번호 201105-3999999", "korean_id", "주민번호 <KOREAN_ID>"),
    ("host 10.0.0.12:8080 and 2001:db8::1", "ip", "host <IP>:8080 and <IP>"),
]

STAYS = [
    "kubectl scale deployment web-api --replicas 5 -n prod",
    "kubectl set image deployment/web web=registry.example.com/web@sha256:0123456789abcdef",
    "release 2024.10.05-1234567, build 20241005123456",
    "timestamp 1712000000000 at 12:30:45",
    "pod web-010-1234-5678 port 8080",
    "card 4111 1111 1111 1112",
    "id 0000 0000 0000 0000",
    "DE00 3704 0044 0532 0130 00",
    "900101-1234567",
    "901301-1234568",
    "999.0.0.1",
]


@pytest.mark.parametrize(("text", "kind", "redacted"), FOUND)
def test_what_is_valid_is_replaced(text, kind, redacted):
    assert redact(text, KINDS) == (redacted, (kind,))


@pytest.mark.parametrize("text", STAYS)
def test_look_alikes_stay(text):
    assert redact(text, KINDS) == (text, ())


def test_only_the_kinds_asked_for_are_looked_for():
    assert redact("a@example.com 010-1234-5678", ("phone",)) == ("a@example.com <PHONE>", ("phone",))


@given(st.text())
def test_redaction_is_idempotent(text):
    once, _ = redact(text + " a@example.com " + text, KINDS)
    assert redact(once, KINDS)[0] == once


PLANTED = (
    "kim@example.com",
    "010-1234-5678",
    "+82 10-1234-5678",
    "4111 1111 1111 1111",
    "4012888888881881",
    "DE89 3704 0044 0532 0130 00",
    "900101-1234568",
    "2001:db8::1",
)
AROUND = st.text(" \n\t,;!?()[]{}<>\"'파드한글éあ", max_size=6)


@given(st.lists(st.tuples(AROUND, st.sampled_from(PLANTED)), min_size=1, max_size=6), AROUND)
def test_no_planted_value_is_left_whatever_stands_around_it(parts, end):
    text = "".join(f"{around} {value} " for around, value in parts) + end
    left, _ = redact(text, KINDS)
    assert not [value for _, value in parts if value in left]
    assert redact_value({text: [text]}, KINDS) == {left: [left]}


def test_a_long_run_of_letters_is_searched_in_linear_time():
    import time

    start = time.process_time()
    redact("a" * 1_000_000 + "1" * 1_000_000 + ":" * 100_000, KINDS)
    assert time.process_time() - start < 5


def test_values_keys_and_numbers_of_a_row_are_redacted():
    row = {"a@example.com": [{"card": 4111111111111111}], "n": 7, "ok": True, "none": None}
    assert redact_value(row, KINDS) == {"<EMAIL>": [{"card": "<CARD>"}], "n": 7, "ok": True, "none": None}
