"""An app as an artifact: its file, the files that it names, and what it is made of."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yunque.apps.definition import AppDefinition, read_definition
from yunque.configuration import validated
from yunque.errors import UserError
from yunque.workspace import Artifact, Workspace, atomic_folder

FILE = "app.yaml"
RESOLVED = "app.json"
"""The same definition with its defaults: JSON is read a hundred times faster than YAML, at every question."""
_BESIDE = "beside/"
"""Where the files lie that the app's file names: functions, OpenAPI documents."""
_SCRIPTED = "scripted:"
_FUNCTION = re.compile(r"(.+\.py):\w+$")


def add_app(workspace: Workspace, yaml_path: Path) -> Artifact:
    """Keep the app of a YAML file as `app/NAME`, with the functions and documents that it names.

    Its parents are its index and its models, where they are local. A database that a tool asks is not kept: the app
    goes on using the one that lies there.
    """
    definition = _with_places_found(read_definition(yaml_path, workspace), yaml_path.parent)
    parents: list[Artifact] = []
    if definition.knowledge:
        parents.append(workspace.get(definition.knowledge.index, "index"))
    for name in dict.fromkeys(_local_models(definition)):
        parents.append(_model(workspace, name))
    files = {
        FILE: yaml_path.read_bytes(),
        RESOLVED: definition.model_dump_json(indent=1, by_alias=True).encode(),
    }
    for name in dict.fromkeys(_named_files([definition.tools, definition.steps])):
        try:
            files[_BESIDE + name] = (yaml_path.parent / name).read_bytes()
        except OSError as error:
            raise UserError(f"{yaml_path}: {name} cannot be read ({error.strerror})") from None
    config: dict[str, Any] = {"name": definition.name, "model": definition.model}
    return workspace.put("app", definition.name, files, parents, config)


def load_definition(workspace: Workspace, ref: str) -> tuple[AppDefinition, Artifact]:
    """The definition of the app artifact called `ref`; raises UserError, too where another Yunque made it and its
    fields have changed."""
    artifact = workspace.get(ref, "app")
    values = json.loads(workspace.file(artifact, RESOLVED).read_bytes())
    try:
        return validated(AppDefinition, values, artifact.ref), artifact
    except UserError as error:
        raise UserError(
            f"{error} (add the app's file again: yunque app check FILE, yunque app add FILE)"
        ) from None


def unpacked(workspace: Workspace, artifact: Artifact) -> Path:
    """A folder with the files that an app names, under their own names; made the first time."""
    folder = workspace.root / "unpacked" / hashlib.sha256(artifact.hash.encode()).hexdigest()[:16]
    if not folder.exists():
        with atomic_folder(folder) as made:
            for name in artifact.files:
                if name.startswith(_BESIDE):
                    target = made / name.removeprefix(_BESIDE)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(workspace.file(artifact, name).read_bytes())
    return folder


def _local_models(definition: AppDefinition) -> Iterator[str]:
    """The models of the workspace that an app names itself; its fallbacks and steps may name others."""
    name = definition.model
    # A slash behind anything but a kind belongs to the name of a provider.
    if name and ":" not in name and name.rpartition("/")[0] in ("", "model", "adapter"):
        yield name


def _model(workspace: Workspace, name: str) -> Artifact:
    return workspace.get(name, "adapter" if name.startswith("adapter/") else "model")


def _with_places_found(definition: AppDefinition, folder: Path) -> AppDefinition:
    """The definition with whole paths to the databases that its tools ask, and to scripted models."""
    tools = [
        {**tool, "sql": str((folder / tool["sql"]).resolve())} if isinstance(tool.get("sql"), str) else tool
        for tool in definition.tools
    ]
    found: dict[str, Any] = {
        "model": _place(definition.model, folder),
        "fallbacks": [_place(name, folder) for name in definition.fallbacks],
        "steps": [
            {**step, "model": _place(step["model"], folder)} if isinstance(step.get("model"), str) else step
            for step in definition.steps
        ],
        "tools": tools,
    }
    return definition.model_copy(update=found)


def _place(model: str | None, folder: Path) -> str | None:
    if model is None or not model.startswith(_SCRIPTED):
        return model
    return _SCRIPTED + str((folder / model.removeprefix(_SCRIPTED)).resolve())


def _named_files(value: Any) -> Iterator[str]:
    """The files that tools and steps name: `function: FILE.py:NAME`, `openapi: FILE`, `prompt: FILE.prompt`.

    Raises UserError for one that does not lie beside the app's own file, or below.
    """
    if isinstance(value, list):
        for inside in value:
            yield from _named_files(inside)
    elif isinstance(value, dict):
        for key, inside in value.items():
            name = _file_in(key, inside) if isinstance(inside, str) else None
            if name:
                yield _beside(name)
            else:
                yield from _named_files(inside)


def _file_in(key: str, value: str) -> str | None:
    """The file that a field of a tool or a step names."""
    if key == "function" and (found := _FUNCTION.match(value)):
        return found[1]
    return value if key == "openapi" or (key == "prompt" and value.endswith(".prompt")) else None


def _beside(name: str) -> str:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{name}: the files of an app lie beside its own file, or in a folder below")
    return name
