"""A model and its tokenizer, opened to be looked at."""

from dataclasses import dataclass
from pathlib import Path

import torch

from yunque.errors import UserError
from yunque.lab.pictures import label, token_label
from yunque.model import LanguageModel, load_model
from yunque.tokenizer import Tokenizer
from yunque.workspace import Workspace

# Attention is kept for each pair of tokens in every head: a longer text is no picture, and much memory.
_LONGEST = 1024


@dataclass(frozen=True)
class Opened:
    """A model of any family with its tokenizer; `name` is what it is called on pictures."""

    model: LanguageModel
    tokenizer: Tokenizer
    name: str

    @property
    def start_id(self) -> int:
        """The token with which the answer of an encoder-decoder begins."""
        begin = getattr(self.model.config, "decoder_start_token_id", None)
        if begin is None:
            raise UserError(f"{self.name}: its config.json does not say decoder_start_token_id")
        return int(begin)

    def ids(self, text: str, what: str = "text") -> list[int]:
        """The tokens of a text as the model reads it alone; raises UserError where there are none or too many."""
        if not text.strip():
            raise UserError(f"the {what} is empty: there is nothing to look at")
        return self.checked(self.tokenizer.encode_prompt(text), what)

    def checked(self, ids: list[int], what: str) -> list[int]:
        """`ids`, if the model can read so many and knows them all; raises UserError."""
        limit = min(self.model.config.context or _LONGEST, _LONGEST)
        if len(ids) > limit:
            raise UserError(
                f"the {what} has {len(ids)} tokens, and at most {limit} of {self.name} can be looked at"
            )
        if max(ids, default=0) >= self.model.config.vocab_size:
            raise UserError(f"{self.name}: its tokenizer has tokens that the model does not know")
        return ids

    def label(self, id: int) -> str:
        """A token as a label of a picture."""
        data = self.tokenizer.token_bytes(id)
        if data:
            return token_label(data)
        known = id < self.tokenizer.vocab_size
        return label(self.tokenizer.token_name(id) if known else f"#{id}")


def open_to_look(workspace: Workspace, ref: str) -> Opened:
    """The model `ref` of the workspace, or of the folder `ref` where that is a path with a slash (`./folder`).

    Weights become float32, which every processor computes in. Raises UserError where there is no such model.
    """
    folder = Path(ref).expanduser()
    if ref.startswith((".", "/", "~")):
        if not (folder / "config.json").is_file():
            raise UserError(f"{ref}: is no folder of a model: it has no config.json")
        return Opened(load_model(folder, torch.float32), Tokenizer.load(folder), folder.name or str(folder))
    artifact = workspace.get(ref, "model")
    files = workspace.files(artifact)
    if "tokenizer.json" not in files:
        raise UserError(f"{artifact.ref} has no tokenizer.json, so a text cannot become tokens")
    return Opened(load_model(files, torch.float32), Tokenizer.of_files(files), artifact.ref)
