"""The language of a text against the library that brings the model, and its script against the regex package's Unicode tables."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from curation.signals import SIGNALS, language, scripts

SIGNAL = SIGNALS["language"]
CONFIG = SIGNAL.config.model_validate({"kind": "language"})
SENTENCES = {
    "en": "The patient was given two hundred milligrams of the drug every morning for a week.",
    "de": "Der Patient erhielt eine Woche lang jeden Morgen zweihundert Milligramm des Medikaments.",
    "fr": "Le patient a reçu deux cents milligrammes du médicament chaque matin pendant une semaine.",
    "es": "El paciente recibió doscientos miligramos del medicamento cada mañana durante una semana.",
    "ru": "Пациент получал двести миллиграммов препарата каждое утро в течение недели.",
    "el": "Ο ασθενής έπαιρνε διακόσια χιλιοστόγραμμα του φαρμάκου κάθε πρωί για μία εβδομάδα.",
    "ja": "患者は一週間、毎朝二百ミリグラムの薬を服用しました。",
    "ko": "환자는 일주일 동안 매일 아침 이백 밀리그램의 약을 복용했다.",
    "ar": "تناول المريض مئتي ملليغرام من الدواء كل صباح لمدة أسبوع.",
    "hi": "मरीज़ को एक सप्ताह तक हर सुबह दो सौ मिलीग्राम दवा दी गई।",
    "th": "ผู้ป่วยได้รับยาสองร้อยมิลลิกรัมทุกเช้าเป็นเวลาหนึ่งสัปดาห์",
    "zh": "患者连续一周每天早晨服用两百毫克药物。",
}


def computed(*texts: str) -> list[dict[str, Any]]:
    values: list[dict[str, Any]] = SIGNAL.compute(CONFIG, pa.array(texts, pa.large_string()), None).to_pylist()
    return values


@pytest.fixture(scope="module")
def library() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def test_sentence_of_a_language_is_told_with_its_script() -> None:
    values = computed(*SENTENCES.values())

    assert [value["code"] for value in values] == list(SENTENCES)
    assert [value["script"] for value in values] == [*["Latn"] * 4, "Cyrl", "Grek", "Jpan", "Hang", "Arab", "Deva", "Thai", "Hans"]
    assert all(value["script_share"] == 1 and 0.5 < value["probability"] <= 1 for value in values)


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from([*" ".join(SENTENCES.values()).split(), "\n", "THE", "e\u0301", "42", "{}", "🙂"]), max_size=60).map(" ".join)
)
def test_language_of_a_short_text_is_the_librarys(library: LanguageIdentifier, text: str) -> None:
    (value,) = computed(text)

    if value["code"] is not None and value["script"] not in language.HAN and len(text.encode()) <= language.WINDOWS * language.WINDOW:
        ranked = dict(library.rank(text))
        assert ranked[value["code"]] == pytest.approx(max(ranked.values()), abs=1e-3)
        assert value["probability"] == pytest.approx(ranked[value["code"]], abs=1e-3)


@settings(max_examples=200)
@given(  # without letters that are named by what they do or show, not by their script, as modifier letters and Ⅎ: they count as of none
    st.text(
        st.characters(categories=["Lu", "Ll", "Lt", "Lo", "N", "P", "Zs"], exclude_characters="ªº\u212a\u212b\u2126\u2132\u214e\u2183"),
        max_size=40,
    )
)
def test_script_of_a_text_is_that_of_most_letters_by_another_table(text: str) -> None:
    known = {
        code: regex.compile(rf"\p{{Script={code}}}")
        for code in ("Latn", "Cyrl", "Grek", "Arab", "Hebr", "Deva", "Thai", "Hang", "Armn", "Ethi", "Telu")
    }
    letters = [letter for letter in text if letter.isalpha()]
    counts = Counter(code for letter in letters for code, pattern in known.items() if pattern.match(letter))
    (value,) = computed(text)

    assert (value["script"] is None) == (not letters) == (value["code"] is None)
    if counts and counts.most_common(1)[0][1] * 2 > len(letters):
        assert value["script"] == counts.most_common(1)[0][0]


@pytest.mark.parametrize(
    ("text", "script", "code"),
    [
        ("汉语与国家的传统", "Hans", "zh"),
        ("漢語與國家的傳統", "Hant", "zh"),
        ("中文", "Hani", "zh"),
        ("東京に住んでいます", "Jpan", "ja"),
        ("大雪天地閉羣山夜來晴", "Hant", "zh"),
        ("１２３", None, None),
        ("", None, None),
        ("🙂!?", None, None),
    ],
)
def test_han_is_told_as_simplified_traditional_or_both(text: str, script: str | None, code: str | None) -> None:
    (value,) = computed(text)

    assert (value["script"], value["code"]) == (script, code)


def test_long_text_is_read_in_three_windows_whatever_bytes_they_cut() -> None:
    text = SENTENCES["ru"] * 100 + SENTENCES["de"] * 5

    read = language.sampled(text).decode()

    assert len(read.encode()) <= language.WINDOWS * language.WINDOW + 2
    assert text.startswith(read[:400])
    assert text.endswith(read[-400:])
    assert computed(text)[0]["code"] == "ru"


def test_value_of_a_text_does_not_depend_on_its_neighbours() -> None:
    texts = [*SENTENCES.values(), "", "x"]

    assert computed(*texts) == [computed(text)[0] for text in texts]
    assert SIGNAL.compute(CONFIG, pa.array([], pa.large_string()), None).type == SIGNAL.fields(CONFIG)


def test_every_script_listed_begins_a_name_of_unicode() -> None:
    assert set(scripts.CODES) == {*scripts.NAMES.values(), scripts.OTHER}
    assert len(scripts.CODES) < 250


TRAIN = """
import sys, fasttext
fasttext.train_supervised(input=sys.argv[1], dim=8, epoch=int(sys.argv[4]), lr=0.5, minCount=1, minn=2, maxn=3, bucket=2000, loss=sys.argv[3], thread=1, seed=1, verbose=0).save_model(sys.argv[2])
"""


@pytest.mark.parametrize(
    ("loss", "epochs"), [("hs", "40"), ("hs", "1000"), ("softmax", "40")]
)  # lid.176.bin has the first; so sure a model leaves labels out
def test_language_by_a_named_fasttext_model_is_its_label(loss: str, epochs: str, tmp_path: Path) -> None:
    lines = [f"__label__{code} {word}" for code in ("en", "de", "fr", "zh") for word in SENTENCES[code].split() * 8]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "lines.txt"), str(tmp_path / "lid.bin"), loss, epochs]
    subprocess.run(command, capture_output=True, check=True)
    config = SIGNAL.config.model_validate({"kind": "language", "model": "lid.bin"})
    folder = tmp_path / "prepared"
    folder.mkdir()

    assert list(SIGNAL.references(config)) == ["model"]
    SIGNAL.train(config, {"model": pa.array([str(tmp_path / "lid.bin")], pa.large_string())}, folder, 0)
    texts = [SENTENCES["de"], SENTENCES["fr"], SENTENCES["en"], "大雪天地閉羣山夜來晴", "42", ""]
    values = SIGNAL.compute(config, pa.array(texts, pa.large_string()), folder).to_pylist()

    assert [value["code"] for value in values] == ["de", "fr", "en", "zh", None, None]
    assert [value["script"] for value in values] == ["Latn", "Latn", "Latn", "Hant", None, None]
    assert SIGNAL.version(config) != SIGNAL.version(CONFIG)
