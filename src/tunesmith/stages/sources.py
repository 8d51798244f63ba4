"""The finished runs that a merged one is made of, and whether they can be one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith.base import Artifact, ConfigError, Run
from tunesmith.base.files import read_json
from tunesmith.data.prepared import load_examples
from tunesmith.methods.adapters import Adapter
from tunesmith.methods.merging import Merging
from tunesmith.methods.merging.peft_file import rank_of
from tunesmith.models.quantize import KINDS

from .evaluate import Evaluate
from .judge import learnt_by


@dataclass(frozen=True)
class Source:
    """A run whose evaluation is done, as its artifacts say: its recipe may have been changed since."""

    name: str
    prepared: Artifact
    initialised: Artifact
    finetuned: Artifact
    evaluated: Artifact

    @classmethod
    def read(cls, name: str, folder: Path) -> "Source":
        """From a run's folder.

        Raises:
            ConfigError: the folder is no run, was merged itself, or was trained again since it was evaluated.
            ArtifactError: a stage is missing or damaged.
        """
        run = Run(folder)
        if not run.states:
            raise ConfigError(f"{folder}: is not the folder of a run; give runs that `tunesmith run` has finished")
        if "merge" in run.states:
            raise ConfigError(f"{folder}: was merged from other runs itself; merge these in one go")
        prepared, initialised, finetuned = (run.artifact(stage) for stage in ("prepare", "initialise", "finetune"))
        evaluated = run.artifact("evaluate")
        if any(parent["stage"] == "prune" for parent in evaluated.manifest["parents"]):
            raise ConfigError(
                f"{folder}: was pruned, and what is left of a model is no sum of base and corrections; give a run with prune.method=null"
            )
        measured = [parent["id"] for parent in evaluated.manifest["parents"] if parent["stage"] != "prompt"]
        if measured != [prepared.id, initialised.id, finetuned.id]:
            raise ConfigError(f"{folder}: was changed since it was evaluated; run `tunesmith evaluate {folder}` first")
        return cls(name, prepared, initialised, finetuned, evaluated)

    @property
    def artifacts(self) -> tuple[Artifact, Artifact, Artifact, Artifact]:
        """What a stage of the merged run reads of it."""
        return self.prepared, self.initialised, self.finetuned, self.evaluated

    @property
    def context(self) -> dict[str, Any]:
        """What it was trained with: `model`, `precision`, `adapter`, `seed`."""
        found: dict[str, Any] = self.finetuned.manifest["context"]
        return found

    @property
    def adapter(self) -> Adapter:
        """Which of its weights learnt."""
        return read_adapter(self.context["adapter"])

    @cached_property
    def loaded(self) -> dict[str, Any]:
        """What its base was when it was loaded: `name`, `fingerprint`, `precision`."""
        found: dict[str, Any] = read_json(self.initialised / "model.json")
        return found

    @property
    def evaluation(self) -> Evaluate:
        """How it was measured."""
        return Evaluate.model_validate(self.evaluated.manifest["spec"])


def read_adapter(tree: dict[str, Any]) -> Adapter:
    """An adapter from a manifest."""
    found: Adapter = Adapter.member(tree["kind"]).model_validate(tree)
    return found


def read_sources(folders: Sequence[Path]) -> list[Source]:
    """Runs by their folders' names, or by the whole paths where two have the same name.

    Raises:
        ConfigError: a folder is given twice, or as `Source.read`.
        ArtifactError: a stage of a run is missing or damaged.
    """
    paths = [folder.resolve() for folder in folders]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise ConfigError(f"runs: {twice} is given twice; give it once, with the sum of its weights")
    names = [path.name for path in paths]
    named = names if len(set(names)) == len(names) else list(map(str, paths))
    return [Source.read(name, path) for name, path in zip(named, paths, strict=True)]


def check(sources: Sequence[Source], method: Merging) -> None:
    """Refuse runs that cannot be one; reads no weights.

    Raises:
        ConfigError: says which runs, and why.
    """
    first = sources[0]
    for one in sources[1:]:
        if one.loaded["fingerprint"] != first.loaded["fingerprint"]:
            raise ConfigError(
                f"runs: {one.name} was tuned from {_called(one)}, {first.name} from {_called(first)}; only runs of one base can be merged"
            )
        if one.loaded["precision"] != first.loaded["precision"]:
            raise ConfigError(
                f"runs: {one.name} was tuned in {one.loaded['precision']}, {first.name} in {first.loaded['precision']}; tune one again with precision="
                f"{first.loaded['precision']}"
            )
    for one in sources:
        if learnt_by(one.finetuned).scores:
            raise ConfigError(f"runs: {one.name} learnt to score answers, and a merged run writes them; leave it out")
        if all(example.text is not None for example in load_examples(one.prepared.path, "test")):
            raise ConfigError(
                f"runs: {one.name} was measured on plain text, which asks nothing a merged run could be compared by; leave it out"
            )
        if (few := one.evaluated.manifest["spec"].get("precision", "auto")) in KINDS:
            raise ConfigError(
                f"runs: {one.name} was measured with its weights in {few}, and merged ones are plain numbers; evaluate it again with evaluate.precision=auto"
            )
        if not one.adapter.merges:
            raise ConfigError(
                f"runs: {one.name} learnt with the adapter {one.adapter.kind}, which adds nothing to weights; leave it out"
            )
    ranks = [rank_of(one.finetuned / "adapter") for one in sources]
    known = [rank for rank in ranks if rank is not None]
    method.check(known if len(known) == len(ranks) else None)
    if len(known) < len(ranks) and first.loaded["precision"] in KINDS:
        odd = sources[ranks.index(None)]
        raise ConfigError(
            f"runs: {odd.name} learnt with the adapter {odd.adapter.kind} on a base in {first.loaded['precision']}, to which whole weights cannot be added; only adapters of kind "
            "lora can be merged there"
        )


def _called(source: Source) -> str:
    """A base so that two can be told apart."""
    return f"{source.loaded['name']} ({source.loaded['fingerprint'][:12]})"
