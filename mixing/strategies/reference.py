"""Strategy `reference_rates`: what a model was pre-trained on, with the web replaced by the domain (arXiv 2406.14833, its third strategy).

The paper's case: Llama's rates with CommonCrawl and C4 replaced give 82 % domain, and 18 % of replay that is curated text, not web.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mixing import UserError
from mixing.strategies.shares import Name, Positive, Supply, written


class Rates(NamedTuple):
    """Published shares of a pre-training corpus, which of them are web pages, and where they were published."""

    shares: dict[str, float]
    web: tuple[str, ...]
    published: str


RATES: dict[str, Rates] = {
    "llama": Rates(
        {"commoncrawl": 67.0, "c4": 15.0, "github": 4.5, "wikipedia": 4.5, "books": 4.5, "arxiv": 2.5, "stackexchange": 2.0},
        ("commoncrawl", "c4"),
        "Llama, sampling proportions in percent: arXiv 2302.13971, table 1",
    ),
    "llama-3": Rates(
        {"general": 50, "math_and_reasoning": 25, "code": 17, "multilingual": 8},
        ("general",),
        "Llama 3, percent of tokens, rounded in the paper: arXiv 2407.21783, section 3.1.2. `general` is mostly, not only, web",
    ),
    "redpajama": Rates(
        {"commoncrawl": 878, "c4": 175, "github": 59, "arxiv": 28, "books": 26, "wikipedia": 24, "stackexchange": 20},
        ("commoncrawl", "c4"),
        "RedPajama-Data-1T, billions of tokens: its dataset card",
    ),
    "pile": Rates(
        {
            "pile-cc": 18.11,
            "pubmed-central": 14.40,
            "books3": 12.07,
            "openwebtext2": 10.01,
            "arxiv": 8.96,
            "github": 7.59,
            "freelaw": 6.12,
            "stackexchange": 5.13,
            "uspto": 3.65,
            "pubmed-abstracts": 3.07,
            "gutenberg": 2.17,
            "opensubtitles": 1.55,
            "wikipedia": 1.53,
            "dm-mathematics": 1.24,
            "ubuntu-irc": 0.88,
            "bookcorpus2": 0.75,
            "europarl": 0.73,
            "hackernews": 0.62,
            "youtubesubtitles": 0.60,
            "philpapers": 0.38,
            "nih-exporter": 0.30,
            "enron": 0.14,
        },
        ("pile-cc", "openwebtext2"),
        "The Pile (Pythia, GPT-NeoX), weight in percent of bytes: arXiv 2101.00027, table 1",
    ),
}


class ReferenceRates(BaseModel):
    """Published pre-training rates, in which the domain takes the place of the web."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Literal["reference_rates"] = "reference_rates"
    rates: Literal["llama", "llama-3", "redpajama", "pile"] | dict[Name, Positive] = Field(
        description="whose rates, or rates of your own as `{source: rate}`"
    )
    domain: Name = Field(description="the component that takes the place of what is replaced")
    replace: list[Name] | None = Field(
        None, description="the sources whose share goes to the domain; without it, the web pages of a published table"
    )
    components: dict[Name, Name | list[Name]] = Field({}, description="which source or sources each other component stands for")

    @model_validator(mode="after")
    def _every_source_has_a_place(self) -> ReferenceRates:
        known, web = (list(self.rates), ()) if isinstance(self.rates, dict) else (list(RATES[self.rates].shares), RATES[self.rates].web)
        if self.replace is None and not web:
            raise ValueError(f"rates of your own need `replace`: which of {', '.join(known)} the domain takes the place of")
        placed = [source for found in self.sources().values() for source in found]
        if strange := [source for source in placed if source not in known]:
            raise ValueError(f"the rates have no source '{strange[0]}'; they have: {', '.join(known)}")
        if twice := [source for source in known if placed.count(source) > 1]:
            raise ValueError(f"source '{twice[0]}' has two places; give it one component, or `replace`")
        if missing := [source for source in known if source not in placed]:
            raise ValueError(f"no component stands for {', '.join(missing)}; map each under `components`, or list it under `replace`")
        return self

    def sources(self) -> dict[str, list[str]]:
        """The sources each component stands for, the domain for what it replaces."""
        web = () if isinstance(self.rates, dict) else RATES[self.rates].web
        named = {name: [found] if isinstance(found, str) else list(found) for name, found in self.components.items()}
        replaced = list(web if self.replace is None else self.replace)
        return {**named, self.domain: [*named.get(self.domain, []), *replaced]}


def reference_rates(config: ReferenceRates, supply: Supply) -> dict[str, Fraction]:
    """w_k = the sum of the rates of the sources that k stands for."""
    rates = config.rates if isinstance(config.rates, dict) else RATES[config.rates].shares
    weights = {name: sum((written(rates[source]) for source in found), Fraction(0)) for name, found in config.sources().items()}
    if unused := [name for name, weight in weights.items() if not weight]:
        raise UserError(f"weights: component '{unused[0]}' stands for no source; name one under `replace` or `components`")
    return {name: weights[name] for name in supply.sizes}
