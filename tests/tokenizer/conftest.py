import json
from pathlib import Path

import pytest
from foreign_tokenizers import write_foreign


@pytest.fixture(scope="session")
def foreign_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foreign tokenizer with a ChatML template and two end tokens."""
    folder = write_foreign(tmp_path_factory.mktemp("foreign"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [400, 402]}))
    return folder
