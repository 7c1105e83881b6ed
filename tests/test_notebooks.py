"""The notebooks in nbs/: a claim, its code and figures, a conclusion; and they run."""

import ast
import base64
import re

import nbformat
import pytest
from commands import ROOT

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
LARGEST = 200_000  # bytes of a figure
SECONDS = 600  # for a cell, on a machine with other jobs; a notebook takes three minutes in all
IN_PLACE = re.compile(r"(?<![\w.])/(?:tmp|home|root|Users)/\S+")
DEFINES = {"06_your_own_backbone_and_data": ["TermRecorder"]}  # a callback is what it is about


def read(file):
    return nbformat.read(file, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert [file.name[:2] for file in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
class TestCommitted:
    def test_it_is_a_claim_and_a_conclusion(self, file):
        cells = read(file).cells
        assert cells[0].source.startswith("# ")
        assert "\n**Claim.** " in cells[0].source
        assert cells[-1].cell_type == "markdown"
        assert cells[-1].source.startswith("**Conclusion.** ")

    def test_its_first_code_has_what_to_change(self, file):
        first = code(read(file))[0].source
        assert re.search(r"^[A-Z]+(, [A-Z]+)* = .*  # ", first, re.M)

    def test_it_is_a_page_of_the_site(self, file):
        assert f": notebooks/{file.stem}.md\n" in (ROOT / "mkdocs.yml").read_text()

    def test_it_defines_nothing_that_others_could_use(self, file):
        tree = ast.parse("\n".join(cell.source for cell in code(read(file))))
        named = (ast.FunctionDef, ast.ClassDef)
        found = [node.name for node in tree.body if isinstance(node, named)]
        assert found == DEFINES.get(file.stem, [])

    def test_it_was_run_from_top_to_bottom(self, file):
        cells = code(read(file))
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        kinds = {output.output_type for cell in cells for output in cell.outputs}
        assert "error" not in kinds

    def test_its_figures_are_there_and_small(self, file):
        outputs = [output for cell in code(read(file)) for output in cell.outputs]
        found = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
        assert found
        assert max(len(base64.b64decode(picture)) for picture in found) < LARGEST

    def test_it_shows_no_warnings_and_no_places_of_a_machine(self, file):
        outputs = [output for cell in code(read(file)) for output in cell.outputs]
        assert not [output.text for output in outputs if output.get("name") == "stderr"]
        texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs]
        assert not IN_PLACE.findall("\n".join(texts))


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_runs(file, monkeypatch, tmp_path):
    from nbclient import NotebookClient

    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")  # as in `make notebooks`
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = read(file)
    where = {"metadata": {"path": str(tmp_path)}}  # nothing of it depends on where it lies
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=where).execute()
    assert [cell.execution_count for cell in code(notebook)] == [*range(1, len(code(notebook)) + 1)]
