"""An app as an artifact: its file, the files that it names, and what it is made of."""

import hashlib
import json
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
    for path in _opened_files(definition, workspace, yaml_path.parent):
        files[_BESIDE + path.relative_to(yaml_path.parent).as_posix()] = path.read_bytes()
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
        "steps": _placed(definition.steps, folder),
        "tools": tools,
    }
    return definition.model_copy(update=found)


def _placed(steps: Any, folder: Path) -> Any:
    """Steps, those inside of others too, with whole paths to scripted models."""
    if isinstance(steps, list):
        return [_placed(step, folder) for step in steps]
    if isinstance(steps, dict):
        return {
            key: _place(value, folder)
            if key == "model" and isinstance(value, str)
            else _placed(value, folder)
            for key, value in steps.items()
        }
    return steps


def _place(model: str | None, folder: Path) -> str | None:
    if model is None or not model.startswith(_SCRIPTED):
        return model
    return _SCRIPTED + str((folder / model.removeprefix(_SCRIPTED)).resolve())


def _opened_files(definition: AppDefinition, workspace: Workspace, folder: Path) -> list[Path]:
    """The files beside an app's own that its tools and steps name."""
    opened: list[Path] = []
    if definition.tools:
        from yunque.apps.agents.reading import tool_mistakes

        # What is wrong with them was told when the file was read.
        tool_mistakes(definition.tools, "tools", folder, opened=opened)
    if definition.steps:
        from yunque.apps.chained import kept_prompts
        from yunque.apps.chains.reading import read_chain

        chain = {"name": definition.name, "model": definition.model, "steps": definition.steps}
        read_chain(chain, "steps", folder, read_prompt=kept_prompts(workspace), opened=opened)
    return list(dict.fromkeys(opened))
