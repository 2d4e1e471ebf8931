"""Token ids against Hugging Face tokenizers, called with its own options; tokenizers trained here on a few sentences."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from curation.text.tokenizer import Encoder, HuggingFace, TokenizerConfig, first_difference, parity_texts, resolve
from mixing import UserError

SENTENCES = [
    "The cat sat on the mat, and the dog saw the cat.",
    "def mat(cat: int) -> int:\n    return cat + 1\n",
    "敏捷的棕色狐狸跳过了懒狗。 Straße naïve café",
    r"$\frac{a}{b} \leq 3.14$ is a bound for the matrix",
] * 5
SPECIAL = ["<|begin|>", "<|end|>", "<pad>"]


def trained(model: str) -> tokenizers.Tokenizer:
    """A byte-level BPE, which fastokens reads, or a Unigram behind Metaspace, which it does not."""
    if model == "bpe":
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: trainers.Trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokenizer = tokenizers.Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_tokens(["matrix"])
    # What a curated document must not suffer: cutting, padding, and control tokens from the post-processor.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding()
    return tokenizer


def oracle(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    copy = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    ids: list[int] = copy.encode(text, add_special_tokens=False).ids
    return ids


@pytest.fixture(scope="module")
def bpe() -> tokenizers.Tokenizer:
    return trained("bpe")


@pytest.fixture(scope="module")
def folder(bpe: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizers") / "small"
    path.mkdir()
    bpe.save(str(path / "tokenizer.json"))
    config = {"eos_token": {"content": "<|end|>"}, "bos_token": None, "name_or_path": "/home/someone/small", "model_max_length": 4}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def encoder(path: Path, **settings: str | bool) -> Encoder:
    return Encoder.open(resolve(TokenizerConfig(path=str(path), **settings)))


def rows(encoded: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    ids, offsets = encoded
    assert ids.dtype == np.uint32
    assert offsets.dtype == np.int64
    assert offsets[-1] == len(ids)
    return [ids[start:end].tolist() for start, end in pairwise(offsets)]


@settings(max_examples=200)
@given(
    st.lists(st.one_of(st.sampled_from([*SENTENCES[:4], *SPECIAL, "  ", "\n\n", "matrix", "<|end|", ""]), st.text(max_size=20)), max_size=6)
)
def test_ids_of_any_texts_equal_those_of_hugging_face(bpe: tokenizers.Tokenizer, folder: Path, texts: list[str]) -> None:
    assert rows(encoder(folder, eos=False).encode(texts)) == [oracle(bpe, text) for text in texts]


def test_fast_library_agrees_on_the_sample_and_encodes(folder: Path) -> None:
    assert encoder(folder).name.startswith("fastokens ")


def test_begin_and_end_tokens_stand_around_every_document(bpe: tokenizers.Tokenizer, folder: Path) -> None:
    begin, end = bpe.token_to_id("<|begin|>"), bpe.token_to_id("<|end|>")
    texts = ["the cat", "", "the cat<|end|>"]
    plain = [oracle(bpe, text) for text in texts]

    assert rows(encoder(folder, bos="<|begin|>").encode(texts)) == [[begin, *ids, end] for ids in plain]
    assert rows(encoder(folder, bos="<|begin|>", eos=False).encode(texts)) == [[begin, *ids] for ids in plain]
    assert rows(encoder(folder).encode(texts)) == [[*ids, end] for ids in plain]


def test_control_token_written_in_a_text_stays_text(bpe: tokenizers.Tokenizer, folder: Path) -> None:
    (ids,) = rows(encoder(folder, eos=False).encode(["stop <|end|> here <|begin|>"]))

    assert {bpe.token_to_id(token) for token in SPECIAL}.isdisjoint(ids)
    assert bpe.decode(ids) == "stop <|end|> here <|begin|>"


def test_tokenizer_that_fastokens_cannot_read_falls_back_and_says_so(tmp_path: Path) -> None:
    unigram = trained("unigram")
    unigram.save(str(tmp_path / "tokenizer.json"))
    texts = [*SENTENCES[:4], "<|end|> the", "", "  x"]

    with pytest.warns(UserWarning, match=r"fastokens cannot load it .*Metaspace"):
        slow = encoder(tmp_path, eos=False)

    assert slow.name.startswith("tokenizers ")
    assert rows(slow.encode(texts)) == [oracle(unigram, text) for text in texts]


def test_fallback_in_several_batches_equals_one_by_one(tmp_path: Path) -> None:
    trained("unigram").save(str(tmp_path / "tokenizer.json"))
    texts = [f"{number} cats {'sat ' * (number % 7)}" for number in range(600)]
    with pytest.warns(UserWarning, match="fastokens"):
        slow = encoder(tmp_path, eos="<|end|>")

    assert rows(slow.encode(texts)) == [rows(slow.encode([text]))[0] for text in texts]


def test_first_difference_of_two_libraries_names_the_text_and_both_ids(bpe: tokenizers.Tokenizer) -> None:
    keeps_text, makes_control = (tokenizers.Tokenizer.from_str(bpe.to_str()) for _ in range(2))
    for tokenizer in (keeps_text, makes_control):
        tokenizer.no_truncation()
        tokenizer.no_padding()
    keeps_text.encode_special_tokens = True
    texts = ["the cat", "the cat<|end|>", "<|end|>"]

    message = first_difference(HuggingFace(keeps_text), HuggingFace(makes_control), texts)

    assert message is not None
    shared = len(oracle(bpe, "the cat"))
    assert f"differ on 'the cat<|end|>' from token {shared} on" in message
    assert f"against [{bpe.token_to_id('<|end|>')}]" in message
    assert first_difference(HuggingFace(keeps_text), HuggingFace(keeps_text), texts) is None


def test_parity_sample_holds_every_added_token_alone_and_inside_words() -> None:
    texts = list(parity_texts(["<|end|>", "matrix"]))

    assert {"<|end|>", "a<|end|>b", "matrix", "amatrixb"} <= set(texts)
    assert any("中" in text for text in texts)


def test_resolved_tokenizer_says_what_the_header_needs(bpe: tokenizers.Tokenizer, folder: Path) -> None:
    resolved = resolve(TokenizerConfig(path=str(folder)))

    assert resolved.name == "small"
    assert resolved.vocab_size == max(bpe.get_vocab().values()) + 1 == bpe.get_vocab_size()
    assert (resolved.bos_id, resolved.eos_id) == (None, bpe.token_to_id("<|end|>"))
    assert resolved.dtype == "uint16"
    assert resolved.files["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()
    assert json.loads(resolved.files["tokenizer_config.json"]).keys() == {"eos_token", "bos_token", "model_max_length"}
    assert str(folder.parent).encode() not in b"".join(resolved.files.values())


def test_resolved_tokenizer_travels_to_a_worker(bpe: tokenizers.Tokenizer, folder: Path) -> None:
    resolved = pickle.loads(pickle.dumps(resolve(TokenizerConfig(path=str(folder), eos=False))))

    assert rows(Encoder.open(resolved).encode(["the cat"])) == [oracle(bpe, "the cat")]


@pytest.mark.parametrize(("size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_width_of_an_id_follows_the_greatest(tmp_path: Path, size: int, dtype: str) -> None:
    tokenizers.Tokenizer(models.WordLevel({f"w{number}": number for number in range(size)}, "w0")).save(str(tmp_path / "tokenizer.json"))

    resolved = resolve(TokenizerConfig(path=str(tmp_path), eos=False))

    assert (resolved.vocab_size, resolved.dtype) == (size, dtype)


def test_file_changed_after_it_was_resolved_is_refused(bpe: tokenizers.Tokenizer, tmp_path: Path) -> None:
    bpe.save(str(tmp_path / "tokenizer.json"))
    resolved = resolve(TokenizerConfig(path=str(tmp_path), eos=False))
    (tmp_path / "tokenizer.json").write_text("{}")

    with pytest.raises(UserError, match="changed while it was in use"):
        Encoder.open(resolved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos": "the"}, r"tokenizer\.eos: 'the' is no control token.*<\|begin\|>, <\|end\|>, <pad>"),
        ({"eos": "matrix"}, r"tokenizer\.eos: 'matrix' is no control token"),
        ({"bos": True}, r"tokenizer\.bos: true, but no config beside .* names a bos token"),
    ],
)
def test_control_token_the_tokenizer_does_not_have_is_refused(folder: Path, settings: dict[str, str | bool], message: str) -> None:
    with pytest.raises(UserError, match=message):
        encoder(folder, **settings)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty/x.txt", "x", r"holds no tokenizer\.json; make one"),
        ("empty/tokenizer.json", "{", r"is no tokenizer\.json"),
        ("empty/tokenizer_config.json", "[]", r"holds no tokenizer\.json"),
    ],
)
def test_folder_without_a_readable_tokenizer_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(content)

    with pytest.raises(UserError, match=message):
        resolve(TokenizerConfig(path=str(tmp_path / "empty")))


def test_path_that_does_not_exist_is_refused_without_asking_the_hub(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.path: .*missing\.json does not exist; accepted: a tokenizer\.json, a folder"):
        resolve(TokenizerConfig(path=str(tmp_path / "missing.json")))


def test_hub_name_without_a_network_or_copy_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"tokenizer\.path: nobody/nothing-here is no file or folder here, and the Hugging Face hub gives none"
    ):
        resolve(TokenizerConfig(path="nobody/nothing-here"))


def test_tokenizer_that_drops_merges_at_random_is_refused(bpe: tokenizers.Tokenizer, tmp_path: Path) -> None:
    description = json.loads(bpe.to_str())
    description["model"]["dropout"] = 0.1
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))

    with pytest.raises(UserError, match="drops merges at random"):
        resolve(TokenizerConfig(path=str(tmp_path), eos=False))
