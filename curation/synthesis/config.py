"""What a recipe says of a source that is synthesized: from which documents, by which template and model, how much, and where the model runs.

Where the model runs (`backend`) decides no document's identity: an answer is stored under the model, its revision, the template, the parameters and the prompt, whoever gave it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mixing.strategies.shares import TokenCount


class Server(BaseModel):
    """An OpenAI-compatible server. Its key, if it wants one, is read from the environment variable OPENAI_API_KEY."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["server"] = "server"
    url: str | None = Field(None, description="up to `/v1`; `--root SOURCE=URL` on the command line comes before it")
    in_flight: int = Field(64, ge=1, description="requests under way at a time")
    timeout: float = Field(600, gt=0, description="seconds until a request that has no answer is sent again")
    patience: float = Field(600, ge=0, description="seconds without any answer until the build stops; what was answered is kept")


class Vllm(BaseModel):
    """vLLM in the process of the build, on a cluster in one for every `tensor_parallel` GPUs (the extra `vllm`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vllm"] = "vllm"
    tensor_parallel: int = Field(1, ge=1, description="devices that share the model, all of one machine")
    dtype: str = "auto"
    in_flight: int = Field(1024, ge=1, description="requests in vLLM's queue at a time, in that of each process on a cluster")
    context: int | None = Field(None, ge=1, description="tokens of prompt and answer together; the model's own length if not given")
    eager: bool = Field(False, description="start without compiling: quick to begin, slower to run")


class Transformers(BaseModel):
    """`transformers.generate` in the process of the build, on a cluster in one a GPU: for small jobs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["transformers"] = "transformers"
    batch: int = Field(16, ge=1, description="prompts generated together")
    dtype: str = "auto"
    device: str = "auto"


def _by_name(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


Backend = Annotated[Annotated[Server | Vllm | Transformers, Field(discriminator="kind")], BeforeValidator(_by_name)]


class Generation(BaseModel):
    """A model and how it is sampled: with the template and the prompt, what an answer is stored under."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="a folder, a hub name, or the name a server knows it by")
    revision: str | None = Field(None, description="of a hub model; a folder's is the sha256 of its files")
    backend: Backend = Field(
        Server.model_validate({}), description="`server`, `vllm` or `transformers`, or a mapping with its `kind` and settings"
    )
    temperature: float = Field(0.7, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(1024, ge=1, description="of an answer")
    guided: bool = Field(True, description="let the server or vLLM allow only tokens that keep to the template's JSON schema")
    attempts: int = Field(3, ge=1, description="times a prompt is sent whose answer cannot be used; at temperature 0 once")


class Judge(Generation):
    """A model that rates every document from 1 to 5: the column `judged`."""

    template: str = "judge"
    temperature: float = Field(0.0, ge=0, le=2)
    max_tokens: int = Field(256, ge=1)


class SynthesizeConfig(Generation):
    """A source made from other documents: `from` says which, a template what is asked of the model and what becomes of its answer."""

    from_: str = Field(alias="from", description="a rule over the documents kept: those it holds for are parents")
    sources: list[str] | None = Field(
        None, description="whose documents may be parents: every source that is read, if not given; a synthesized one stands above"
    )
    template: str | dict[str, str] = Field(description="a template's name or path, or one for each value of `by`")
    by: str | None = Field(None, description="the column or signal whose value chooses a parent's template")
    shares: dict[str, float] | None = Field(None, description="each value's share of `max_documents`; equal ones, if not given")
    per_document: int = Field(
        1, ge=1, description="documents asked of a passage: in one answer, if the template has a list, else in as many"
    )
    passages: int = Field(1, ge=1, description="passages taken of a parent, spread evenly over it")
    passage_tokens: int = Field(
        2048, ge=16, description="of a passage at most, by the recipe's tokenizer: a longer parent is cut at paragraphs and sentences"
    )
    max_documents: TokenCount | None = Field(None, description="documents made at most, before any step")
    corrupt: float = Field(0.0, ge=0, le=1, description="for ablations: the share of documents that get another's answer")
    judge: Judge | None = None
