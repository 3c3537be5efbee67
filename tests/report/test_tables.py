"""Names that users give are text in every table: Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
import os

import pytest
from PIL import Image

from dreamlib.data.image_folder import folder_source
from dreamlib.evaluation.results import Origin, Score
from dreamlib.evaluation.score_external import name_of
from dreamlib.report import tables
from dreamlib.report.texts import tex


@pytest.mark.parametrize(
    ("text", "markdown", "latex"),
    [
        ("FD[classifier]", "FD[classifier]", "FD[classifier]"),
        ("cost_$5_to_$9", r"cost_\$5_to_\$9", r"cost\_\$5\_to\_\$9"),
        ("<b>a|b\n", r"\<b>a\|b ", r"\textless{}b\textgreater{}a\textbar{}b "),
        ("[x](y) `*`", r"[x]\(y) \`\*\`", "[x](y) `*`"),
        ("\\a", r"\\a", r"\textbackslash{}a"),
        ("\udcb0", r"\\udcb0", r"\textbackslash{}udcb0"),
    ],
)
def test_a_name_is_text(text, markdown, latex):
    assert tables.plain(text) == markdown
    assert tables.as_table((text,), [(text,)]).splitlines()[2] == f"| {markdown} |"
    assert tex(text) == latex


def test_a_spreadsheet_computes_no_name():
    def row(name: str) -> Score:
        return Score("FD", name, -1.5, 9, 9, 0.1, "none", parts=[-0.5, 0.3], origin=Origin(name))

    names = ["=1+1", "+1", "-1", "@x", "\tx", "plain = 1"]
    read = list(csv.DictReader(io.StringIO(tables.as_csv(map(row, names)))))
    assert [line["images"] for line in read] == [*(f"'{name}" for name in names[:5]), names[5]]
    assert read[0]["extractor"] == "'=1+1"
    assert [read[0][key] for key in ("value", "parts")] == ["-1.5", "-0.5 0.3"]  # numbers stay


def test_names_that_are_no_utf8_are_said_in_ascii(tmp_path):
    for name in (b"\xb0", b"other"):
        folder = os.path.join(os.fsencode(tmp_path / "g"), name)
        os.makedirs(folder)
        with open(os.path.join(folder, b"0.png"), "wb") as file:
            Image.new("RGB", (8, 8)).save(file, "PNG")
    contents = folder_source(tmp_path / "g", 8).open()
    assert contents.attributes == {"class": ("\\udcb0", "other")}
    assert [item.labels for item in contents.items(0)] in ([(0,), (1,)], [(1,), (0,)])
    assert name_of(tmp_path / "g" / os.fsdecode(b"\xb0")) == "\\udcb0"
