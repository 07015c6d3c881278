from jaxlm.studio.reading.curves import COLOURS, Curve, bounds_of_loss, heat_map, line_chart
from jaxlm.studio.reading.log_tail import LogTail, last_error, last_line
from jaxlm.studio.reading.samples import read_samples


def test_names_are_data_in_every_place_of_a_chart():
    name = "<img src=x onerror=alert(1)>"
    options = line_chart([Curve(name, [[1, 2.0]])])
    assert options["tooltip"]["renderMode"] == "richText"  # drawn, never markup
    assert options["series"][0]["name"] == name and options["series"][0]["color"] == COLOURS[0]
    assert heat_map([name], ["1"], [[0.5]], name)["tooltip"]["renderMode"] == "richText"


def test_the_first_points_do_not_set_the_axis():
    points = [[1, 100.0], [2, 50.0], *([step, 3.0 + 1 / step] for step in range(3, 40))]
    bounds = bounds_of_loss([Curve("a", points)])
    assert bounds is not None and 2.9 < bounds[0] <= 3.02 and 3.2 <= bounds[1] < 3.5
    assert bounds_of_loss([]) is None


def test_a_heat_map_leaves_out_what_has_no_share():
    options = heat_map(["a", "b"], ["1", "2"], [[0.25, None], [0.5, 0.75]], "zeros")
    assert options["series"][0]["data"] == [[0, 0, 25.0], [0, 1, 50.0], [1, 1, 75.0]]
    assert (options["visualMap"]["min"], options["visualMap"]["max"]) == (25.0, 75.0)


def test_a_log_is_read_on_and_marks_mistakes(tmp_path):
    path = tmp_path / "log.txt"
    tail = LogTail(path)
    assert tail.more() == []
    path.write_text("$ jaxlm train\nfine\nwar")
    assert [(line.text, line.kind) for line in tail.more()] == [("$ jaxlm train", "command"), ("fine", "plain")]
    with path.open("a") as file:
        file.write("ning\nnote: hm\n\x1b[31merror: data_dir: found none, expected shards\x1b[0m\n")
    assert [line.kind for line in tail.more()] == ["plain", "warning", "error"]
    assert last_error(path) == "error: data_dir: found none, expected shards"
    assert last_line(path, "note:") == "note: hm" and last_line(path, "nothing") is None
    path.write_text("new\n")  # shorter: another log
    assert [line.text for line in tail.more()] == ["new"]


def test_a_log_of_one_endless_line_stays_small(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("x" * 1_000_000)
    tail = LogTail(path)
    lines = tail.more()
    with path.open("a") as file:
        file.write("x" * 1_000_000 + "\nend\n")
    lines += tail.more()
    assert lines[-1].text == "end" and max(len(line.text) for line in lines) < 2100


def test_samples_are_read_by_step(tmp_path):
    assert read_samples(tmp_path) == []
    (tmp_path / "samples.txt").write_text(
        "=== step 10\nfirst\n=== step 3\nof the text\n=== step 20\nsecond <b>\u202e\n"
    )
    found = read_samples(tmp_path)
    assert [sample.step for sample in found] == [10, 20]
    assert found[0].text == "first\n=== step 3\nof the text\n" or "of the text" in found[0].text
    assert found[1].text == "second <b><U+202E>"
