"""The model and where it lives: a transformers decoder in one process, or sharded over those that torchrun started.

In: a resolved configuration and a manifest. Out: a model in fp32 on its device whose attention stays inside documents (`attention`), its blocks
and its root sharded with FSDP2 under torchrun, without ever standing in one process as a whole (`weights`). Refused: remote code, a vocabulary smaller
than the manifest's or a tokenizer that names other tokens, a context shorter than its sequences. `precision: bf16` computes in bfloat16 and keeps
parameters, reductions and the loss in fp32. Its logits exist for evaluation and proofs only: the loss is taken without them (`loss`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import torch
import torch.distributed as dist
import transformers
from huggingface_hub import constants, try_to_load_from_cache
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import AttentionInterface, AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from mixing import UserError
from mixing.manifest import Manifest
from train import attention, weights
from train.config import Config
from train.loss import losses_of
from train.stream import IGNORED, Rows


class World(NamedTuple):
    """This process among `size`; `sharded` if torchrun started it (also as the only one)."""

    rank: int
    size: int
    device: torch.device
    sharded: bool

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.sharded:
            dist.all_reduce(values)
        return values

    def meet(self) -> None:
        if self.sharded:
            dist.barrier()


@contextmanager
def joined_world() -> Iterator[World]:
    """This process' place in the world, as torchrun's environment variables say; alone without them.

    A world joined before is joined again as it stands. Leaving it and starting it anew in the same processes would read the first one's addresses
    from torchrun's store: all of three trials of up to 60 times leaving and joining ended waiting for an address nobody listened at.
    """
    gpu = torch.cuda.is_available()
    if "RANK" not in os.environ:
        yield World(0, 1, torch.device("cuda" if gpu else "cpu"), sharded=False)
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    first = not dist.is_initialized()
    if first:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", device_id=device if gpu else None)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device, sharded=True)
    finally:
        if first:
            dist.destroy_process_group()


def derived_seed(seed: int, *purpose: object) -> int:
    """A seed of its own for every purpose, so that no state of a generator has to be saved."""
    return int.from_bytes(hashlib.sha256(repr((seed, *purpose)).encode()).digest()[:7])


def prepare_transformers() -> None:
    """Our attention by its name; no progress bars and no advice, since what matters about loading is checked here and refused in one message."""
    AttentionInterface.register(attention.NAME, attention.attend)
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def new_model(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A model of this architecture in this process, with random weights that depend on the seed alone."""
    model = weights.skeleton(config)
    weights.materialise(model, torch.device("cpu"))
    weights.draw(model, derived_seed(seed, "weights"))
    return model


def architecture(config: Config) -> PretrainedConfig:
    """The transformers configuration that `model` names."""
    if config.model.path is not None:
        refuse_absent_folder(config.model.path)
        try:
            found: PretrainedConfig = AutoConfig.from_pretrained(config.model.path)
            return found
        except (OSError, ValueError) as error:
            raise UserError(
                f"model.path: {config.model.path}: {weights.first_line(error)}; give a folder or hub name of a transformers model"
            ) from None
    settings = dict(config.model.config or {})
    kind = settings.pop("model_type")
    try:
        known = AutoConfig.for_model(kind)
    except ValueError:
        raise UserError(
            f"model.config.model_type: transformers knows no {kind!r}; use the name of a causal language model, such as llama"
        ) from None
    if unknown := sorted(key for key in settings if not hasattr(known, key)):
        raise UserError(f"model.config.{unknown[0]}: unknown key for {kind}; accepted here: {', '.join(sorted(known.to_dict()))}")
    return AutoConfig.for_model(kind, **settings)


def refuse_absent_folder(path: str) -> None:
    """A path that is no folder here and no hub name, or one that is neither stored nor to be had because the hub does not answer."""
    if Path(path).is_dir():
        return
    reason = ""
    if not path.startswith((".", "/", "~")) and path.count("/") <= 1 and not ("/" in path and Path(path).parent.is_dir()):
        if isinstance(try_to_load_from_cache(path, "config.json"), str):
            return
        try:
            urlopen(f"{constants.ENDPOINT}/api/models/{path}", timeout=10).close()
            return
        except HTTPError:
            return  # it answers: transformers says what is wrong
        except URLError as error:  # transformers would try again and again
            reason = f", and the hub does not answer ({error.reason})"
    raise UserError(f"model.path: {path}: no such folder{reason}; give a folder or hub name of a transformers model")


def refuse_mismatch(model: PreTrainedModel, path: str | None, manifest: Manifest) -> None:
    """Ids the model has no row for, tokens that mean something else to it, and sequences beyond its context."""
    embeddings = model.get_input_embeddings().weight
    assert isinstance(embeddings, torch.Tensor)
    rows = len(embeddings)
    vocabulary = manifest.tokenizer["vocab_size"]
    if vocabulary > rows:
        raise UserError(
            f"model: {rows} embedding rows, the manifest's tokenizer {manifest.tokenizer['name']} has {vocabulary} tokens; "
            "build the manifest with the model's own tokenizer"
        )
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and manifest.sequence_length > context:
        raise UserError(
            f"model: a context of {context} tokens, the manifest's sequences have {manifest.sequence_length}; rebuild it with shorter ones"
        )
    ours = manifest.folder / "tokenizer" / "tokenizer.json"
    theirs = path and cached_file(path, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    if not theirs or not ours.is_file():
        return
    differing = _tokens(ours).items() ^ _tokens(Path(theirs)).items()
    if differing:
        token, number = min(differing, key=lambda entry: entry[1])
        raise UserError(
            f"model.path: {path} has another tokenizer than the manifest: they differ in {len({token for token, _ in differing})} tokens, "
            f"such as {token!r} ({number}); build the manifest with the model's own tokenizer"
        )


def _tokens(path: Path) -> dict[str, int]:
    """Every token of a tokenizer.json and its number."""
    described = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = described["model"]["vocab"]
    numbered = dict(vocabulary) if isinstance(vocabulary, dict) else {entry[0]: number for number, entry in enumerate(vocabulary)}
    return numbered | {token["content"]: token["id"] for token in described.get("added_tokens", [])}


def place(model: PreTrainedModel, config: Config, world: World) -> PreTrainedModel:
    """The skeleton `model` with memory on its device, and under torchrun sharded: every block, then what is left; gradients are summed, never averaged."""
    model.config.use_cache = False
    kinds = set(getattr(model, "_no_split_modules", None) or [])
    blocks = [module for module in model.modules() if type(module).__name__ in kinds]
    for block in blocks:
        if config.recompute != "none":
            again: Any = partial(checkpoint, block.forward, use_reentrant=False)
            block.forward = partial(again, context_fn=_keeping_products) if config.recompute == "selective" else again
        if config.compile:
            block.compile()
    if world.sharded:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if config.precision == "bf16" else MixedPrecisionPolicy()
        mesh = device_mesh(config.parallel.replicate, world)
        for module in [*blocks, model]:
            fully_shard(module, mesh=mesh, mp_policy=policy)
            assert isinstance(module, FSDPModule)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    weights.materialise(model, world.device)
    return model


def device_mesh(replicate: int, world: World) -> DeviceMesh:
    """One axis to shard over, below one of whole copies if there are several."""
    if world.size % replicate:
        raise UserError(f"parallel.replicate: {replicate} copies of the model on {world.size} processes; it must divide their number")
    kind = world.device.type
    if replicate == 1:
        return init_device_mesh(kind, (world.size,))
    return init_device_mesh(kind, (replicate, world.size // replicate), mesh_dim_names=("copy", "share"))


def _keeping_products() -> Any:
    """Selective recomputation: what a matrix product or attention returned is kept, the rest of a block is cheap to compute again."""

    def policy(_: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
        name = str(operation)
        kept = any(part in name for part in ("aten.mm", "aten.addmm", "aten.bmm", "attention", "varlen_attn"))
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)  # type: ignore[no-untyped-call]


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Forward passes without gradients. Without a backward pass FSDP leaves the root gathered: its parameters, as named outside, would not be those
    that the optimizer moves."""
    model.train(False)
    with torch.no_grad():
        yield
    model.train()
    if isinstance(model, FSDPModule):
        model.reshard()


def logits(model: PreTrainedModel, rows: Rows, precision: str) -> torch.Tensor:
    """[m, L, vocabulary], each position seeing only its own piece."""
    boundaries, longest = attention.bucketed(rows)
    with torch.autocast(rows.input_ids.device.type, torch.bfloat16, enabled=precision == "bf16" and not isinstance(model, FSDPModule)):
        output = model(
            input_ids=rows.input_ids,
            position_ids=rows.position_ids,
            attention_mask=None,
            use_cache=False,
            cu_seq_lens_q=boundaries,
            cu_seq_lens_k=boundaries,
            max_length_q=longest,
            max_length_k=longest,
        )
    scores: torch.Tensor = output.logits
    return scores


def losses(model: PreTrainedModel, rows: Rows, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The nats of all predictions, to be derived once; and of each one, fp32 [m, L] without gradient, 0 where nothing is predicted."""
    return losses_of(model, rows.targets, lambda: logits(model, rows, precision))


def tally(nats: torch.Tensor, rows: Rows, slots: int) -> torch.Tensor:
    """fp64 [3, slots]: the nats, the predictions and the tokens of the rows of each component."""
    per_row = torch.stack([nats.detach().double().sum(1), (rows.targets != IGNORED).sum(1).double(), rows.tokens.double()])
    there = rows.component >= 0
    return torch.zeros(3, slots, dtype=torch.float64, device=nats.device).index_add_(1, rows.component[there], per_row[:, there])


def check_isolation(model: PreTrainedModel, config: Config, manifest: Manifest, world: World) -> None:
    """Promise 10 on this very model, as it will be trained: `attention.check_isolation` with its packed and its plain forward pass."""
    attention.refuse_unknown_layers(model.config)

    def packed(rows: Rows) -> torch.Tensor:
        return logits(model, rows.to(world.device), config.precision).float()

    def alone(rows: Rows) -> torch.Tensor:
        model.set_attn_implementation("eager")
        try:
            return packed(rows)
        finally:
            model.set_attn_implementation(attention.NAME)

    tolerance = 1e-4 if config.precision == "fp32" else 0.05
    with evaluating(model):
        attention.check_isolation(packed, alone, manifest.tokenizer["vocab_size"], manifest.sequence_length, tolerance)
