"""What no data curve can be made of is refused before anything is trained."""

import pytest
from curves import write_recipe

from tunesmith.base import ConfigError, DataError
from tunesmith.stages.curve import Curve, data_curve


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_folder):
    return write_recipe(tmp_path_factory.mktemp("curve"), tiny_folder)


@pytest.mark.parametrize(
    ("settings", "curve", "message"),
    [
        ((), {"sizes": (99,)}, "99 rows are wanted and there are 20"),
        (("prune.method={kind: magnitude}",), {}, "set prune.method=null"),
        (
            ("finetune.most_tokens=900", "finetune.schedule={shape: constant, warmup: 0}"),
            {},
            "set finetune.most_tokens=null",
        ),
        (
            ("evaluate.graders=[{kind: exact}]",),
            {"target": 120.0},
            "the target is 120, and the scale of % of rows goes from 0 to 100; name a target above 0 and up to 100, or a share of up to 1",
        ),
        (("finetune.rows=30",), {"sizes": (4,)}, "finetune.rows: 30 are wanted and there are 20"),
        (("finetune.rows=30",), {}, "finetune.rows: 30 are wanted and there are 20"),
        (("finetune.rows=10",), {"sizes": (12,)}, "12 rows are wanted and there are 10"),
        (
            (),
            {"target": 100.5},
            "the target is 100.5, and the scale of chrF goes from 0 to 100; name a target above 0 and up to 100$",
        ),
        (
            ("evaluate.graders=[{kind: bleu}]",),
            {"target": 0.0},
            "the target is 0, and the scale of BLEU goes from 0 to 100",
        ),
        (
            ("evaluate.graders=[{kind: average_precision, by: answer.c}]",),
            {"target": 101.0},
            "the target is 101, and the scale of points of macro average precision goes from 0 to 100",
        ),
        (("evaluate.graders=[{kind: ter}]",), {"target": -1.0}, "the target is -1, and no TER is below 0"),
        (
            ("evaluate.graders=[{kind: perplexity}]",),
            {"target": 0.5},
            "the target is 0.5, and no perplexity is below 1; name a target from 1 on",
        ),
        (("search.trials=4", "prepare.validation_fraction=4"), {}, "set search.trials=0"),
        (("prepare.select={kind: random, size: 8}",), {}, "set prepare.select=null"),
        (("prepare.canaries={}",), {}, "set prepare.canaries=null"),
        (("evaluate.prompted=true", "prepare.validation_fraction=4"), {}, "set evaluate.prompted=false"),
    ],
)
def test_what_no_curve_can_be_made_of_is_refused_before_anything_is_trained(recipe, tmp_path, settings, curve, message):
    with pytest.raises((ConfigError, DataError), match=message):
        data_curve(recipe, Curve(**curve), folder=tmp_path / "c", assignments=settings)
    assert not list(tmp_path.glob("c/finetune-*"))
