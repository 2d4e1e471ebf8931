"""Text in, token ids out: the only place that tokenizes training text, with the model's own tokenizer and nothing else.

`resolve` finds the tokenizer (a `tokenizer.json`, a folder that holds one, or a hub name) and settles what a manifest records about it. `Encoder` turns
texts into flat ids: control tokens written in a text stay text, nothing is truncated, padded or normalized beyond what `tokenizer.json` says, and BOS
and EOS are added here, not by its post-processor.

fastokens encodes where a start-up sample of many scripts, white space, code and every control token gives the ids of Hugging Face `tokenizers`; else
`tokenizers` does, and a warning names the first difference. Both give the same ids, so which one ran is provenance, not identity. One thread: the
processes of a build are its parallelism. `benchmarks/token_parity.py` compares both on any corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict

from mixing import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import tokenizers

TOKENIZER, CONFIG, SPECIAL_TOKENS = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
FILES = (TOKENIZER, CONFIG, SPECIAL_TOKENS, "chat_template.jinja")
# What `save_pretrained` may write of the machine it ran on.
_MACHINE_KEYS = ("name_or_path", "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "cache_dir")
_HOW_TO_MAKE_ONE = f"make one with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER) writes a {TOKENIZER}"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SLOW_BATCH = 256  # texts that `tokenizers` encodes at once: its encodings take about 100 bytes a token while they live


class TokenizerConfig(BaseModel):
    """Which tokenizer, and which control tokens stand around every document: a token's text, `true` for the tokenizer's own, `false` for none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    bos: str | bool = False
    eos: str | bool = True


@dataclass(frozen=True)
class ResolvedTokenizer:
    """A tokenizer found and read: what the manifest's header says, and where its files lie on this machine."""

    name: str
    sha256: str  # of the bytes of tokenizer.json
    vocab_size: int  # the highest id, added tokens included, plus one
    bos_id: int | None
    eos_id: int | None
    dtype: str  # "uint16" or "uint32": what every id fits into
    folder: Path
    tokenizer_file: str  # its name in `folder`

    @property
    def files(self) -> dict[str, bytes]:
        """What the manifest's `tokenizer/` holds, by file name; machine paths are left out of the JSON."""
        beside = FILES[1:] if self.tokenizer_file == TOKENIZER else ()
        paths = {name: self.folder / name for name in beside if (self.folder / name).is_file()}
        return {TOKENIZER: self.read()} | {
            name: _without_machine(path.read_bytes(), path) if name.endswith(".json") else path.read_bytes() for name, path in paths.items()
        }

    def read(self) -> bytes:
        """The bytes of tokenizer.json, refused when they are no longer those that were resolved."""
        content = (self.folder / self.tokenizer_file).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise UserError(f"tokenizer.path: {self.folder / self.tokenizer_file} changed while it was in use; start again")
        return content


_SAMPLE = (
    "",
    " ",
    "a",
    "The quick brown fox jumps over the lazy dog. It's 3.14159, isn't it? We'll see; they've said so, and I'D AGREE.",
    "    indented\n\tby tab\n\n\n  \r\nafter CRLF   \n trailing   ",
    *(" " * run + "x" + " " * run for run in (2, 3, 7, 8, 16, 31, 64, 129)),
    *(white * run for white in ("\n", "\t", "\r\n", "\u00a0", "\u2028", "\u3000") for run in (1, 2, 5)),
    "def f(x: int) -> int:\n    return x**2 if x != 0 else -1  # comment\n\nclass A:\n\t'''doc'''\n\tpass\n",
    '{"key": [1, 2.5e-3, null], "s": "\\n\\u00e9"} <a href="https://example.org/?q=1&r=%20">x</a> &amp; </p>',
    r"\begin{equation} \frac{\partial f}{\partial x} = \sum_{i=1}^{n} \alpha_i^{2} \label{eq:1} \end{equation} $\mathcal{O}(n \log n)$",
    "1234567890 0012 1,234.56 2024-01-31T23:59:59Z 192.168.0.1 +49 (0)30 123456 ١٢٣ ४५६ Ⅷ ½ x² 10⁻⁹",
    "......!!!???---===***###___~~~ ((())) [[]] {{}} <<>> //\\\\ ''\"\" ‘’“” –— … §¶†‡•",
    "El niño comió piñata; Straße, Ærøskøbing, Žluťoučký kůň, İstanbul ılık, naïve café — cafe\u0301 (NFD), ﬁ ligature",
    "Быстрая коричневая лиса, щука. Ταχεία αλεπού ΣΊΣΥΦΟΣ. Հայերեն ქართული",
    "敏捷的棕色狐狸跳过了懒狗。「繁體中文」，《红楼梦》第１２回。２０２４年１月",
    "素早い茶色の狐がのろまな犬を飛び越える。カタカナ ｶﾀｶﾅ 빠른 갈색 여우가 게으른 개를 뛰어넘는다.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول، وَقَالَ. שועל חום מהיר קופץ מעל הכלב העצלן",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है। দ্রুত বাদামী শিয়াল. வேகமான பழுப்பு நரி",
    "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามหมาขี้เกียจ ຈິ້ງຈອກ ကြောင် ខ្មែរ བོད་ཡིག",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ❤️ 🤷🏽‍♀️ 😀😀 ☃ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀 \U0010fffd",
    "nul \x00 bell \x07 escape \x1b[0m delete \x7f bom \ufeff zero\u200bwidth rtl \u202emark \ufffd soft\u00adhyphen",
    "<|endoftext|> </s> <s> <unk> <pad> [CLS] [SEP] [MASK] <|im_start|>user<|im_end|> <|begin_of_text|> <|end_of_text|> <bos><eos>",
    "a" * 300 + "é" * 200 + "中" * 200 + "ab" * 150 + "0" * 100 + "aA" * 100,
    "pneumonoultramicroscopicsilicovolcanoconiosis HTTPServerError camelCaseWord snake_case_word SCREAMING_CASE x_1",
    "AUGGCUUACGAUUAG ACDEFGHIKLMNPQRSTVWY p<0.05 (95% CI: 1.2–3.4) C₆H₁₂O₆ → 6CO₂ + 6H₂O, 37 °C, 5 µg/mL ± 0.1",
)


class Library(Protocol):
    """A loaded tokenizer: flat ids and the n + 1 offsets into them, no control token added."""

    name: str

    def encode(self, texts: list[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]: ...


class Fastokens:
    """The fast one."""

    def __init__(self, content: str) -> None:
        import fastokens

        self.name = f"fastokens {version('fastokens')}"
        self._tokenizer = fastokens.Tokenizer.from_json_str(content)
        self._tokenizer.no_truncation()

    def encode(self, texts: list[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        import numpy as np

        ids, offsets = self._tokenizer.encode_batch_flat(texts, add_special_tokens=False, split_special_tokens=True)
        return np.frombuffer(ids, "<u4"), np.frombuffer(offsets, "<u8").astype(np.int64)


class HuggingFace:
    """The one that defines which ids are right."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.name = f"tokenizers {version('tokenizers')}"
        self._tokenizer = tokenizer

    def encode(self, texts: list[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        import numpy as np

        found = []
        lengths = np.zeros(len(texts), np.int64)
        for start in range(0, len(texts), _SLOW_BATCH):
            encodings = self._tokenizer.encode_batch_fast(texts[start : start + _SLOW_BATCH], add_special_tokens=False)
            for row, encoding in enumerate(encodings, start):
                ids = np.array(encoding.ids, np.uint32)
                found.append(ids)
                lengths[row] = ids.size
        return np.concatenate([*found, np.empty(0, np.uint32)]), np.concatenate([[0], np.cumsum(lengths)])


class Encoder:
    """Documents to the ids a model is trained on."""

    def __init__(self, library: Library, bos_id: int | None, eos_id: int | None) -> None:
        self.name = library.name
        self._library = library
        self._bos_id = bos_id
        self._eos_id = eos_id

    @classmethod
    def open(cls, resolved: ResolvedTokenizer) -> Encoder:
        """The encoder of a tokenizer, loaded and checked once per process."""
        return cls(_library(resolved), resolved.bos_id, resolved.eos_id)

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """Flat ids of all texts with BOS and EOS, and the len(texts) + 1 offsets into them."""
        import numpy as np

        ids, offsets = self._library.encode(list(texts))
        before, after = int(self._bos_id is not None), int(self._eos_id is not None)
        if not before + after:
            return ids, offsets
        framed = offsets + (before + after) * np.arange(len(offsets))
        out = np.empty(framed[-1], np.uint32)
        text = np.ones(len(out), np.bool_)
        for token, places in ((self._bos_id, framed[:-1]), (self._eos_id, framed[1:] - 1)):
            if token is not None:
                out[places] = token
                text[places] = False
        out[text] = ids
        return out, framed


def resolve(config: TokenizerConfig, location: str | Path | None = None) -> ResolvedTokenizer:
    """The tokenizer that `config` names, read from `location` (default: its own `path`): a file, a folder, or a hub name."""
    name, folder, file = _found(str(location or config.path), config.path)
    content = (folder / file).read_bytes()
    tokenizer = parsed(content, folder / file)
    special = {token.content: token_id for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items()) if token.special}
    named = _named_tokens(folder) if file == TOKENIZER else {}
    vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    return ResolvedTokenizer(
        name=name,
        sha256=hashlib.sha256(content).hexdigest(),
        vocab_size=vocab_size,
        bos_id=_control_token("bos", config.bos, named, special, folder / file),
        eos_id=_control_token("eos", config.eos, named, special, folder / file),
        dtype="uint16" if vocab_size <= 1 << 16 else "uint32",
        folder=folder,
        tokenizer_file=file,
    )


def _found(location: str, written: str) -> tuple[str, Path, str]:
    """The tokenizer's name (never a path of this machine), its folder, and the name of its tokenizer.json there."""
    path = Path(location).expanduser().absolute()
    name = re.split(r"[/:]", written.rstrip("/"))[-1].removesuffix(".json").strip(".") or "tokenizer"
    if path.is_file():
        return name, path.parent, path.name
    if path.is_dir():
        if (path / TOKENIZER).is_file():
            return name, path, TOKENIZER
        raise UserError(f"tokenizer.path: {location} holds no {TOKENIZER}; {_HOW_TO_MAKE_ONE}")
    if not HUB_NAME.fullmatch(location) or location.endswith(".json"):
        raise UserError(
            f"tokenizer.path: {location} does not exist; accepted: a {TOKENIZER}, a folder that holds one, or a name on the Hugging Face hub"
        )
    folder = hub_folder("tokenizer.path", location, FILES, f"a {TOKENIZER}, a folder that holds one, or a hub name")
    if not (folder / TOKENIZER).is_file():
        raise UserError(f"tokenizer.path: {location} on the hub has no {TOKENIZER}; {_HOW_TO_MAKE_ONE}")
    return location, folder, TOKENIZER


def hub_folder(where: str, name: str, files: Sequence[str], accepted: str) -> Path:
    """The files of a repository on the Hugging Face hub, downloaded; `name@revision` for another revision than the last."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        repository, _, revision = name.partition("@")
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{where}: {name} is no file or folder here, and the Hugging Face hub gives none ({reason}); "
            f"accepted: {accepted} (a private or gated one needs `hf auth login`)"
        ) from None


def parsed(content: bytes, path: Path) -> tokenizers.Tokenizer:
    """The Hugging Face tokenizer, set to leave texts whole and their control tokens text."""
    import tokenizers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # noqa: BLE001 - `tokenizers` raises bare Exception
        raise UserError(f"tokenizer.path: {path} is no {TOKENIZER} ({error})") from None
    if getattr(tokenizer.model, "dropout", None):
        raise UserError(f"tokenizer.path: {path} drops merges at random (model.dropout = {tokenizer.model.dropout}); set it to null")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _named_tokens(folder: Path) -> dict[str, str]:
    """The texts of `bos` and `eos` where the tokenizer's own config names them."""
    named: dict[str, str] = {}
    for file in (SPECIAL_TOKENS, CONFIG):
        if (folder / file).is_file():
            config = _json_object((folder / file).read_bytes(), folder / file)
            for role in ("bos", "eos"):
                token = config.get(f"{role}_token")
                content = token.get("content") if isinstance(token, dict) else token
                if isinstance(content, str):
                    named[role] = content
    return named


def _control_token(role: str, asked: str | bool, named: Mapping[str, str], special: Mapping[str, int], path: Path) -> int | None:
    if asked is False:
        return None
    accepted = f"control tokens of {path.name}: {', '.join(list(special)[:20]) or 'none'}"
    if asked is True and role not in named:
        raise UserError(f"tokenizer.{role}: true, but no config beside {path} names a {role} token; give its text, or false; {accepted}")
    text = named[role] if asked is True else str(asked)
    if text not in special:
        raise UserError(f"tokenizer.{role}: {text!r} is no control token (one marked special, which no text can contain); {accepted}")
    return special[text]


def _json_object(content: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise UserError(f"tokenizer.path: {path} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"tokenizer.path: {path} holds a {type(value).__name__}, not an object")
    return value


def _without_machine(content: bytes, path: Path) -> bytes:
    config = _json_object(content, path)
    if not any(key in config for key in _MACHINE_KEYS):
        return content
    kept = {key: value for key, value in config.items() if key not in _MACHINE_KEYS}
    return (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode()


@lru_cache(maxsize=2)
def _library(resolved: ResolvedTokenizer) -> Library:
    """fastokens where it agrees with `tokenizers` on the sample, else `tokenizers`."""
    # fastokens starts threads of its own for long batches; the build's processes already fill the machine. Ids do not depend on it.
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    content = resolved.read()
    tokenizer = parsed(content, resolved.folder / resolved.tokenizer_file)
    trusted = HuggingFace(tokenizer)
    try:
        fast = Fastokens(content.decode())
    except ValueError as error:
        warnings.warn(
            f"{resolved.name}: fastokens cannot load it ({error}); encoding with {trusted.name}, about 30 times slower", stacklevel=3
        )
        return trusted
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    difference = first_difference(fast, trusted, list(parity_texts(added)))
    if difference is None:
        return fast
    warnings.warn(f"{resolved.name}: {difference}; encoding with {trusted.name}, about 30 times slower", stacklevel=3)
    return trusted


def first_difference(one: Library, other: Library, texts: list[str]) -> str | None:
    """Where two libraries first disagree about a text, for people to read; None where they never do."""
    (ids, offsets), (other_ids, other_offsets) = one.encode(texts), other.encode(texts)
    for row, text in enumerate(texts):
        found = ids[offsets[row] : offsets[row + 1]].tolist()
        expected = other_ids[other_offsets[row] : other_offsets[row + 1]].tolist()
        if found != expected:
            at = next((place for place, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected)))
            return (
                f"{one.name} and {other.name} differ on {text[:60]!r} from token {at} on: "
                f"{found[at : at + 4]} of {len(found)} against {expected[at : at + 4]} of {len(expected)}"
            )
    return None


def parity_texts(added_tokens: Sequence[str]) -> Iterator[str]:
    """The start-up sample: every text alone, all of them as one, and every added token alone, inside a word, spaced, doubled and cut short."""
    yield from _SAMPLE
    yield "\n\n".join(_SAMPLE)
    for token in added_tokens:
        yield from (token, f"a{token}b", f" {token} \n{token}{token}", token[:-1])
