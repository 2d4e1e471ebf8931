"""A model in this process: `transformers.generate` for small jobs, vLLM for large ones. Both are imported only here, and only when there is something to ask.

What is made of a model is one function, its exchange: it takes what is newly asked, generates for so many seconds or until there is enough to hand over, and gives what is finished.

A prompt that leaves no room for its answer in the model's context is a fault of its own, `prompt too long`, and is not sent. At temperature 0 both are deterministic as far as the
libraries are; sampled answers of `transformers` depend on what shares the batch, which is why they are stored.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from queue import Queue
from threading import Thread
from typing import Any

from curation.engine.local import Lost
from curation.engine.orphans import ending_together
from curation.synthesis.asking import Asked, Prompt
from curation.synthesis.config import Generation
from curation.synthesis.config import Transformers as TransformersConfig
from curation.synthesis.config import Vllm as VllmConfig
from curation.synthesis.store import Answer
from mixing import UserError

Answers = list[tuple[int, Answer]]
Exchange = Callable[[Sequence[Asked], float], Answers]

TOO_LONG = Answer("", fault="prompt too long")


def exchange(generation: Generation, model: str) -> Exchange:
    """That of the model in the folder, or of the hub's name, `model`, which is loaded."""
    config = generation.backend
    if isinstance(config, VllmConfig):
        return Vllm(config, generation, model).exchange
    assert isinstance(config, TransformersConfig)
    return Transformers(config, generation, model).exchange


def _ids(prompt: Prompt, tokenizer: Any) -> list[int]:
    """The prompt's token ids: a chat by the model's own template, or by blank lines if it has none."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if tokenizer.chat_template is None:
        return list(tokenizer("\n\n".join(message["content"] for message in prompt) + "\n\n")["input_ids"])
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _missing(package: str, remedy: str) -> UserError:
    return UserError(f"synthesize.backend: {package} is not installed on {socket.gethostname()}; {remedy}")


def _not_loaded(model: str, error: Exception) -> UserError:
    lines = (str(error).strip() or type(error).__name__).splitlines()
    reason = lines["validation error" in lines[0] and len(lines) > 1].strip()  # pydantic's first line counts them
    return UserError(
        f"synthesize.model: {model} cannot be loaded on {socket.gethostname()}: {reason}; accepted: a folder that transformers wrote or a name of the Hugging Face hub"
    )


class Transformers:
    """`transformers.generate`, a batch at a time."""

    def __init__(self, config: TransformersConfig, generation: Generation, model: str) -> None:
        try:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError:
            raise _missing("transformers", "pip install 'tilth[synthesis]'") from None

        self._generation = generation
        device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model, revision=generation.revision, padding_side="left")
            loaded: Any = AutoModelForCausalLM.from_pretrained(model, revision=generation.revision, dtype=config.dtype)
        except (OSError, ValueError) as error:
            raise _not_loaded(model, error) from None
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model: Any = loaded.to(torch.device(device)).eval()
        self._context = int(getattr(self._model.config, "max_position_embeddings", 0)) or 1 << 30

    def exchange(self, new: Sequence[Asked], seconds: float) -> Answers:
        """All answers at once; one batch is what is newly asked."""
        return list(zip((one.number for one in new), self._answers(new), strict=True))

    def _answers(self, batch: Sequence[Asked]) -> list[Answer]:
        import torch

        generation = self._generation
        ids = [_ids(one.prompt, self._tokenizer) for one in batch]
        fits = [len(one) + generation.max_tokens <= self._context for one in ids]
        if not any(fits):
            return [TOO_LONG] * len(batch)
        fitting = [one for one, fit in zip(ids, fits, strict=True) if fit]
        padded = self._tokenizer.pad({"input_ids": fitting}, return_tensors="pt").to(self._model.device)
        sampling = (
            {"temperature": generation.temperature, "top_p": generation.top_p, "top_k": 0}
            if generation.temperature > 0
            else {"temperature": None, "top_p": None, "top_k": None}
        )
        torch.manual_seed(batch[0].seed)
        with torch.inference_mode():
            made = self._model.generate(
                input_ids=padded["input_ids"],
                attention_mask=padded["attention_mask"],
                max_new_tokens=generation.max_tokens,
                do_sample=generation.temperature > 0,
                pad_token_id=self._tokenizer.pad_token_id,
                **sampling,
            )
        ends = self._model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends, self._tokenizer.eos_token_id}
        answers = iter(
            [self._ended(row[padded["input_ids"].shape[1] :].tolist(), len(one), ends) for row, one in zip(made, fitting, strict=True)]
        )
        return [next(answers) if fit else TOO_LONG for fit in fits]

    def _ended(self, ids: list[int], prompt: int, ends: set[int]) -> Answer:
        end = next((at for at, token in enumerate(ids) if token in ends), None)
        text = str(self._tokenizer.decode(ids if end is None else ids[:end], skip_special_tokens=True))
        return Answer(text, "length" if end is None else "stop", prompt, len(ids) if end is None else end + 1)


class Vllm:
    """vLLM's engine, fed as fast as it answers: what is finished leaves at once, and something new takes its place."""

    def __init__(self, config: VllmConfig, generation: Generation, model: str) -> None:
        # Its engine gets a process of its own: this one has threads, and modules (llvmlite) that vLLM's search for Triton kernels on a CPU stumbles over.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        try:
            import vllm
        except ImportError:
            remedy = "pip install 'tilth[vllm]', best in an environment of its own, or start its server and write backend: server"
            raise _missing("vllm", remedy) from None
        others = set(active_children())
        try:
            with ending_together():
                self._llm = vllm.LLM(
                    model=model,
                    revision=generation.revision,
                    tensor_parallel_size=config.tensor_parallel,
                    distributed_executor_backend="mp" if config.tensor_parallel > 1 else None,  # under Ray it would ask Ray for GPUs again
                    dtype=config.dtype,
                    max_model_len=config.context,
                    enforce_eager=config.eager,
                    generation_config="vllm",  # the recipe says how to sample, not a file of the model
                )
        except (OSError, ValueError) as error:
            raise _not_loaded(model, error) from None
        except RuntimeError as error:
            raise UserError(
                f"synthesize.backend: vLLM did not start on {socket.gethostname()}: {error}; what it wrote stands on stderr, on a cluster in Ray's logs of that node"
            ) from None
        waiting = self._llm.llm_engine.engine_core.outputs_queue
        Thread(target=_tell_of_death, args=(set(active_children()) - others, waiting), daemon=True).start()
        self._generation = generation
        self._enough = max(1, config.in_flight // 8)
        self._tokenizer = self._llm.get_tokenizer()
        self._context = int(self._llm.llm_engine.model_config.max_model_len)

    def exchange(self, new: Sequence[Asked], seconds: float) -> Answers:
        """What is finished after so many seconds, or as soon as an eighth of what may be under way is."""
        from vllm.v1.engine.exceptions import EngineDeadError

        engine, until = self._llm.llm_engine, time.monotonic() + seconds
        done = [(one.number, TOO_LONG) for one in new if not self._added(one)]
        try:
            while engine.has_unfinished_requests():
                done += [(int(output.request_id), _read(output)) for output in engine.step() if output.finished]
                if len(done) >= self._enough or time.monotonic() >= until:
                    break
        except EngineDeadError:
            raise Lost(
                f"synthesize.backend: vLLM's engine on {socket.gethostname()} died (killed, out of memory, or of an error that stands on stderr); what was answered is kept: run it again"
            ) from None
        return done

    def _added(self, one: Asked) -> bool:
        """Whether there is room for its answer; then it is under way."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        generation, ids = self._generation, _ids(one.prompt, self._tokenizer)
        if len(ids) + generation.max_tokens > self._context:
            return False
        sampling = SamplingParams(
            temperature=generation.temperature,
            top_p=generation.top_p,
            max_tokens=generation.max_tokens,
            seed=one.seed,
            structured_outputs=StructuredOutputsParams(json=one.schema) if generation.guided and one.schema is not None else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._llm.llm_engine.add_request(str(one.number), {"prompt_token_ids": ids}, sampling)
        return True


def _tell_of_death(engine: set[BaseProcess], waiting: Queue[Any]) -> None:
    """Of an engine that was killed: vLLM (0.32) would wait without end for what it has to say."""
    from vllm.v1.engine.exceptions import EngineDeadError

    wait([process.sentinel for process in engine])
    waiting.put(EngineDeadError())


def _read(output: Any) -> Answer:
    made = output.outputs[0]
    return Answer(made.text, made.finish_reason or "stop", len(output.prompt_token_ids or ()), len(made.token_ids))
