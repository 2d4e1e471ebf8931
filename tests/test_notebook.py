"""docs/guides/from-python.md in a real notebook: its blocks are cells of a kernel, with more workers, an endpoint that answers, and mistakes in between."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from answering import Answering

ROOT = Path(__file__).parents[1]
WANTED = "a notebook wants `pip install nbclient ipykernel`"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MISTAKE = 'curation.build("recipe.yaml", "sedd=3", output="x")'
WITH_WORKERS = 'curation.build("recipe.yaml", "name=again", output="again", workers=2)'
ASKING = """
import yaml
values = yaml.safe_load(Path("recipe.yaml").read_text())
backend = {"kind": "server", "url": URL, "in_flight": 4}
values["sources"]["qa"] = {"synthesize": {"from": "source = 'facts'", "template": "qa", "model": "m", "backend": backend}}
values["mixture"]["components"]["qa"] = "source = 'qa'"
curation.build(values, output="asking").manifest.sources["qa"]["read"]
"""


def outputs(cells: list[str], folder: Path) -> dict[str, list[Any]]:
    """What each cell left in the notebook."""
    nbclient = pytest.importorskip("nbclient", reason=WANTED)
    pytest.importorskip("ipykernel", reason=WANTED)
    import nbformat

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    nbclient.NotebookClient(notebook, timeout=300, allow_errors=True, resources={"metadata": {"path": str(folder)}}).execute()
    return {cell.source: cell.outputs for cell in notebook.cells}


def text_of(found: list[Any]) -> str:
    return str(next(one.data["text/plain"] for one in found if one.output_type == "execute_result"))


@pytest.mark.filterwarnings("default")  # those of Jupyter are its own
def test_page_runs_in_a_notebook_and_shows_tables_and_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    page = (ROOT / "docs/guides/from-python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    with Answering().running() as answering:
        asking = ASKING.replace("URL", repr(answering.url))
        found = outputs([*blocks, "built", MISTAKE, WITH_WORKERS, asking], tmp_path)

    assert [one for block in blocks for one in found[block] if one.output_type == "error"] == []
    assert re.search(r"^read +51 +51 +102$", text_of(found["built"]), re.MULTILINE)
    (mistake,) = found[MISTAKE]
    assert len(mistake.traceback) == 1
    assert mistake.traceback[0].startswith("UserError: sedd: unknown key 'sedd', perhaps 'seed'; accepted here: ")
    assert "again v1" in text_of(found[WITH_WORKERS])
    assert int(text_of(found[asking])) > 0
    said = "".join(one.text for outputs in found.values() for one in outputs if one.output_type == "stream")
    assert not any(ord(character) < 32 and character != "\n" for character in said)
