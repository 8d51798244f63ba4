"""What a run folder holds, opened for the report: finished artifacts, states of stages, and what is out of date."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith.base import Artifact, ArtifactError, Run
from tunesmith.base.files import read_json
from tunesmith.base.run import finished
from tunesmith.base.spec import read_yaml

STAGES = ("prepare", "initialise", "search", "finetune", "prune", "prompt", "evaluate", "deploy", "monitor")


@dataclass
class Source:
    """A run as the report sees it; what is not there is None."""

    run: Run

    @cached_property
    def states(self) -> dict[str, dict[str, Any]]:
        """Per stage its state, as in `stages.json`."""
        return self.run.states

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """The stages of a run, and the one that looks for a prompt where one was looked for."""
        return tuple(stage for stage in STAGES if stage != "prompt" or stage in self.states)

    @cached_property
    def artifacts(self) -> dict[str, Artifact]:
        """What each stage finished last, where its files are as they were committed; a later attempt may have failed, or be under way."""
        return {stage: found for stage, found in self._opened.items() if isinstance(found, Artifact)}

    @cached_property
    def damaged(self) -> list[str]:
        """What is wrong with the finished artifacts that are not."""
        return [found for found in self._opened.values() if isinstance(found, str)]

    @cached_property
    def _opened(self) -> dict[str, Artifact | str]:
        opened: dict[str, Artifact | str] = {}
        for stage in self.stages:
            if finished(self.states.get(stage, {})) is not None:
                try:
                    opened[stage] = self.run.last(stage)
                except ArtifactError as error:
                    opened[stage] = str(error)
        return opened

    @cached_property
    def retried(self) -> list[str]:
        """Stages that have an artifact, and a later attempt at another that has not finished."""
        return [stage for stage in self.artifacts if self.states[stage]["state"] != "done"]

    @cached_property
    def outdated(self) -> list[str]:
        """Finished stages that were computed from another artifact than the one that stands for its stage now, and what comes of them."""
        found: list[str] = []
        for stage, artifact in self.artifacts.items():
            for parent in artifact.manifest["parents"]:
                if parent["folder"] != finished(self.states.get(parent["stage"], {})) or parent["stage"] in found:
                    found.append(stage)
                    break
        return found

    def json(self, stage: str, name: str) -> Any:
        """A JSON file of a finished stage; None where stage or file is missing."""
        artifact = self.artifacts.get(stage)
        return read_json(artifact / name) if artifact and (artifact / name).exists() else None

    def folders(self, stage: str) -> list[str]:
        """Names of the artifacts of a stage's last attempt and, where that has not finished, of what it finished before."""
        state = self.states.get(stage, {})
        return list(dict.fromkeys(name for name in (state.get("artifact"), finished(state)) if name is not None))

    def proof(self, stage: str) -> list[dict[str, Any]]:
        """Claims of a stage, also of an attempt that failed because of them."""
        folders = [self.run.path / (name + ending) for name in self.folders(stage) for ending in ("", ".partial")]
        path = next((folder / "proof.json" for folder in folders if (folder / "proof.json").exists()), None)
        found: list[dict[str, Any]] = read_json(path)["claims"] if path else []
        return found

    @cached_property
    def plan(self) -> dict[str, Any] | None:
        """What was estimated before anything was spent."""
        path = self.run.path / "plan.json"
        found: dict[str, Any] | None = read_json(path)["estimate"] if path.exists() else None
        return found

    @property
    def recipe_path(self) -> Path:
        """Where the recipe with every default resolved lies."""
        return self.run.path / "resolved.yaml"

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Every setting as resolved; those a finished stage really ran with come before those of the file."""
        found = read_yaml(self.recipe_path) if self.recipe_path.exists() else {}
        for stage, artifact in self.artifacts.items():
            context = {
                name: artifact.manifest["context"][name]
                for name in ("model", "seed")
                if name in artifact.manifest["context"]
            }
            found |= {stage: artifact.manifest["spec"], **context}
        return found
