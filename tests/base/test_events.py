from tunesmith.base import Events


def test_events_are_read_in_order_and_by_name(tmp_path):
    events = Events(tmp_path / "events.jsonl")
    assert list(events.read()) == list(events.since(0)) == []
    for number in range(3):
        events.write("step", step=number, note="naïve\n\u2028line")
        events.write("other")
    assert [event["step"] for event in events.read("step")] == [0, 1, 2]
    assert len(list(events.read())) == 6
    assert next(events.read("step"))["note"] == "naïve\n\u2028line"
    assert next(events.read())["time"] > 1.7e9


def test_tags_are_written_and_filter(tmp_path):
    events = Events(tmp_path / "events.jsonl", run="r")
    events.tagged(artifact="a").write("step", step=1)
    events.tagged(artifact="b").write("step", step=2)
    assert [event["step"] for event in events.read("step")] == [1, 2]
    assert next(events.tagged(artifact="b").read("step")) | {"time": 0} == {
        "event": "step",
        "time": 0,
        "run": "r",
        "artifact": "b",
        "step": 2,
    }


def test_a_line_torn_anywhere_costs_only_itself(tmp_path):
    path = tmp_path / "events.jsonl"
    Events(path).write("first")
    whole = path.read_bytes()
    Events(path).write("torn", text="grün €")
    full = path.read_bytes()
    for cut in range(len(whole), len(full)):
        path.write_bytes(full[:cut])
        Events(path).write("after")
        expected = ["first", "after"] if cut < len(full) - 1 else ["first", "torn", "after"]
        assert [event["event"] for event in Events(path).read()] == expected
        assert [event["event"] for event in Events(path).since(0)] == expected


def test_since_goes_on_from_an_offset_and_leaves_half_a_line(tmp_path):
    path = tmp_path / "events.jsonl"
    events = Events(path)
    events.write("one")
    events.write("two")
    one, two = events.since(0)
    assert (one["event"], two["event"]) == ("one", "two")
    assert [event["event"] for event in events.since(one["offset"])] == ["two"]
    with path.open("ab") as file:
        file.write(b'{"event": "half"')
    assert list(events.since(two["offset"])) == []
    with path.open("ab") as file:
        file.write(b"}\n")
    assert [event["event"] for event in events.since(two["offset"])] == ["half"]
