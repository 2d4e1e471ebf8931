"""Identifiers of persons and secret keys in a text, and where they stand: e-mail and public IP addresses, telephone, card and account numbers, secret keys.

`found` gives places that do not overlap; the signal `privacy` counts them and the clean step `mask_pii` replaces them, so both mean the same:

- `email`: an address with a domain of letters at its end; not `git@…` and not the name of an image (`icon@2x.png`).
- `ip`: a public address, IPv4 or IPv6 (2000::/3). Private, loopback, documentation and multicast addresses do not count, nor what is rather a version:
  behind such a word or `v`, or with more than two parts below 10 (one address in 4,300; 8.8.8.8 and 1.1.1.1 are nobody's).
- `phone`: 7 digits or more, international with `+`, North American with separators, or behind `tel`, `phone`, `fax`, `mobile`, 电话, 手机 or 传真.
- `card`: 13 to 19 digits, in one run or in the groups that are printed on cards, that begin and are as many as an issuer's and pass Luhn's check.
- `iban`: of a country's length, passing the check modulo 97 (ISO 13616).
- `key`: the forms of well-known services (AWS, GitHub, GitLab, Slack, Google, Stripe, OpenAI, Hugging Face, npm), JSON web tokens, private keys in
  PEM, and random-looking values of 20 characters or more that are assigned to a name like `secret`, `token`, `password` or `api_key`.

It knows no names, postal addresses or ages, and it goes by form: it lowers what a model can repeat, it does not make data anonymous.

Cost: a kernel reads the bytes once for places that could hold any of these; regular expressions see only those places.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from curation.text.identifier_windows import ADDRESS, HEXADECIMAL, LONG, NUMBER, POINTED, windows

IDENTIFIERS_VERSION = 2  # 1 knew e-mail, IPv4 and telephone
KINDS = ("email", "ip", "phone", "card", "iban", "key")
AROUND = 64  # bytes on both sides of a place: words that decide about it, and all of an account number around its digits
_ALL = ADDRESS | NUMBER | POINTED | HEXADECIMAL | LONG
_ADDRESS = 330  # bytes of an e-mail address on both sides of its @

_EMAIL = re.compile(
    r"(?<![\w.%+-])(?!git@)[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}(?<!\.)@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"
    r"(?!(?:png|jpe?g|gif|svg|webp)\b)[A-Za-z]{2,24}(?![\w@])",
    re.ASCII,  # in all of these: beside a Chinese character an address ends as beside a space
)
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?<![\w.])(?:{_OCTET}\.){{3}}{_OCTET}(?!\w|\.[0-9])", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9a-fA-F]{3}:(?:[0-9a-fA-F]{0,4}:){1,6}[0-9a-fA-F]{0,4}(?![\w:])", re.ASCII)
_NUMBERED = re.compile(r"(?i)(?:\b(?:version|ver|release|build|section|sec|chapter|table|figure|fig|rev)\.?|\bv|§)\s{0,2}$")
_PHONE = re.compile(
    r"(?<![\w+])\+[1-9][0-9]{0,2}[ .-]?(?:\([0-9]{1,4}\)[ .-]?)?[0-9]{1,4}(?:[ .-]?[0-9]{2,4}){2,4}(?![\w+])"
    r"|(?<![\w+.-])(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.-])[2-9][0-9]{2}[.-][0-9]{4}(?![\w-])",
    re.ASCII,
)
_CALLED = re.compile(
    r"(?i:(?<![\w\[])(?:tele)?(?:phone|fax|tel|mobile)(?: ?(?:number|no))?|电话|電話|手机|手機|传真|傳真)[.:： ()#]{1,4}"
    r"(\(?[0-9](?:[ .()/-]{0,2}[0-9]){6,14})(?![\w-])",
    re.ASCII,
)
_CARD = re.compile(
    r"(?<![\w.,+-])(?:[0-9]{13,19}|[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{1,4}(?:\1[0-9]{3})?|[0-9]{4}([ -])[0-9]{6}\2[0-9]{4,5})(?![\w-]|[.,][0-9])",
    re.ASCII,
)
_ISSUERS = (
    (re.compile("4"), (13, 16, 19)),  # Visa
    (re.compile("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),  # Mastercard
    (re.compile("3[47]"), (15,)),  # American Express
    (re.compile("6011|64[4-9]|65|62"), (16, 17, 18, 19)),  # Discover, UnionPay
    (re.compile("35(?:2[89]|[3-8])"), (16,)),  # JCB
    (re.compile("30[0-5]|3[689]"), (14,)),  # Diners Club
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?(?![A-Za-z0-9])")
# Characters of an account number by country: the IBAN registry (ISO 13616).
_IBAN_LENGTHS = {
    code: length
    for length, codes in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD FK", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ TL OM SO", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV", 29: "BR EG PS QA UA",
        30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for code in codes.split()
}  # fmt: skip
_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,}|glpat-[A-Za-z0-9_-]{20,}|xox[abprs]-[A-Za-z0-9-]{20,}"
    r"|AIza[A-Za-z0-9_-]{35}|[sr]k_live_[A-Za-z0-9]{20,}|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|eyJ[A-Za-z0-9_-]{17,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})(?![A-Za-z0-9])"
)
_OPENAI = re.compile(r"(?<![A-Za-z0-9-])sk-(?:proj-)?([A-Za-z0-9_-]{20,})(?![A-Za-z0-9])")
_NAMED = re.compile(
    r"(?i:secret|token|passw(?:or)?d|passwd|api[_-]?key|access[_-]?key|private[_-]?key|auth[_-]?key|credential)[\w-]{0,20}[\"']?\s{0,3}(?:=>?|:)\s{0,3}[\"']?(?:(?i:bearer|basic) )?"
    r"([A-Za-z0-9+/_=-]{20,})(?![A-Za-z0-9])"
)
_PEM = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:[^-]{0,20000}-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----)?"
)
_RANDOM = 3.3  # bits a character: a hexadecimal number of 32 digits has about 3.6, `your_api_key_goes_here` 3.2

_NOT_PUBLIC = [
    IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
        "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
    )
]  # fmt: skip
_PUBLIC_V6 = IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = [IPv6Network("2001:db8::/32"), IPv6Network("2001::/23"), IPv6Network("3fff::/20")]


class Place(NamedTuple):
    """Bytes [start, end) of a text in UTF-8, and one of KINDS."""

    start: int
    end: int
    kind: str


def found(texts: Sequence[bytes]) -> Iterator[tuple[int, list[Place]]]:
    """Of every text (UTF-8) that holds any: its index and the places in it, in order."""
    data = np.frombuffer(b"".join(texts), np.uint8)
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    spans_of, ends = windows(data, offsets, AROUND, _ADDRESS)
    for index, (first, last) in enumerate(pairwise(ends.tolist())):
        raw = texts[index]
        spans = spans_of[first:last].tolist()
        if b"PRIVATE KEY" in raw:
            spans = [[0, len(raw), _ALL]]
        places = [place for start, end, what in spans for place in _in_window(raw, start, end, what)]
        if places:
            yield index, places


def mask(raw: bytes) -> bytes:
    """A text (UTF-8) with `[EMAIL]`, `[IP]`, … in place of what was found, until nothing is: what stood beside a masked number can become one."""
    while places := next((places for _, places in found([raw])), None):
        parts, last = [], 0
        for start, end, kind in places:
            parts += [raw[last:start], f"[{kind.upper()}]".encode()]
            last = end
        raw = b"".join([*parts, raw[last:]])
    return raw


def _in_window(raw: bytes, start: int, end: int, what: int) -> list[Place]:
    while start and raw[start] & 0xC0 == 0x80:
        start -= 1
    while end < len(raw) and raw[end] & 0xC0 == 0x80:
        end += 1
    text = raw[start:end].decode()
    spans: list[tuple[int, int, str]] = []
    for first, last, kind in _spans(text, what):
        if all(last <= taken[0] or first >= taken[1] for taken in spans):
            spans.append((first, last, kind))
    if text.isascii():
        return [Place(start + first, start + last, kind) for first, last, kind in sorted(spans)]
    return [Place(start + len(text[:first].encode()), start + len(text[:last].encode()), kind) for first, last, kind in sorted(spans)]


def _spans(text: str, what: int) -> Iterator[tuple[int, int, str]]:
    """Everything found, what goes before first; only patterns that need something of `what`."""
    if what & ADDRESS:
        yield from ((*match.span(), "email") for match in _EMAIL.finditer(text))
    if what & LONG:
        if "PRIVATE KEY" in text:
            yield from ((*match.span(), "key") for match in _PEM.finditer(text))
        yield from ((*match.span(), "key") for match in _KEY.finditer(text))
        for pattern in (_OPENAI, _NAMED):
            yield from ((*match.span(1), "key") for match in pattern.finditer(text) if _random(match[1]))
    if what & NUMBER:
        yield from ((*match.span(), "iban") for match in _IBAN.finditer(text) if _is_account(match[0].replace(" ", "")))
        yield from ((*match.span(), "card") for match in _CARD.finditer(text) if _is_card(re.sub("[ -]", "", match[0])))
    if what & POINTED:
        for match in _IPV4.finditer(text):
            if _public(match[0]) and not _NUMBERED.search(text[max(0, match.start() - 12) : match.start()]):
                yield (*match.span(), "ip")
    if what & HEXADECIMAL:
        yield from ((*match.span(), "ip") for match in _IPV6.finditer(text) if _public_v6(match[0]))
    if what & NUMBER:
        yield from ((*match.span(), "phone") for match in _PHONE.finditer(text) if len(re.sub("[^0-9]", "", match[0])) >= 7)
        yield from ((*match.span(1), "phone") for match in _CALLED.finditer(text))


@lru_cache(maxsize=4096)
def _public(address: str) -> bool:
    if sum(int(part) >= 10 for part in address.split(".")) < 2:
        return False
    return not any(IPv4Address(address) in network for network in _NOT_PUBLIC)


def _public_v6(address: str) -> bool:
    try:
        parsed = IPv6Address(address)
    except AddressValueError:
        return False
    return parsed in _PUBLIC_V6 and not any(parsed in network for network in _NOT_PUBLIC_V6)


def _is_card(digits: str) -> bool:
    if not any(first.match(digits) and len(digits) in lengths for first, lengths in _ISSUERS):
        return False
    doubled = (int(digit) * (2 if position % 2 else 1) for position, digit in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _is_account(account: str) -> bool:
    if _IBAN_LENGTHS.get(account[:2]) != len(account):
        return False
    return int("".join(str(int(letter, 36)) for letter in account[4:] + account[:4])) % 97 == 1


def _random(value: str) -> bool:
    """Letters and digits of which no one can say the next: Shannon entropy of the characters."""
    if not (re.search("[0-9]", value) and re.search("[A-Za-z]", value)):
        return False
    return -sum(count / len(value) * math.log2(count / len(value)) for count in Counter(value).values()) >= _RANDOM
