"""Weights into a model that has none yet: drawn, or read from safetensors, each process only its share of them.

A model is built on the meta device (`skeleton`), sharded if at all, given memory (`materialise`), and then filled. No process holds more than its
shares and one whole tensor. Drawn weights depend on the architecture and the seed alone, read ones are those of transformers' from_pretrained, bit for
bit, whatever the number of processes and the device. Only where the names in the files are not the model's own does transformers load and translate
them, in every process the whole model.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # what torch's own checkpoints find a share with
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from mixing import UserError
from train import attention

INDEX = "model.safetensors.index.json"


def skeleton(architecture: PretrainedConfig) -> PreTrainedModel:
    """The model without memory, fp32, with our attention."""
    built: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model: PreTrainedModel | None = built.from_config(architecture, dtype=torch.float32, attn_implementation=attention.NAME)
    except (AssertionError, ImportError, KeyError, TypeError, ValueError) as error:
        if getattr(error, "args", None) != (attention.NAME,):
            raise UserError(
                f"model: transformers cannot build a {architecture.model_type} of this configuration: {first_line(error)}"
            ) from None
        model = None  # a table of attention classes by name, of the time before attention functions
    if model is None or not model._supports_attention_backend:
        raise UserError(
            f"model: {architecture.model_type} does not take the attention functions of transformers, so its documents cannot be kept apart; "
            "llama, qwen3, mistral, gemma3_text, olmo2, phi3, gpt_neox and most newer ones do"
        )
    setattr(model, "is_custom_code", lambda: False)  # noqa: B010  # else FSDP's subclass counts as such, and is not initialised in the same way
    return model


def materialise(model: PreTrainedModel, device: torch.device) -> None:
    """Memory for all parameters and buffers; what is in it is filled in later, but for the buffers that no file holds."""
    model.to_empty(device=device)
    model.tie_weights()
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers leaves such a one alone
    model.initialize_weights()  # type: ignore[no-untyped-call]


def draw(model: PreTrainedModel, seed: int) -> None:
    """Random weights, as transformers initialises them."""
    for module in model.modules():
        module._is_hf_initialized = False  # type: ignore[assignment]
    for parameter in model.parameters():
        parameter._is_hf_initialized = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    with _OneByOne():
        model.initialize_weights()  # type: ignore[no-untyped-call]


class _OneByOne(TorchFunctionMode):
    """Initialises a tensor that is sharded or not on the CPU by a whole one that is on the CPU: every process draws the same numbers in the same order."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        random = getattr(function, "__module__", "") == "torch.nn.init" or function.__name__ in ("normal_", "uniform_")
        if random and args == ():  # torch.nn.init names all of its arguments
            args = (kwargs.pop("tensor"),)
        target = args[0] if args else None
        if random and isinstance(target, nn.Parameter) and (isinstance(target, DTensor) or not target.is_cpu):
            whole = torch.empty(target.shape, dtype=target.dtype)
            function(whole, *args[1:], **kwargs)
            _keep(target, whole)
            return target
        if isinstance(target, DTensor) and function is torch.Tensor.__getitem__:  # the row of the padding token, to be zeroed where it lies
            rows = part(target)[0]
            return share(target)[args[1] - rows.start] if rows.start <= args[1] < rows.stop else torch.empty(target.shape[1:])
        return function(*args, **kwargs)


def part(tensor: torch.Tensor) -> tuple[slice, ...]:
    """Where this process' share of a tensor stands in the whole one."""
    if not isinstance(tensor, DTensor):
        return tuple(slice(0, size) for size in tensor.shape)
    sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))


def _keep(tensor: torch.Tensor, whole: Any) -> None:
    """This process' share of `whole`, a tensor or a slice of a file, into `tensor`."""
    share(tensor).copy_(whole[part(tensor)] if tensor.ndim else whole[...])


def share(tensor: torch.Tensor) -> torch.Tensor:
    """This process' share of it, on the same memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def read(model: PreTrainedModel, path: str) -> None:
    """The weights of a folder or hub name; refused if they are not safetensors, or do not fill the model."""
    kept = model.state_dict().keys()
    wanted = dict(model.named_parameters()) | {name: buffer for name, buffer in model.named_buffers() if name in kept}
    files: dict[str, list[str]] = defaultdict(list)
    for name, file in _files(path).items():
        files[file].append(name)
    shapes: dict[str, list[int]] = {}
    for file, names in files.items():
        with safe_open(file, "pt") as stored:
            shapes |= {name: stored.get_slice(name).get_shape() for name in names if name in wanted}
    if shapes != {name: list(tensor.shape) for name, tensor in wanted.items()}:
        _translated(model, path, wanted)
        return
    for file, names in files.items():
        with safe_open(file, "pt") as stored:
            for name in names:
                if name in wanted:
                    _keep(wanted[name], stored.get_slice(name))


def _files(path: str) -> dict[str, str]:
    """The safetensors file of every tensor; none if transformers has to look for them itself."""
    index = cached_file(path, INDEX, _raise_exceptions_for_missing_entries=False)
    if index is not None:
        named = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        found, _ = get_checkpoint_shard_files(path, index)  # type: ignore[no-untyped-call]
        places = {Path(file).name: file for file in found}
        return {name: places[Path(file).name] for name, file in named.items()}
    single = cached_file(path, "model.safetensors", _raise_exceptions_for_missing_entries=False)
    if single is None:
        return {}
    with safe_open(single, "pt") as stored:
        return dict.fromkeys(stored.keys(), single)


def _translated(model: PreTrainedModel, path: str, wanted: dict[str, torch.Tensor]) -> None:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, config=model.config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"model.path: {path}: {first_line(error)}; a folder or hub name with safetensors weights is needed") from None
    whole, report = loaded
    if missing := sorted(str(key) for key in [*report["missing_keys"], *report["mismatched_keys"]]):
        raise UserError(
            f"model.path: {path} lacks {len(missing)} of the model's tensors ({missing[0]}, …); its weights do not fit its config.json"
        )
    tensors = dict(whole.named_parameters()) | dict(whole.named_buffers())
    for name, tensor in wanted.items():
        _keep(tensor, tensors[name].detach())


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
