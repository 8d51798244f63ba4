"""What every member of every family keeps: it is told by its kind in a file, constructs, and explains itself."""

import json

import pytest
import yaml

from tunesmith.base.help import help_of
from tunesmith.base.spec import validate
from tunesmith.data.cleaners import Cleaner
from tunesmith.data.retrieval import Retriever
from tunesmith.data.sources import Source
from tunesmith.grading import Grader
from tunesmith.methods.adapters import Adapter
from tunesmith.methods.merging import Merging
from tunesmith.methods.objectives import Objective
from tunesmith.methods.optimizers import Optimizer
from tunesmith.methods.pruning import Pruning
from tunesmith.methods.selection import Selector
from tunesmith.stages.prompting.proposers import Proposer

FAMILIES = (Adapter, Objective, Optimizer, Merging, Pruning, Selector, Grader, Retriever, Cleaner, Proposer, Source)
ASKED = {"endpoint": {"url": "http://localhost:1", "model": "theirs"}}
"""What members that stand for nothing by themselves have to be told."""


@pytest.mark.parametrize(
    ("family", "member"),
    [
        pytest.param(family, member, id=f"{family.__name__.lower()}-{member.model_fields['kind'].default}")
        for family in FAMILIES
        for member in family.members()
    ],
)
class TestEveryMember:
    def test_constructs_by_default_and_survives_yaml(self, family, member):
        spec = member(**ASKED.get(member.model_fields["kind"].default, {}))
        tree = yaml.safe_load(yaml.safe_dump(spec.model_dump(mode="json")))
        assert validate(member, tree, "r.yaml") == spec
        assert family.member(spec.kind) is member

    def test_explains_itself(self, family, member):
        kind, file = member.model_fields["kind"].default, member.__module__.rsplit(".", 1)[-1]
        assert member.__doc__
        assert file.removesuffix("_file").replace("_", "") == kind.replace(
            "_", ""
        )  # csv and json are modules of Python's
        described = json.loads(json.dumps(member.model_json_schema()))["properties"]
        for name in member.model_fields.keys() - {"kind"}:
            assert described[name]["description"] == help_of(member)[name], f"{name} has no help text"
