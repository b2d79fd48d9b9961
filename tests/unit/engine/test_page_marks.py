"""Tables that scripts write into pages replace what stood there and nothing else."""

from pathlib import Path

from anomaly_lib.files import write_between


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page, marks = tmp_path / "page.md", ("<!-- a -->", "<!-- end of a -->")
    page.write_text(f"above\n{marks[0]}\nold\nrows\n{marks[1]}\nbelow\n", encoding="utf-8")
    for text in ("| new \\1 |", "| newer |"):  # no pattern syntax is read into it
        write_between(page, marks, text)
        assert page.read_text(encoding="utf-8") == f"above\n{marks[0]}\n{text}\n{marks[1]}\nbelow\n"
