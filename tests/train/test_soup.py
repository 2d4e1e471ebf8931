from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from mixing import UserError
from mixing.curves import chord
from mixing.measurements import read
from train.__main__ import main
from train.soup import blended, ingredients, simplex, write
from train.soup_search import choose

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}


def model(folder: Path, seed: int, tokenizer: Path, **changed: Any) -> Path:
    torch.manual_seed(seed)
    dtype = changed.pop("dtype", torch.float32)
    shards = changed.pop("max_shard_size", "1GB")
    LlamaForCausalLM(LlamaConfig(**(SIZES | {"tie_word_embeddings": True} | changed))).to(dtype).save_pretrained(
        folder, max_shard_size=shards
    )
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    return folder


@pytest.fixture
def tokenizer(manifest_folder: Path) -> Path:
    return manifest_folder / "tokenizer" / "tokenizer.json"


def test_soup_equals_the_manual_average_and_loads_tied(tmp_path: Path, tokenizer: Path) -> None:
    folders = [model(tmp_path / f"{seed}", seed, tokenizer) for seed in range(3)]

    write(ingredients(folders), [0.5, 0.25, 0.25], tmp_path / "soup")

    parts = [load_file(folder / "model.safetensors") for folder in folders]
    made = load_file(tmp_path / "soup" / "model.safetensors")
    assert made.keys() == parts[0].keys()
    assert "lm_head.weight" not in made
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, 0.5 * parts[0][name] + 0.25 * parts[1][name] + 0.25 * parts[2][name], rtol=1e-6, atol=1e-7)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "soup")
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    assert (tmp_path / "soup" / "tokenizer.json").read_bytes() == tokenizer.read_bytes()


def test_soup_of_shards_and_of_bf16_sums_in_fp32(tmp_path: Path, tokenizer: Path) -> None:
    folders = [model(tmp_path / f"{seed}", seed, tokenizer, dtype=torch.bfloat16, max_shard_size="30KB") for seed in range(2)]
    assert len(list(folders[0].glob("*.safetensors"))) > 1

    parts = ingredients(folders)
    write(parts, [0.3, 0.7], tmp_path / "soup")

    assert sorted(path.name for path in (tmp_path / "soup").iterdir()) == sorted(path.name for path in folders[0].iterdir())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "soup").state_dict()
    for name in parts[0].files:
        expected = (0.3 * parts[0].tensor(name).float() + 0.7 * parts[1].tensor(name).float()).to(torch.bfloat16)
        assert (loaded[name] == expected).float().mean() > 0.99  # a fused multiply-add may round the last bit
        assert torch.equal(blended(parts, [1.0, 0.0], name), parts[0].tensor(name))


def test_models_that_make_no_soup_are_refused_by_name(tmp_path: Path, tokenizer: Path) -> None:
    base = model(tmp_path / "base", 0, tokenizer)
    wider = model(tmp_path / "wider", 0, tokenizer, intermediate_size=80)
    deeper = model(tmp_path / "deeper", 0, tokenizer, num_hidden_layers=3)
    untied = model(tmp_path / "untied", 0, tokenizer, tie_word_embeddings=False)
    larger = model(tmp_path / "larger", 0, tokenizer, vocab_size=310)
    renamed = model(tmp_path / "renamed", 0, tokenizer)
    (renamed / "tokenizer.json").write_text(tokenizer.read_text().replace("<|end|>", "<|fin|>"))

    for other, message in (
        (wider, r"wider: model\.layers\.0\.mlp\.down_proj\.weight is \[32, 80\], in .*base \[32, 64\]"),
        (deeper, r"base: no tensor model\.layers\.2\..* which .*deeper has"),
        (untied, r"untied: tie_word_embeddings is false, .*base ties its embeddings"),
        (larger, r"larger: model\.embed_tokens\.weight is \[310, 32\], in .* \[300, 32\]"),
        (renamed, r"renamed: another vocabulary than .*, different in 2 tokens such as '<\|end\|>' \(0\)"),
        (tmp_path / "absent", r"absent: no model in safetensors here"),
    ):
        with pytest.raises(UserError, match=message):
            ingredients([base, other])


def test_weights_that_are_no_average_and_folders_that_exist_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    parts = ingredients([model(tmp_path / f"{seed}", seed, tokenizer) for seed in range(2)])

    with pytest.raises(UserError, match=r"weights 0\.5, 0\.6: 2 models need as many weights, which add up to 1"):
        write(parts, [0.5, 0.6], tmp_path / "soup")
    with pytest.raises(UserError, match="exists; name a folder that does not"):
        write(parts, [0.5, 0.5], tmp_path / "0")
    assert not (tmp_path / "soup").exists()


def test_integers_that_differ_cannot_be_averaged(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        save_file({"steps": torch.tensor([value]), "w": torch.ones(2) * value}, tmp_path / name / "model.safetensors")

    parts = ingredients([tmp_path / "a", tmp_path / "b"])
    assert blended(parts, [0.5, 0.5], "w").tolist() == [1.5, 1.5]
    with pytest.raises(UserError, match=r"b: steps holds torch\.int64 that differs"):
        write(parts, [0.5, 0.5], tmp_path / "soup")


def test_simplex_and_chord_have_hand_values() -> None:
    assert list(simplex(2, 4)) == [(1.0, 0.0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.0, 1.0)]
    three = list(simplex(3, 2))
    assert sorted(three) == sorted([(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)])
    values = {(1.0, 0.0): 4.0, (0.0, 1.0): 6.0, (0.25, 0.75): 5.0}
    assert chord(values, (0.25, 0.75)) == pytest.approx(5.5)


def test_grid_measures_every_soup_and_writes_the_best_that_keeps_the_guard(tmp_path: Path, tokenizer: Path, manifest_folder: Path) -> None:
    folders = [model(tmp_path / name, seed, tokenizer) for seed, name in enumerate(("base", "trained"))]
    command = ["soup", f"old={folders[0]}", f"new={folders[1]}", "--grid", "4", "-m", str(manifest_folder), "--target", "loss/code"]

    free = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "free")])
    assert free.exit_code == 0, free.output

    described = json.loads((tmp_path / "free/soup.json").read_text())
    by_weights = {tuple(one["weights"]): one["values"] for one in described["soups"]}
    assert len(by_weights) == 5
    assert described["best"] == list(min(by_weights, key=lambda weights: by_weights[weights]["loss/code"]))
    again = CliRunner().invoke(main, ["evaluate", str(tmp_path / "free"), str(manifest_folder), "--json"])
    measured = {row["metric"]: row["value"] for row in map(json.loads, again.stdout.splitlines()) if row["component"] is None}
    assert measured == pytest.approx(by_weights[tuple(described["best"])], rel=1e-6)
    runs = {row["run"] for row in read(tmp_path / "free/measurements.jsonl").to_pylist()}
    with (tmp_path / "free/ratios.csv").open() as file:
        ratios = list(csv.DictReader(file))
    assert {row["run"] for row in ratios} == runs
    assert list(ratios[0]) == ["run", "old", "new"]

    nothing = CliRunner().invoke(main, [*command, "--guard", "loss/prose=0", "--guard", "loss/code=0", "-o", str(tmp_path / "kept")])
    kept = json.loads((tmp_path / "kept/soup.json").read_text())
    assert nothing.exit_code == 0, nothing.output
    best = {tuple(one["weights"]): one["values"] for one in kept["soups"]}[tuple(kept["best"])]
    base = by_weights[1.0, 0.0]
    assert best["loss/prose"] <= base["loss/prose"]


def test_grid_in_which_no_soup_keeps_the_guards_is_refused() -> None:
    values = {(1.0, 0.0): {"loss/t": math.nan, "loss/g": 4.0}, (0.0, 1.0): {"loss/t": 3.0, "loss/g": 4.5}}

    assert choose(values, "loss/t", {"loss/g": 0.5}) == (0.0, 1.0)
    with pytest.raises(UserError, match=r"no soup with a finite loss/t keeps loss/g within 0\.1 of the first model"):
        choose(values, "loss/t", {"loss/g": 0.1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a=x"], "a soup is made of two or more models with different names"),
        (["a=x", "a=y"], "with different names"),
        (["x", "y", "--grid", "4"], "--grid: give --manifest and --target too"),
        (["x", "y", "--weights", "half"], "no model in safetensors here"),
    ],
)
def test_soup_that_cannot_be_made_is_one_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["soup", *arguments, "-o", str(tmp_path / "soup")])

    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line
