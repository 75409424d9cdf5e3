from bench.report import publish, read_tables, table, timings


def test_published_tables_are_read_back(tmp_path, capsys) -> None:
    file = tmp_path / "new" / "results.md"
    publish("encode: one", table(["system", "tok/s"], [["ours", 123.456], ["theirs", 1.23456]]), file)
    publish("encode: two", "No table, a | bar.", file)
    publish("encode: three", table(["n"], [[1], [2]]) + "\n\nA note.", file)
    assert list(read_tables(file.read_text())) == [
        ("encode: one", [{"system": "ours", "tok/s": "123.5"}, {"system": "theirs", "tok/s": "1.23"}]),
        ("encode: three", [{"n": "1"}, {"n": "2"}]),
    ]
    assert "encode: two" in capsys.readouterr().out


def test_two_tables_under_one_title() -> None:
    text = "## a\n\n| n |\n| --- |\n| 1 |\n\ntext\n\n| m |\n| --- |\n| 2 |"
    assert list(read_tables(text)) == [("a", [{"n": "1"}]), ("a", [{"m": "2"}])]


def test_empty_cells() -> None:
    assert list(read_tables(table(["n", "ratio"], [[1, ""], ["", 2]]))) == [
        ("", [{"n": "1", "ratio": ""}, {"n": "", "ratio": "2"}])
    ]


def test_interleaved_timing_after_warm_up() -> None:
    calls: list[str] = []
    seconds = timings({name: lambda name=name: calls.append(name) for name in "ab"}, 2)
    assert calls == list("ababab")
    assert [len(each) for each in seconds.values()] == [2, 2]
