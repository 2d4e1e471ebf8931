from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mixing import UserError, validated
from mixing.manifest import Manifest
from train.config import Config, as_yaml, config_digest, load, resolved


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (20000, 20000),
        ("20k", 20000),
        ("1.5M", 1_500_000),
        ("1e9", 10**9),
        (1e9, 10**9),
        ("0.02", 0.02),
        (0.5, 0.5),
        (0, 0),
        ("2B", 2 * 10**9),
    ],
)
def test_amount_as_written_is_tokens_or_a_share(written: object, read: float, settings: dict[str, Any]) -> None:
    config = validated(Config, settings | {"schedule": {"warmup": written}})

    assert config.schedule.warmup == read
    assert type(config.schedule.warmup) is type(read)


@pytest.mark.parametrize("written", [-1, 1.5, "many", True, None, "-3M", [1]])
def test_amount_that_is_neither_is_refused_by_its_path(written: object, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^schedule\.warmup: found .*an amount is a count of tokens"):
        validated(Config, settings | {"schedule": {"warmup": written}})


def test_load_with_overrides_puts_them_over_the_file(config_file: Path) -> None:
    config = load(config_file, ["optimizer.learning_rate=1e-4", "schedule.kind=wsd", "model.config.hidden_size=64", "micro_batch=2"])

    assert (config.optimizer.learning_rate, config.schedule.kind, config.micro_batch) == (1e-4, "wsd", 2)
    assert config.model.config is not None
    assert config.model.config["hidden_size"] == 64
    assert config.model.config["num_hidden_layers"] == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.rate=1", r"optimizer\.rate: unknown key 'rate'; accepted here: betas, clip, decay_embeddings, epsilon, kind, "),
        ("learning_rate=1", "learning_rate: unknown key 'learning_rate'"),
        ("batch=0", "batch: found 0"),
        ("batch.size=4", "batch holds 8, not keys of its own"),
        ("evaluate.every=0", r"evaluate\.every: found 0; it must be more than 0 tokens"),
        ("model.path=here", "model: give either path"),
        ("schedule.kind=step", r"schedule\.kind: found 'step'"),
        ("batch", "not an override; write key=value"),
        ("batch=[", "the value is not YAML"),
    ],
)
def test_load_with_a_wrong_override_is_one_message(override: str, message: str, config_file: Path) -> None:
    with pytest.raises(UserError, match=message):
        load(config_file, [override])


def test_resolved_configuration_reads_back_as_itself(settings: dict[str, Any], manifest: Manifest, tmp_path: Path) -> None:
    total = sum(stage["tokens"] for stage in manifest.stages)
    config = resolved(validated(Config, settings | {"schedule": {"warmup": 0.25}}), manifest, "fresh")
    (tmp_path / "config.yaml").write_text(as_yaml(config))

    assert load(tmp_path / "config.yaml") == config
    assert resolved(load(tmp_path / "config.yaml"), manifest, "fresh") == config
    assert config.schedule.warmup == total // 4
    assert config.model.config is not None
    assert config.model.config["vocab_size"] == manifest.tokenizer["vocab_size"]


def test_resolved_for_another_manifest_is_refused(settings: dict[str, Any], manifest: Manifest) -> None:
    other = {"name": "small", "version": 1, "digest": "0" * 64}

    with pytest.raises(UserError, match=r"manifest\.digest: the configuration belongs to 0000"):
        resolved(validated(Config, settings | {"manifest": other}), manifest, "fresh")


def test_config_digest_changes_with_what_decides_the_result_only(settings: dict[str, Any], manifest: Manifest) -> None:
    def digest(**changed: object) -> str:
        return config_digest(resolved(validated(Config, settings | changed), manifest, "fresh"))

    same = [
        digest(),
        digest(micro_batch=2),
        digest(checkpoint={"keep": 5}),
        digest(evaluate={"every": 100}),
        digest(guard={"patience": 99}),
    ]
    other = [
        digest(batch=4),
        digest(seed=1),
        digest(optimizer={"learning_rate": 0.02}),
        digest(precision="bf16"),
        digest(guard={"sigma": 5}),
    ]

    assert set(same) == {digest()}
    assert len({digest(), *other}) == 6


def test_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text(yaml.safe_dump([1, 2]))

    with pytest.raises(UserError, match="found list; a configuration is a mapping"):
        load(path)
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "absent.yaml")
