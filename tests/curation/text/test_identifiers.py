"""What counts as an identifier, and that looking only where one could stand finds what looking everywhere finds."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.text.identifiers import _ALL, KINDS, _in_window, found, mask


def kinds(text: str) -> list[str]:
    return [place.kind for _, places in found([text.encode()]) for place in places]


def masked(text: str) -> str:
    return mask(text.encode()).decode()


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("Write to jane.doe+list@mail.example.co.uk.", "Write to [EMAIL]."),
        ("from 130.60.24.7 and 2606:4700:4700::1111,", "from [IP] and [IP],"),
        ("call +49 30 1234567 or (212) 555-0123", "call [PHONE] or [PHONE]"),
        ("Tel.: 030 1234567; 手机：13800138000。", "Tel.: [PHONE]; 手机：[PHONE]。"),
        ("card 4111 1111 1111 1111, amex 3782-822463-10005", "card [CARD], amex [CARD]"),
        ("pay to DE89 3704 0044 0532 0130 00 or GB29NWBK60161331926819 now", "pay to [IBAN] or [IBAN] now"),
        ("id AKIAIOSFODNN7EXAMPLE, api_key = 'x8Kq2LmZ9vR4tYw7Pb3N'", "id [KEY], api_key = '[KEY]'"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----\nb", "a\n[KEY]\nb"),
        ("中文" * 100 + "：a@b.cn" + "中文" * 100, "中文" * 100 + "：[EMAIL]" + "中文" * 100),
    ],
)
def test_identifier_in_a_text_is_replaced_by_its_kind(text: str, after: str) -> None:
    assert masked(text) == after


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4, v8.8.8.8, 3.3.0.2, 8.8.8.8, 10.0.0.12, 192.168.10.20, 203.0.113.77, 1.2.3.4.5, 256.30.10.10",
        "2001:db8::1 fe80::10 std::vector 12:30:45 00:1B:44:11:3A:B7",
        "git@github.com:a/b icon@2x.png user@localhost lodash@4.17.21",
        "doi:10.1016/j.cell.2020.01.001 ISBN 978-3-16-148410-0 2019-2020-2021 40.7128, -74.0060 ORCID 0000-0002-1825-0097",
        "4111 1111 1111 1112, 0.4111111111111111, 1234567890123456",
        "DE00 3704 0044 0532 0130 00, GB29 NWBK 6016 1331 9268 18",
        "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855, token = tokenizer.next_token(stream)",
        "password: your_password_goes_here, -----BEGIN PUBLIC KEY-----",
        "1-(4-chlorophenyl)-4,4-dimethyl-3-(1,2,4-triazol-1-ylmethyl)pentan-3-ol; 0.123 0.456 0.789 0.012; phones 3 and 4",
        "",
        "..." * 50,
        "🙂" * 50,
    ],
)
def test_text_that_looks_alike_is_left(text: str) -> None:
    assert kinds(text) == []


def luhn_by_table(digits: str) -> bool:
    return sum("0516273849".index(digit) if place % 2 else int(digit) for place, digit in enumerate(reversed(digits))) % 10 == 0


def test_one_number_in_ten_of_a_cards_form_passes_its_check() -> None:
    drawn = random.Random(17)
    numbers = ["4" + "".join(drawn.choices("0123456789", k=15)) for _ in range(500)]

    assert [kinds(f"no {number} here") == ["card"] for number in numbers] == [luhn_by_table(number) for number in numbers]


def test_ipv4_address_counts_where_pythons_registry_calls_it_global_and_two_parts_have_two_digits() -> None:
    drawn = random.Random(17)
    addresses = [".".join(str(drawn.randrange(256)) for _ in range(4)) for _ in range(2000)]
    inside = [
        *addresses,
        "10.20.30.40",
        "127.0.10.10",
        "172.16.31.32",
        "172.32.31.32",
        "100.64.10.10",
        "100.128.10.10",
        "192.0.2.10",
        "198.19.0.10",
    ]

    expected = [
        ip_address(one).is_global and not ip_address(one).is_multicast and sum(len(part) > 1 for part in one.split(".")) > 1
        for one in inside
    ]

    assert [kinds(f"at {one} there") == ["ip"] for one in inside] == expected


PIECES = [
    "jane@example.org", "@", "130.60.24.7", "1.2.3.4", "+49 30 1234567", "212-555-0199", "Tel: ", "phone", "4111111111111111", "4111 1111 1111 1111",
    "DE89370400440532013000", "DE89 3704 0044 0532 0130 00", "AKIAIOSFODNN7EXAMPLE", "token=", "x8Kq2LmZ9vR4tYw7Pb3N", "2606:4700::1111", "::", ".", "-",
    " ", "\n", "中", "é", "🙂", "a", "Z9", "word ", "0", "12345", "(", ")", "/", "=", "git", "version ", "[PHONE]",
]  # fmt: skip


@settings(max_examples=500)
@given(st.lists(st.sampled_from(PIECES), max_size=25), st.integers(0, 3))
def test_places_found_in_windows_are_those_of_the_whole_text(parts: list[str], far: int) -> None:
    text = ("word " * 80 * far).join("".join(parts[start : start + 6]) for start in range(0, len(parts), 6)).encode()

    windows = [place for _, places in found([text]) for place in places]

    assert windows == _in_window(text, 0, len(text), _ALL)


@settings(max_examples=300)
@given(
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(st.characters(exclude_categories=["Cs"]), max_size=5)), max_size=25).map("".join)
)
def test_masking_a_masked_text_changes_nothing(text: str) -> None:
    once = masked(text)

    assert masked(once) == once
    assert kinds(once) == []


@settings(max_examples=200)
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), max_size=6))
def test_places_of_many_texts_are_those_of_each(texts: list[str]) -> None:
    together = dict(found([text.encode() for text in texts]))

    for index, text in enumerate(texts):
        alone = [place for _, places in found([text.encode()]) for place in places]
        assert together.get(index, []) == alone
        assert all(place.kind in KINDS and 0 <= place.start < place.end <= len(text.encode()) for place in alone)


def test_huge_text_of_digits_or_letters_is_read_without_a_place() -> None:
    for text in ("0" * 300_000, "a1" * 150_000, "a@" * 100_000, "1.2" * 100_000, "-----BEGIN PRIVATE KEY-----" + "x" * 300_000):
        list(found([text.encode()]))
