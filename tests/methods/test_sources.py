"""Every method says where it comes from, and the help of every number in its settings names a source; that it is the right one, readers have to check."""

import re
import sys

import pytest

from tunesmith.base.help import help_of
from tunesmith.methods.adapters import Adapter
from tunesmith.methods.merging import Merging
from tunesmith.methods.objectives import Objective
from tunesmith.methods.optimizers import Optimizer
from tunesmith.methods.pruning import Pruning
from tunesmith.methods.selection import Selector

PUBLISHED = (Adapter, Objective, Optimizer, Merging, Pruning)
MEMBERS = [member for family in (*PUBLISHED, Selector) for member in family.members()]
SOURCE = re.compile(r"paper|arXiv|[Oo]ur choice|torch's|TRL|custom|peft's|et al\.|lecture|Mixtral|authors' code")
"""What the help of a number names, so that people can look up why it is that."""


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: f"{member.__module__.split('.')[-2]}-{member.__name__}")
def test_a_method_says_where_it_and_its_numbers_come_from(member):
    if issubclass(member, PUBLISHED):  # some rows are no method
        assert re.search(r"arXiv|\d{4}|PEFT", sys.modules[member.__module__].__doc__)
    for name, field in member.model_fields.items():
        given = field.default
        if not isinstance(given, int | float | tuple) or given == () or (isinstance(given, int) and given in (0, 1)):
            continue  # a switch, or a count of none or one, which is the least that there can be
        assert SOURCE.search(help_of(member)[name]), f"{name} = {given}: {help_of(member)[name]}"
