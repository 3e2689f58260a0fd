"""From an answer, or any artifact, back to the files."""

from pathlib import Path

import pytest

from yunque.data import prepare
from yunque.errors import UserError
from yunque.govern import trace
from yunque.workspace import Call, Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "pets.md").write_text("# Pets\n\nA dog of up to 8 kg may travel in the cabin.\n")
    (folder / "bags.md").write_text("# Bags\n\nA cabin bag may weigh 10 kg at most.\n")
    workspace = Workspace.open(tmp_path / "ws")
    dataset, _ = prepare.add(workspace, "docs", [str(folder)])
    index = workspace.put("index", "docs", {"x": b"1"}, [dataset])
    workspace.put("app", "pets", {"app.yaml": b"name: pets"}, [index])
    return workspace


def _row_id(workspace: Workspace, file: str) -> str:
    from yunque.data.dataset import read_rows

    dataset = workspace.get("dataset/docs")
    return next(row.id for row in read_rows(workspace, dataset) if row.source.file == file)


def test_an_answer_leads_to_the_rows_it_cites_and_to_their_files(workspace: Workspace) -> None:
    row = _row_id(workspace, "pets.md")
    details = {"citations": [{"number": 1, "row_id": row, "file": "pets.md", "locator": "Pets"}]}
    number = workspace.log_call(
        Call("app/pets@1", "extractive", "dogs?", "8 kg [1]", "h", 0, 0, 0.1, details)
    )
    found = trace(workspace, f"answer/{number}")
    cited = found.parents[0]
    assert (cited.kind, cited.ref) == ("row", f"dataset/docs@1#{row}")
    assert cited.parents[0].ref == "pets.md"
    refs = {node.ref for node in found.walk()}
    assert {"app/pets@1", "index/docs@1", "dataset/docs@1", "pets.md", "bags.md"} <= refs
    assert found.as_dict()["parents"][0]["parents"][0]["ref"] == "pets.md"


def test_a_cited_row_that_is_gone_is_said_to_be_gone(workspace: Workspace) -> None:
    details = {"citations": [{"number": 1, "row_id": "0" * 16, "file": "x", "locator": "y"}]}
    number = workspace.log_call(Call("app/pets@1", "extractive", "q", "a", "h", 0, 0, 0.1, details))
    assert "in no dataset below this app" in trace(workspace, f"answer/{number}").parents[0].detail


@pytest.mark.parametrize("model", ["http://127.0.0.1:9/v1#big", "Org/Model-7B", "big"])
def test_an_answer_of_a_remote_model_names_it(workspace: Workspace, model: str) -> None:
    number = workspace.log_call(Call("app/pets@1", model, "q", "a", "h", 0, 0, 0.1, {}))
    nodes = {node.ref: node.detail for node in trace(workspace, f"answer/{number}").walk()}
    assert nodes[model] == "outside this workspace"


def test_what_does_not_exist_is_said_in_one_sentence(workspace: Workspace) -> None:
    with pytest.raises(UserError, match="no answer has the number 99"):
        trace(workspace, "answer/99")
    with pytest.raises(UserError, match="no app 'app/none'"):
        trace(workspace, "app/none")
