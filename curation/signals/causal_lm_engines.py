"""What computes a causal language model's losses: transformers, or vLLM's prompt log-probabilities. Both are imported only here, and only where there is a text to score.

In: a folder with a model, the tokens of the longest window. Out: for windows of ids, -log p of every token but the first of each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from curation.engine.orphans import ending_together
from mixing import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Windows = Sequence[npt.NDArray[np.uint32]]
    Losses = list[npt.NDArray[np.float32]]

TOKENS_AT_ONCE = 8192  # of a batch on a GPU
SHORTEST = 64  # tokens of a batch's rows on a GPU, the next lengths are twice the last
ALIKE = 64  # windows that vLLM is given at once: what it computes of a prompt stays until the prompt is done


class Transformers:
    """On a CPU windows one by one and in fp32; on a GPU in bfloat16, in batches of a few shapes."""

    def __init__(self, folder: str, context: int, tokens: int | None = None) -> None:
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        device = _device()
        try:
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"causal_lm.model: {folder}: {reason}; a transformers model with safetensors weights is needed") from None
        model, report = loaded
        if missing := sorted(str(key) for key in [*report["missing_keys"], *report["mismatched_keys"]]):
            raise UserError(
                f"causal_lm.model: {folder} lacks {len(missing)} of the model's tensors ({missing[0]}, …); its weights do not fit its config.json"
            )
        self._model = model.to(device).eval()
        self._context = context
        self._tokens = tokens if tokens is not None else TOKENS_AT_ONCE if device.type == "cuda" else 0

    def losses(self, windows: Windows) -> Losses:
        import numpy as np

        found: Losses = [np.zeros(0, np.float32)] * len(windows)
        for batch, length in batches(list(map(len, windows)), self._tokens, self._context):
            rows = np.zeros((max(1, self._tokens // length), length), np.int64)
            for row, number in enumerate(batch):
                rows[row, : len(windows[number])] = windows[number]
            losses = _losses(self._model, rows)
            for row, number in enumerate(batch):
                found[number] = losses[row, : len(windows[number]) - 1]
        return found


def batches(lengths: list[int], tokens: int, context: int) -> Iterator[tuple[list[int], int]]:
    """(numbers of windows, the length of their rows): the windows one by one, or by length, as many rows as `tokens` allows and none longer than `context`."""
    if not tokens:
        yield from (([number], length) for number, length in enumerate(lengths))
        return
    by_length: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        by_length.setdefault(min(context, max(SHORTEST, 1 << (length - 1).bit_length())), []).append(number)
    for length, numbers in sorted(by_length.items(), reverse=True):  # the largest first: memory that does not suffice shows at once
        rows = max(1, tokens // length)
        yield from ((numbers[first : first + rows], length) for first in range(0, len(numbers), rows))


def _losses(model: Any, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """-log p of every token but the first of each row; what fills a row up stands behind its tokens, where no token sees it."""
    import torch
    import torch.nn.functional as F

    with torch.inference_mode(), _one_thread(model.device):
        ids = torch.from_numpy(rows).to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits
        found = [F.cross_entropy(logits[row, :-1].float(), ids[row, 1:], reduction="none") for row in range(len(ids))]
        losses: npt.NDArray[np.float32] = torch.stack(found).cpu().numpy()
    return losses


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU the number of threads decides how sums are cut, and so the last digits."""
    import torch

    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _device() -> torch.device:
    """The GPU of this process, by its number among the workers; the CPU without one."""
    import torch

    return torch.device("cuda", _place() % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")


def _place() -> int:
    import multiprocessing

    number = multiprocessing.current_process()._identity  # none for the build's own process
    return number[0] - 1 if number else 0


class Vllm:
    """vLLM's own batches; bfloat16 on a GPU, fp32 without one. Prefixes are not shared: a token read from the cache has no log-probability."""

    def __init__(self, folder: str, context: int) -> None:
        import torch

        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        if torch.cuda.is_available():  # one of those that this process may see
            given = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))).split(",")
            os.environ["CUDA_VISIBLE_DEVICES"] = given[_place() % len(given)]
        try:
            import vllm
        except ImportError:
            raise UserError(
                "causal_lm.engine: vllm is not installed here; pip install 'tilth[vllm]', best in an environment of its own, or leave the key out"
            ) from None
        with ending_together():
            self._llm = vllm.LLM(
                model=folder,
                dtype="bfloat16" if torch.cuda.is_available() else "float32",
                max_model_len=context + 1,
                enable_prefix_caching=False,
                enforce_eager=not torch.cuda.is_available(),
                disable_log_stats=True,
            )

    def losses(self, windows: Windows) -> Losses:
        import numpy as np
        from vllm import SamplingParams

        asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        found: Losses = []
        for first in range(0, len(windows), ALIKE):
            some = [window.tolist() for window in windows[first : first + ALIKE]]
            outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in some], asked, use_tqdm=False)
            for ids, output in zip(some, outputs, strict=True):
                given = output.prompt_logprobs
                found.append(np.array([-given[at][ids[at]].logprob for at in range(1, len(ids))], np.float32))
        return found
