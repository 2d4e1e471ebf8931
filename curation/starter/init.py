"""`curate init`: a commented recipe from what lies at some paths, which builds as it is.

The tokenizer is the base model's if one is named, else one that lies among the files, else one token a byte, written beside the recipe, for want of any that needs no download.
A sample of each source says its languages, how many of its texts came before, nearly or to the letter, and how many are short. The same files give the same recipe.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from dataclasses import replace as replace_in
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from curation.dedup.minhash import PERMUTATIONS, signatures
from curation.recipe import load
from curation.signals.heuristics import HeuristicsConfig
from curation.signals.heuristics import compute as heuristics
from curation.signals.language import LanguageConfig
from curation.signals.language import compute as languages
from curation.starter.drafting import BYTE_TOKENIZER, FEW_WORDS, Chosen, Measured, draft
from curation.starter.prospect import Aside, Found, Prospect, prospect
from curation.text.tokenizer import HUB_NAME, Encoder, TokenizerConfig, resolve
from mixing import UserError

SEQUENCE_LENGTH, BASE_LENGTH = 2048, 4096
FEW_TEXTS = 3
SPOKEN = 200  # texts whose language is told
ROWS = 8  # of a signature: 16 bands of 8 find a pair of similarity 0.8 with probability 0.95
SIMILAR = round(0.8 * PERMUTATIONS)
GENERAL = re.compile("web|wiki|wikipedia|books?|news|crawl|general|c4|fineweb|dolma|pile|redpajama|slimpajama|gutenberg")
END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|end|>", "<|im_end|>")


@dataclass(frozen=True)
class Started:
    """A recipe written, and what it was written from."""

    path: Path
    found: Found
    sources: list[Measured]
    remarks: list[str]


def init(paths: list[str], output: Path, base: str | None = None, *, replace: bool = False) -> Started:
    """Writes a starter recipe for files, folders, patterns or URLs. `base` is the model to be trained: a folder, a tokenizer.json, or a hub name."""
    if output.exists() and not replace:
        raise UserError(f"-o {output}: exists; choose another name, or pass --replace")
    if not output.parent.is_dir():
        raise UserError(f"-o {output}: no folder {output.parent}")
    found = prospect(paths, output.parent)
    chosen, encoder, remarks = _tokenizer(base, found, output.parent)
    sources, asides = _without_repeats([_measured(one, encoder) for one in found.sources])
    if not sources:
        raise UserError(f"init: {asides[0].files[0]}: {asides[0].why}; accepted: files with texts of their own")
    found = replace_in(found, asides=[*found.asides, *asides])
    if chosen.path == BYTE_TOKENIZER:
        (output.parent / BYTE_TOKENIZER).write_bytes(byte_tokenizer())
    output.write_text(draft(Path(paths[0]).name, sources, found, chosen), encoding="utf-8")
    load(output)
    return Started(output, found, sources, remarks)


# --- the tokenizer


def _tokenizer(base: str | None, found: Found, beside: Path) -> tuple[Chosen, Encoder | None, list[str]]:
    """The base model's tokenizer, else one among the files, else one token a byte; None to count with if it cannot be had now."""
    if base is not None:
        return _of_base(base, beside)
    if found.tokenizers:
        eos, encoder = _opened(str(found.tokenizers[0].place))
        why = "CHECK: it lies among the files. Every token count is of this tokenizer, so it has to be that of the model you train."
        remark = "the tokenizer is one that lies among the files: check that it is your model's, or name that with --base"
        return Chosen(found.tokenizers[0].written, eos, why, SEQUENCE_LENGTH, None), encoder, [remark]
    with TemporaryDirectory() as room:
        path = Path(room) / BYTE_TOKENIZER
        path.write_bytes(byte_tokenizer())
        eos, encoder = _opened(str(path))
    why = "REPLACE: no model was named, so a token is a byte here; a model's token is 3 to 5 of them. Name its folder, tokenizer.json or hub name."
    remark = f"no model was named: {path.name} counts bytes; put your model's tokenizer in its place, or name it with --base"
    return Chosen(BYTE_TOKENIZER, eos, why, SEQUENCE_LENGTH, None), encoder, [remark]


def _of_base(base: str, beside: Path) -> tuple[Chosen, Encoder | None, list[str]]:
    here = Path(base).expanduser()
    path = base if not here.exists() else str(here) if here.is_absolute() else os.path.relpath(here, beside.resolve())
    longest = _longest(here)
    length = min(BASE_LENGTH, longest or BASE_LENGTH)
    why = "The base model's own: every token count is of it."
    try:
        eos, encoder = _opened(base)
    except UserError as error:
        if here.exists() or not HUB_NAME.fullmatch(base):
            raise
        why = "The base model's own. It could not be fetched, so every token count below is a guess: a token for four bytes."
        return Chosen(path, True, why, length, longest), None, [f"token counts are guessed: {error}"]
    return Chosen(path, eos, why, length, longest), encoder, []


def _longest(base: Path) -> int | None:
    """The context of a model in a folder."""
    config = base / "config.json"
    try:
        longest = json.loads(config.read_text()).get("max_position_embeddings") if config.is_file() else None
    except ValueError:
        return None
    return longest if isinstance(longest, int) and longest > 1 else None


def _opened(path: str) -> tuple[str | bool, Encoder]:
    """The tokenizer at a path, and the end token it has: its own, one by a known name, or none."""
    try:
        return True, Encoder.open(resolve(TokenizerConfig(path=path)))
    except UserError as error:
        refused = error
    for eos in (*END_TOKENS, False):
        try:
            return eos, Encoder.open(resolve(TokenizerConfig(path=path, eos=eos)))
        except UserError:
            continue
    raise refused


def byte_tokenizer() -> bytes:
    """A tokenizer.json of 256 bytes and `<|end|>`: one token a byte of UTF-8."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: number for number, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return json.dumps(json.loads(tokenizer.to_str()), sort_keys=True).encode()


# --- what the samples say


def _measured(source: Prospect, encoder: Encoder | None) -> Measured:
    texts = source.texts[:: max(1, len(source.texts) // SPOKEN)]
    arrow = pa.array(source.texts, pa.large_string())
    size = sum(len(text.encode()) for text in texts) or 1
    tokens = len(encoder.encode(texts)[0]) if encoder else size // 4
    codes = languages(LanguageConfig(kind="language"), pa.array(texts, pa.large_string()), None).field("code").to_pylist()
    spoken = Counter(code for code in codes if code is not None)
    words = heuristics(HeuristicsConfig(kind="heuristics", set="gopher"), arrow, None).field("words").to_numpy(zero_copy_only=False)
    count = len(source.texts)
    return Measured(
        source,
        round(tokens * source.text_bytes / size),
        [(code, number / len(texts)) for code, number in sorted(spoken.items(), key=lambda item: (-item[1], item[0]))[:4]],
        (count - len(set(source.texts))) / count,
        _similar(arrow) / count,
        float(np.mean(words < FEW_WORDS)),
        _general(source),
        0.0,
    )


def _without_repeats(sources: list[Measured]) -> tuple[list[Measured], list[Aside]]:
    """The sources with the share of their texts that earlier ones have, and those of which nothing would be left, which no mixture can weigh."""
    taken: list[Measured] = []
    asides: list[Aside] = []
    seen: set[int] = set()
    for one in sources:
        contents = one.source.contents
        known = len(contents & seen) / len(contents)
        if one.source.whole and known == 1:
            asides.append(Aside(one.source.patterns, "every text of it stands in an earlier source"))
        elif one.source.whole and one.similar and (1 - one.similar) * len(one.source.texts) < FEW_TEXTS:
            asides.append(Aside(one.source.patterns, f"of its {one.source.documents:,} texts hardly any is left without copies"))
        else:
            seen |= contents
            taken.append(one._replace(known=known))
    return taken, asides


def _similar(texts: pa.LargeStringArray) -> int:
    """How many texts are like an earlier one, copies counted, as far as signatures tell."""
    rows = signatures(texts)
    seen: dict[tuple[int, bytes], int] = {}
    like = 0
    for number, row in enumerate(rows):
        earlier = {seen.setdefault((band, row[band : band + ROWS].tobytes()), number) for band in range(0, PERMUTATIONS, ROWS)} - {number}
        like += any(np.count_nonzero(rows[other] == row) >= SIMILAR for other in earlier)
    return like


def _general(source: Prospect) -> str | None:
    """What says that a source is general text: a word of its name, or of a column with one value."""
    said = {"its name": source.name} | {
        f"its column {name}": value for name, value in source.values.items() if name in ("domain", "category", "source", "kind")
    }
    return next((where for where, words in said.items() if any(map(GENERAL.fullmatch, re.split(r"[\W_]+", words.lower())))), None)
