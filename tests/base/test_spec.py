from typing import Literal

import pytest
import yaml
from pydantic import Field

from tunesmith.base import ConfigError, Family, Spec
from tunesmith.base.help import help_of
from tunesmith.base.spec import dump_yaml, merged, overridden, override, parse_yaml, read_yaml, validate


class Engine(Family):
    """What moves the car."""


class Petrol(Engine):
    """Burns."""

    kind: Literal["petrol"] = "petrol"
    cylinders: int = Field(4, gt=0)
    """How many."""


class Electric(Engine):
    """Hums."""

    kind: Literal["electric"] = "electric"
    battery: float = 60.0
    """In kWh."""
    range: int | float = 400
    """In km."""


class Car(Spec):
    """What one drives."""

    name: str
    """What it is called."""
    engine: Engine = Petrol()
    """What moves it."""
    spares: tuple[Engine, ...] = ()
    """What else lies in the boot."""


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"name": "a", "engin": {}}, "r.yaml: engin: no such field; did you mean 'engine'?"),
        ({"name": "a", "zzzzzz": 1}, "r.yaml: zzzzzz: no such field; fields here: name, engine, spares"),
        (
            {"name": "a", "engine": {"kind": "petrol", "cilinders": 3}},
            "r.yaml: engine.cilinders: no such field; did you mean 'cylinders'?",
        ),
        (
            {"name": "a", "spares": [{"kind": "electric", "batery": 3}]},
            "r.yaml: spares.0.batery: no such field; did you mean 'battery'?",
        ),
        (
            {"name": "a", "engine": {"kind": "electrik"}},
            "r.yaml: engine.kind: 'electrik' does not exist; did you mean 'electric'? there are 'petrol', 'electric'",
        ),
        ({"engine": {"kind": "petrol"}}, "r.yaml: name: is required and missing"),
        (
            {"name": "a", "engine": {"kind": "petrol", "cylinders": 0}},
            "r.yaml: engine.cylinders: input should be greater than 0; got 0",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(tree, message):
    with pytest.raises(ConfigError) as caught:
        validate(Car, tree, "r.yaml")
    assert str(caught.value) == message


def test_a_wrong_type_names_the_path_as_the_user_writes_it():
    for tree, path, given in (
        ({"name": "a", "engine": {"kind": "petrol", "cylinders": "many"}}, "engine.cylinders", "'many'"),
        ({"name": "a", "engine": {"kind": "electric", "range": "far"}}, "engine.range", "'far'"),
        ({"name": ["a"]}, "name", "'list'"),
    ):
        with pytest.raises(ConfigError) as caught:
            validate(Car, tree, "r.yaml")
        line = str(caught.value)
        assert line.startswith(f"r.yaml: {path}: ")
        assert f"got {given}" in line
        assert "\n" not in line


def test_the_kind_of_a_family_s_default_may_be_left_out():
    assert validate(Car, {"name": "a", "engine": {"cylinders": 6}}, "r.yaml").engine == Petrol(cylinders=6)
    with pytest.raises(ConfigError, match=r"^r.yaml: engine.battery: no such field; fields here: kind, cylinders$"):
        validate(Car, {"name": "a", "engine": {"battery": 3}}, "r.yaml")


def test_a_missing_kind_is_named_where_there_is_no_default():
    with pytest.raises(ConfigError, match=r"^r.yaml: spares.0: 'kind' is missing; write spares.0: \{kind: ...\}"):
        validate(Car, {"name": "a", "spares": [{"battery": 3}]}, "r.yaml")


def test_further_problems_are_counted():
    with pytest.raises(ConfigError, match=r"\(and 1 more\)$"):
        validate(Car, {"name": 1, "colour": 2}, "r.yaml")


def test_a_spec_is_frozen_and_survives_yaml():
    car = validate(Car, {"name": "a", "engine": {"kind": "electric"}, "spares": [{"kind": "petrol"}]}, "r.yaml")
    with pytest.raises(ValueError, match="frozen"):
        car.name = "b"
    assert validate(Car, yaml.safe_load(yaml.safe_dump(car.model_dump(mode="json"))), "r.yaml") == car


def test_the_docstring_under_a_field_is_its_help():
    assert help_of(Petrol) == {"cylinders": "How many."}
    assert Petrol.model_json_schema()["properties"]["cylinders"]["description"] == "How many."


def test_a_field_that_is_a_section_has_help_too_and_an_heir_has_its_parents():
    class Van(Car):
        seats: int = 2
        """For people."""

    properties = Van.model_json_schema()["properties"]
    assert help_of(Van) == {**help_of(Car), "seats": "For people."}
    assert {
        name: described.get("description") for name, described in properties.items() if name in help_of(Van)
    } == help_of(Van)


class TestOverride:
    def test_sets_below_what_is_there_and_makes_what_is_not(self):
        tree = {"engine": {"kind": "petrol"}}
        override(tree, "engine.cylinders=6")
        override(tree, "boot.lid.open=true")
        override(tree, "name=[a, b]")
        override(tree, "note=x=y")
        assert tree == {
            "engine": {"kind": "petrol", "cylinders": 6},
            "boot": {"lid": {"open": True}},
            "name": ["a", "b"],
            "note": "x=y",
        }

    def test_a_new_kind_drops_the_fields_of_the_old(self):
        tree = {"engine": {"kind": "petrol", "cylinders": 6}}
        override(tree, "engine.kind=petrol")
        assert tree["engine"] == {"kind": "petrol", "cylinders": 6}
        override(tree, "engine.kind=electric")
        assert tree["engine"] == {"kind": "electric"}

    def test_the_order_of_kind_and_field_does_not_matter(self):
        tree = {}
        override(tree, "engine.cylinders=6")
        override(tree, "engine.kind=petrol")
        assert tree == {"engine": {"cylinders": 6, "kind": "petrol"}}

    @pytest.mark.parametrize(
        "given", [{}, {"engine": {"cylinders": 6}}, {"engine": {"kind": "petrol", "cylinders": 6}}]
    )
    def test_a_kind_comes_before_its_fields_and_drops_those_of_the_default_too(self, given):
        tree = {**given, "name": "a"}
        overridden(tree, ("engine.battery=80", "engine.kind=electric"), Car)
        assert validate(Car, tree, "x") == Car(name="a", engine=Electric(battery=80))

    def test_what_is_further_out_comes_first_and_the_last_of_two_counts(self):
        tree = {"engine": {"kind": "petrol"}}
        overridden(tree, ("engine.range=1", "name=a", "engine={kind: electric}", "name=b"), Car)
        assert tree == {"engine": {"kind": "electric", "range": 1}, "name": "b"}

    def test_a_kind_takes_the_place_of_nothing_and_of_a_word(self):
        tree = {"engine": None, "spare": "auto"}
        override(tree, "engine.kind=petrol")
        override(tree, "spare.kind=electric")
        assert tree == {"engine": {"kind": "petrol"}, "spare": {"kind": "electric"}}

    @pytest.mark.parametrize("assignment", ["name", "=3", "name=[", "name.below=1"])
    def test_refuses_in_one_line(self, assignment):
        with pytest.raises(ConfigError) as caught:
            override({"name": "a"}, assignment)
        assert repr(assignment) in str(caught.value)
        assert "\n" not in str(caught.value)


class TestMerged:
    @pytest.mark.parametrize(
        ("under", "over", "found"),
        [
            ({"cylinders": 6}, {"kind": "petrol"}, {"cylinders": 6, "kind": "petrol"}),
            ({"cylinders": 6}, {"kind": "electric"}, {"kind": "electric"}),
            ({"kind": "petrol", "cylinders": 6}, {"kind": "electric", "range": 5}, {"kind": "electric", "range": 5}),
            ({"kind": "electric", "battery": 6}, {"range": 5}, {"kind": "electric", "battery": 6, "range": 5}),
            ({"kind": "electric", "battery": 6}, {"kind": "petrol"}, {"kind": "petrol"}),
        ],
    )
    def test_another_kind_replaces_a_member_and_one_that_is_left_out_is_the_default(self, under, over, found):
        tree, changes = {"name": "a", "engine": under}, {"engine": over}
        assert merged(tree, changes, Car) == {"name": "a", "engine": found}
        assert (tree, changes) == ({"name": "a", "engine": under}, {"engine": over})

    def test_what_is_of_no_spec_is_laid_over_as_it_stands(self):
        assert merged({"a": {"b": 1, "c": [1]}}, {"a": {"c": [2], "d": None}}) == {"a": {"b": 1, "c": [2], "d": None}}


class TestReadYaml:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"a: [1,\nb: 2", r"r.yaml:\d: not valid YAML"),
            (b"- a", "mapping of stages to settings, this is a list"),
            (b"", "this is a NoneType"),
            (b"\xff\xfe\xfa", "not a recipe"),
        ],
    )
    def test_refuses_in_one_line(self, tmp_path, content, message):
        path = tmp_path / "r.yaml"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message) as caught:
            read_yaml(path)
        assert "\n" not in str(caught.value)

    def test_a_missing_file_or_a_folder(self, tmp_path):
        with pytest.raises(ConfigError, match="no such file"):
            read_yaml(tmp_path / "none.yaml")
        with pytest.raises(ConfigError, match="not a recipe"):
            read_yaml(tmp_path)


class TestFamily:
    def test_members_are_found_by_kind(self):
        assert Engine.members() == [Petrol, Electric]
        assert Engine.member("electric") is Electric
        with pytest.raises(ConfigError, match=r"engine\.steam: does not exist; there are electric, petrol"):
            Engine.member("steam")

    def test_a_member_stands_for_itself_alone(self):
        class Taxi(Spec):
            engine: Petrol = Petrol()

        with pytest.raises(ConfigError, match=r"engine\.kind"):
            validate(Taxi, {"engine": {"kind": "electric"}}, "r.yaml")

    def test_a_subclass_without_a_kind_is_no_member(self):
        class Hybrid(Engine):
            """A family of its own."""

        class Mild(Hybrid):
            kind: Literal["mild"] = "mild"

        try:
            assert Hybrid not in Engine.members()
            assert Mild in Engine.members()
            assert Hybrid.members() == [Mild]
        finally:
            Mild.__annotations__.pop("kind")  # other tests count the members


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "more than 50,000 values with all aliases written out"),
        ("a: &a [*a]", "more than 50,000 values"),
        ("[" * 50_000, "not valid YAML"),
        ("a: " + "9" * 10_000, "not valid YAML"),
        ("a: 2026-99-99", "not valid YAML"),
        ("a: 1\n" * 50_000, "longer than 200,000 characters"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_yaml_that_is_meant_to_harm_is_refused(tmp_path, text, reason):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_yaml(tmp_path / "recipe.yaml")


def test_a_name_that_stands_twice_is_refused_where_it_stands(tmp_path):
    (tmp_path / "recipe.yaml").write_text("finetune:\n  epochs: 1\nfinetune: {batch: 4}\n")
    with pytest.raises(ConfigError, match=r"recipe.yaml:3: .*'finetune' stands here twice"):
        read_yaml(tmp_path / "recipe.yaml")


def test_numbers_are_read_as_people_write_them_and_texts_come_back():
    found = parse_yaml("[1e-4, 1E+2, -2.5e3, .5e-1, 1_0e2, 7, 1.5, e5, 1e, 0x1f, 12]")
    assert found == [0.0001, 100.0, -2500.0, 0.05, 1000.0, 7, 1.5, "e5", "1e", 31, 12]
    texts = {"a": "1e-4", "b": ["1e5", "x", 3.0]}
    assert parse_yaml(dump_yaml(texts)) == texts


def test_aliases_and_merges_that_are_meant_well_are_read(tmp_path):
    (tmp_path / "recipe.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n")
    assert read_yaml(tmp_path / "recipe.yaml") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}
