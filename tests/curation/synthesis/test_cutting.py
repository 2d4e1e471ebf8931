"""Passages: never longer than the limit, nothing but white space lost, evenly spread."""

from __future__ import annotations

import pytest
from recipes import text_of, write_tokenizer

from curation.synthesis.cutting import passages
from curation.text.tokenizer import Encoder, TokenizerConfig, resolve


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = write_tokenizer(tmp_path_factory.mktemp("cutting") / "tokenizer")
    return Encoder.open(resolve(TokenizerConfig(path=str(folder), eos=False)))


def tokens(text: str, encoder: Encoder) -> int:
    return len(encoder.encode([text])[0])


TEXTS = {
    "paragraphs": "\n\n".join(text_of(number, 30) for number in range(40)),
    "one paragraph": " ".join(text_of(number, 30) for number in range(40)),
    "no sentence": " ".join(text_of(number, 30)[:-1] for number in range(40)),
    "no space": "".join(text_of(number, 30)[:-1].replace(" ", "") for number in range(20)),
    "chinese": "奥得河发源于捷克。它向北流入波罗的海！全长八百公里？" * 60,
    "short": "A short text.",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("limit", [16, 100, 1000])
def test_passages_hold_the_whole_text_within_the_limit(name: str, limit: int, encoder: Encoder) -> None:
    found = passages(TEXTS[name], limit, encoder, 10**6)

    assert all(tokens(one, encoder) <= limit for one in found)
    assert "".join("".join(found).split()) == "".join(TEXTS[name].split())


def test_parent_of_100_000_tokens_gives_passages_spread_over_it(encoder: Encoder) -> None:
    text = "\n\n".join(text_of(number, 60) for number in range(800))
    assert tokens(text, encoder) > 100_000

    found = passages(text, 500, encoder, 4)

    assert [text.index(one) * 4 // len(text) for one in found] == [0, 1, 2, 3] or len(found) == 4
    assert text.index(found[0]) == 0
    assert text.index(found[3]) > 0.7 * len(text)
