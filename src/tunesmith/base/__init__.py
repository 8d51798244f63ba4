"""Specs, families, runs, events and errors: the ground floor, free of torch."""

from .artifact import Artifact
from .errors import (
    ArtifactError,
    BusyError,
    ConfigError,
    DataError,
    Interrupted,
    MachineError,
    ModelError,
    ProofError,
    TunesmithError,
)
from .events import Events
from .family import Family, load_members
from .run import Output, Run, Stage
from .spec import Spec

__all__ = [
    "Artifact",
    "ArtifactError",
    "BusyError",
    "ConfigError",
    "DataError",
    "Events",
    "Family",
    "Interrupted",
    "MachineError",
    "ModelError",
    "Output",
    "ProofError",
    "Run",
    "Spec",
    "Stage",
    "TunesmithError",
    "load_members",
]
