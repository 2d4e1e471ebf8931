"""A model in the build's own process: `transformers.generate` for small jobs, vLLM for large ones. Both are imported only here, and only when there is something to ask.

A prompt that leaves no room for its answer in the model's context is a fault of its own, `prompt too long`, and is not sent. At temperature 0 both are deterministic as far as the
libraries are; sampled answers of `transformers` depend on what shares the batch, which is why they are stored.
"""

from __future__ import annotations

import os
from typing import Any

from curation.synthesis.asking import Desk, Request
from curation.synthesis.config import Generation
from curation.synthesis.config import Transformers as TransformersConfig
from curation.synthesis.config import Vllm as VllmConfig
from curation.synthesis.store import Answer
from mixing import UserError

TOO_LONG = Answer("", fault="prompt too long")


def _ids(request: Request, tokenizer: Any) -> list[int]:
    """The prompt's token ids: a chat by the model's own template, or by blank lines if it has none."""
    prompt = request.job.prompt
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if tokenizer.chat_template is None:
        return list(tokenizer("\n\n".join(message["content"] for message in prompt) + "\n\n")["input_ids"])
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


class Transformers:
    """`transformers.generate`, a batch at a time."""

    def __init__(self, config: TransformersConfig, model: str, revision: str | None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self._batch = config.batch
        self._tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, padding_side="left")
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, revision=revision, dtype=config.dtype)
        self._model: Any = loaded.to(torch.device(device)).eval()
        self._context = int(getattr(self._model.config, "max_position_embeddings", 0)) or 1 << 30

    def run(self, desk: Desk, generation: Generation) -> None:
        waiting: list[Request] = []
        while True:
            while len(waiting) < self._batch and (request := desk.next()) is not None:
                waiting.append(request)
            if not waiting:
                return
            batch, waiting = waiting[: self._batch], waiting[self._batch :]
            answers = self._answers(batch, generation)
            waiting += [
                follow for request, answer in zip(batch, answers, strict=True) if (follow := desk.settle(request, answer)) is not None
            ]

    def _answers(self, batch: list[Request], generation: Generation) -> list[Answer]:
        import torch

        ids = [_ids(request, self._tokenizer) for request in batch]
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
            [self._read(row[padded["input_ids"].shape[1] :].tolist(), len(one), ends) for row, one in zip(made, fitting, strict=True)]
        )
        return [next(answers) if fit else TOO_LONG for fit in fits]

    def _read(self, ids: list[int], prompt: int, ends: set[int]) -> Answer:
        end = next((at for at, token in enumerate(ids) if token in ends), None)
        text = str(self._tokenizer.decode(ids if end is None else ids[:end], skip_special_tokens=True))
        return Answer(text, "length" if end is None else "stop", prompt, len(ids) if end is None else end + 1)


class Vllm:
    """vLLM's engine, fed as fast as it answers: what is finished leaves at once, and something new takes its place."""

    def __init__(self, config: VllmConfig, model: str, revision: str | None) -> None:
        # Its engine gets a process of its own: this one has threads, and modules (llvmlite) that vLLM's search for Triton kernels on a CPU stumbles over.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        try:
            import vllm
        except ImportError:
            raise UserError(
                "synthesize.backend: vllm is not installed here; pip install 'tilth[vllm]', best in an environment of its own, or start its server and write backend: server"
            ) from None
        self._in_flight = config.in_flight
        self._llm = vllm.LLM(
            model=model,
            revision=revision,
            tensor_parallel_size=config.tensor_parallel,
            dtype=config.dtype,
            max_model_len=config.context,
            enforce_eager=config.eager,
            generation_config="vllm",  # the recipe says how to sample, not a file of the model
        )
        self._tokenizer = self._llm.get_tokenizer()
        self._context = int(self._llm.llm_engine.model_config.max_model_len)

    def run(self, desk: Desk, generation: Generation) -> None:
        engine = self._llm.llm_engine
        running: dict[str, Request] = {}
        number, exhausted = 0, False
        while True:
            while not exhausted and len(running) < self._in_flight:
                request = desk.next()
                exhausted = request is None
                while request is not None:
                    ids = _ids(request, self._tokenizer)
                    if len(ids) + generation.max_tokens > self._context:
                        request = desk.settle(request, TOO_LONG)
                        continue
                    engine.add_request(str(number), {"prompt_token_ids": ids}, self._sampling(request, generation))
                    running[str(number)] = request
                    number, request = number + 1, None
            if not running:
                return
            for output in engine.step():
                if output.finished:
                    request = running.pop(output.request_id)
                    made = output.outputs[0]
                    answer = Answer(made.text, made.finish_reason or "stop", len(output.prompt_token_ids or ()), len(made.token_ids))
                    follow = desk.settle(request, answer)
                    if follow is not None:
                        engine.add_request(
                            str(number), {"prompt_token_ids": _ids(follow, self._tokenizer)}, self._sampling(follow, generation)
                        )
                        running[str(number)] = follow
                        number += 1

    def _sampling(self, request: Request, generation: Generation) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        guided = generation.guided and request.schema is not None
        return SamplingParams(
            temperature=generation.temperature,
            top_p=generation.top_p,
            max_tokens=generation.max_tokens,
            seed=request.seed,
            structured_outputs=StructuredOutputsParams(json=request.schema) if guided else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
