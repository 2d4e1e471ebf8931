"""Results on disk, the arithmetic of the claims on hand-made curves, and the pages made from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import flagship, interleaved, replay, soup, stability_gap
from experiments.__main__ import main
from experiments.rig import pages
from experiments.rig.judging import FAILS, HOLDS
from experiments.rig.results import Result, Results, load, save, story

ABOUT = {"commit": "abc", "date": "2026-01-01", "hardware": "2 x test", "scale": {"name": "small"}, "exam_medical": "f" * 64}


def made(arm: str, seed: int, *marks: tuple[float, float], domain: str = "medical", tokens: int = 1000) -> Result:
    """An arm whose domain and guard losses are given at evenly spaced marks; its corpora all have the same."""
    curve = []
    for number, (learned, guarded) in enumerate(marks):
        losses = dict.fromkeys(("med_abstracts", "med_textbook", "med_qa"), learned) | dict.fromkeys(("books_en", "wiki_en"), guarded)
        curve.append((number * tokens // max(1, len(marks) - 1), losses))
    return Result(arm, domain, seed, "d" * 64, f"{arm}-run", curve)


def arms(**ends: tuple[float, float]) -> Results:
    """Three seeds of each arm from a base of (6, 5) to the end given."""
    return Results([made(arm.replace("_", "-"), seed, (6.0, 5.0), end) for arm, end in ends.items() for seed in (11, 12, 13)])


def test_saved_results_read_back_and_an_arm_run_again_replaces_itself(tmp_path: Path) -> None:
    save("replay", [made("replay-00", 11, (6.0, 5.0), (4.0, 5.5)), made("replay-00", 12, (6.0, 5.0), (4.1, 5.5))], ABOUT, tmp_path)
    save("replay", [made("replay-00", 12, (6.0, 5.0), (4.2, 5.6))], ABOUT, tmp_path)

    found = load("replay", tmp_path)

    assert [row.seed for row in found.rows] == [11, 12]
    assert found.rows[1].domain_loss() == pytest.approx(4.2)
    assert found.rows[1].guard_loss(0) == 5.0
    assert load("subset", tmp_path).rows == []


def test_every_domain_says_what_it_was_run_on(tmp_path: Path) -> None:
    save("replay", [made("replay-00", 11, (6.0, 5.0), (4.0, 5.5))], ABOUT, tmp_path)
    alone = story("replay", tmp_path)
    save("replay", [made("replay-00", 11, (6.0, 5.0), (4.0, 5.5), domain="math")], {**ABOUT, "commit": "def"}, tmp_path)

    assert alone == "commit abc, 2026-01-01, 2 x test; scale small; exam medical `ffffffffffff`"
    assert story("replay", tmp_path) == (
        "medical: commit abc, 2026-01-01, 2 x test; math: commit def, 2026-01-01, 2 x test; scale small; exam medical `ffffffffffff`"
    )


def test_effects_are_paired_by_domain_and_seed() -> None:
    found = Results([made("a", 11, (1.0, 1.0)), made("b", 11, (3.0, 1.0)), made("a", 12, (1.0, 1.0))])

    assert found.difference("a", "b", Result.domain_loss) == {("medical", 11): -2.0}


def test_replay_is_judged_by_the_share_of_the_rise_that_is_left() -> None:
    found = replay.checks(
        Results(
            [made(arm, 11, (6.0, 5.0), end) for arm, end in zip(replay.ARMS, [(4.0, 6.0), (4.1, 5.8), (4.3, 5.7), (4.8, 5.2)], strict=True)]
        )
    )

    effects = {check.name: next(iter(check.effects.values())) for check in found}
    assert effects["share of the rise left at 18 % replay"] == pytest.approx(0.7)
    assert effects["domain, 18 % replay - none"] == pytest.approx(0.3)
    assert effects["share of the domain's gain lost at 5 % replay"] == pytest.approx(0.05)
    assert len([place for check in found for place in check.broken()]) == 2  # both gates: .6 of the rise, .2 of the domain


def test_gap_recovers_the_share_of_its_highest_rise() -> None:
    dipped = made("x", 11, (6.0, 5.0), (5.0, 6.0), (4.5, 5.8), (4.6, 5.5))

    assert stability_gap.recovered(dipped) == pytest.approx(0.5)
    assert stability_gap.share_at_peak(dipped) == pytest.approx(1 / 3, abs=1e-3)
    assert stability_gap.rises_again(dipped) == pytest.approx(0.1)


def test_soup_below_the_chord_holds_and_on_it_does_not() -> None:
    def souped(middle: tuple[float, float]) -> Results:
        ends = {"0.0": (6.0, 5.0), "0.5": middle, "0.9": (4.2, 5.7), "1.0": (4.0, 6.0)}
        return Results(
            [made(f"{arm}+soup-{share}", seed, end) for arm in soup.SOUPED for share, end in ends.items() for seed in (11, 12, 13)]
        )

    below, on = (soup.checks(souped(middle)) for middle in ((4.6, 5.1), (5.0, 5.5)))

    assert [check.verdict() for check in below[:4]] == [HOLDS] * 4
    assert below[0].of("medical") == pytest.approx([-0.4] * 3)
    assert below[3].of("medical") == pytest.approx([0.3] * 3)
    assert [check.verdict() for check in on[:2]] == [FAILS] * 2


def test_worst_corpus_is_the_one_that_fell_least() -> None:
    result = made("x", 11, (6.0, 5.0), (3.0, 9.0))
    result.end["med_qa"] = 5.4

    assert interleaved.worst(result) == pytest.approx(0.9)


def test_pages_hold_each_number_with_its_manifest_and_keep_the_prose(tmp_path: Path) -> None:
    found = arms(replay_00=(4.0, 6.0), replay_05=(4.05, 5.8), replay_18=(4.1, 5.5), replay_50=(4.6, 5.2))
    save("replay", found.rows, ABOUT, tmp_path)
    (tmp_path / "README.md").write_text("Before\n<!-- summary -->\nstale\n<!-- /summary -->\nafter\n")
    (tmp_path / "replay.md").write_text("Prose\n<!-- results -->\n<!-- /results -->\n")

    pages.write([replay.CLAIM], tmp_path, tmp_path)
    pages.write([replay.CLAIM], tmp_path, tmp_path)

    page = (tmp_path / "replay.md").read_text()
    assert page.startswith("Prose\n")
    assert "| 18 % replay | 3 | 4.100 ± 0.000 | 5.500 ± 0.000 |" in page
    assert f"| `{'d' * 12}` | `replay-18-run` |" in page
    assert f"`{'f' * 12}`" in page
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("Before\n")
    assert readme.endswith("after\n")
    assert "stale" not in readme
    assert "**holds**" in readme
    assert (tmp_path / "figures" / "replay.svg").read_text().startswith("<svg")


def test_page_of_a_claim_that_was_not_run_has_no_number(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("<!-- summary -->\n<!-- /summary -->\n")
    (tmp_path / "flagship.md").write_text("<!-- results -->\n<!-- /results -->\n")

    pages.write([flagship.CLAIM], tmp_path, tmp_path)

    assert "| - | **not run yet** |" in (tmp_path / "README.md").read_text()
    assert "±" not in (tmp_path / "flagship.md").read_text()


def test_page_without_its_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("nothing")

    with pytest.raises(ValueError, match="no marks <!-- results -->"):
        pages.insert(tmp_path / "a.md", {"results": "x"})


def test_folder_without_the_corpora_is_one_sentence_that_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "books_en").mkdir()

    with pytest.raises(SystemExit):
        main(["run", "replay", "--corpora", str(tmp_path), "--work", str(tmp_path / "work")])

    said = capsys.readouterr().err
    assert f"--corpora: {tmp_path} has no folder " in said
    assert "wiki_en; experiments/README.md" in said
    assert "books_en" not in said
    assert not (tmp_path / "work").exists()
