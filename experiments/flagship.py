"""E19 + E10: the combined recipe with 40 % of the tokens against a noisy pool read once, then a soup; and against a pool that itself holds general text."""

from __future__ import annotations

from experiments.rig.arms import GENERAL_SHARE, full, recipe_on_general, soups, subset
from experiments.rig.claim import Claim
from experiments.rig.figures import paths
from experiments.rig.judging import Check
from experiments.rig.recipes import Rig
from experiments.rig.results import Result, Results

MORE_REPLAY = 0.45  # added when 30 % had proved too little: reported, not gated
SOUP = "subset-importance+soup-0.8"
ARMS = {
    "full": "whole pool, one epoch (100 % of the tokens)",
    "subset-random": "random fifth + 18 % replay (40 %)",
    "subset-importance": "recipe: best fifth + 18 % replay (40 %)",
    SOUP: "recipe, soup with 0.2 of the base",
    "full-general": "pool with a quarter of general text, one epoch",
    "recipe-general": "its recipe: best quarter + 30 % replay (40 %)",
    "recipe-general-45": "its recipe with 45 % replay",
    "recipe-general+soup-0.9": "its recipe, soup with 0.1 of the base",
    "recipe-general+soup-0.8": "its recipe, soup with 0.2 of the base",
}


def run(rig: Rig) -> list[Result]:
    recipe, general = subset(rig, "importance"), recipe_on_general(rig)
    return [
        recipe,
        full(rig),
        *soups(rig, recipe),
        subset(rig, "random"),
        full(rig, GENERAL_SHARE),
        general,
        *soups(rig, general),
        recipe_on_general(rig, MORE_REPLAY),
    ]


def checks(results: Results) -> list[Check]:
    whole, random, recipe, soup, whole_general, recipe_general, *more = ARMS
    return [
        Check("domain, recipe - whole pool", results.difference(recipe, whole, Result.domain_loss), gate=-0.05),
        Check("guard, recipe - whole pool", results.difference(recipe, whole, Result.guard_loss), gate=-0.2),
        Check(
            "domain, its recipe - pool with general text", results.difference(recipe_general, whole_general, Result.domain_loss), gate=0.0
        ),
        Check("guard, its recipe - pool with general text", results.difference(recipe_general, whole_general, Result.guard_loss), gate=0.0),
        Check("domain, recipe + soup - whole pool", results.difference(soup, whole, Result.domain_loss), gate=0.0),
        Check("guard, recipe + soup - whole pool", results.difference(soup, whole, Result.guard_loss), gate=-0.2),
        Check("domain, recipe - random fifth with replay", results.difference(recipe, random, Result.domain_loss), gate=-0.3),
        *(
            Check(f"{name}, {ARMS[arm]} - pool with general text", results.difference(arm, whole_general, loss), decides=False)
            for arm in more
            for name, loss in (("domain", Result.domain_loss), ("guard", Result.guard_loss))
        ),
    ]


def figures(results: Results) -> dict[str, str]:
    whole = {
        "full": "whole pool (100 % of the tokens)",
        "subset-random": "random fifth + replay (40 %)",
        "subset-importance": "recipe (40 %)",
    }
    general = {"full-general": "pool with general text (100 %)", "recipe-general": "its recipe (40 %)"}
    return {
        "flagship": paths(results, whole, {"recipe, averaged with the base": souped("subset-importance")}),
        "flagship-general": paths(results, general, {"its recipe, averaged with the base": souped("recipe-general")}),
    }


def souped(arm: str) -> list[str]:
    """The arm's soups from all of it to half of it."""
    return [f"{arm}+soup-{step / 10:.1f}" for step in range(10, 4, -1)]


CLAIM = Claim(
    "flagship",
    "The recipe with 40 % of the tokens beats the whole pool on both counts",
    "Choosing the best part, reading it more than once and replaying general text gives more of the domain and forgets less than the whole pool, for 40 % of the tokens.",
    "all strategies of arXiv 2406.14833 (36.2 to 40.7 with 40 % of the budget), with the soup of Databricks' post",
    run,
    checks,
    ARMS,
    gated=True,
    numbers=4,
    figures=figures,
)
