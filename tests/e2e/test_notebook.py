"""The notebook runs from top to bottom, and prints what it was saved with."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs/how-to/tour.ipynb"


def shown(notebook):
    """What is printed and drawn under each cell; warnings of libraries differ by machine."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        (
            "".join(output.text for output in cell.outputs if output.get("name") == "stdout"),
            [output.data for output in cell.outputs if "data" in output],
        )
        for cell in cells
    ]


def test_notebook_runs_and_prints_what_it_was_saved_with(tmp_path):
    saved = nbformat.read(NOTEBOOK, as_version=4)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert shown(notebook) == shown(saved)
    assert (tmp_path / "my-adapter" / "plan.json").is_file()
    assert not any(
        output.get("name") == "stderr" for cell in saved.cells for output in cell.get("outputs", ())
    )
