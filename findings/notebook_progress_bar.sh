#!/bin/sh
# papermill 2.7.0 with nbclient 0.11.0 and ipykernel 7.4.0, ipywidgets 8.1.9, tqdm 4.68, nbconvert
# 7.17.2, seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: a bar of tqdm.auto that has ended shows 100% in the executed notebook, and a page made of it
# by nbconvert shows the bar, or at least that text, without a network.
# Seen: the notebook's text says 0% for ever ("0%| | 0/50"): the text is that of the moment at which
# the widget was shown, and only the widget's state, kept elsewhere, moves.  The page has neither: it
# takes its widgets from a content network, and no text stands in for them.  What is printed inside a
# widgets.Output is in no cell's outputs at all.  So a report looks as if nothing had ended.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check 'papermill==2.7.0' \
    'nbclient==0.11.0' 'ipykernel==7.4.0' 'ipywidgets==8.1.9' 'tqdm>=4.67,<5' 'nbconvert==7.17.2' 2>/dev/null
cd "$place"
export HOME="$place"
"$place/venv/bin/python" - 2>/dev/null <<'PY'
import json
import re

import nbformat
import papermill
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook

bar = "from tqdm.auto import tqdm\nfor _ in tqdm(range(50)):\n    pass"
output = ("import ipywidgets\nout = ipywidgets.Output()\ndisplay(out)\n"
          "with out:\n    print('epoch', 7)")
kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
notebook = new_notebook(cells=[new_code_cell(bar), new_code_cell(output)], metadata={"kernelspec": kernel})
nbformat.write(notebook, "in.ipynb")
papermill.execute_notebook("in.ipynb", "out.ipynb", kernel_name="python3", progress_bar=False)
done = nbformat.read("out.ipynb", 4)
text = done.cells[0].outputs[0]["data"]["text/plain"]
printed = json.dumps(done.cells[1].outputs)
state = json.dumps(done.metadata.widgets)
html, _ = HTMLExporter().from_notebook_node(done)
visible = re.sub(r"(?s)<(script|style)\b.*?</\1>", "", html)
print(f"the cell's text: {text.strip()!r}")
print(f"the widgets' state: 50/50 in it {'50/50' in state}, 'epoch 7' in it {'epoch 7' in state}")
print(f"the second cell's outputs: 'epoch 7' in them {'epoch 7' in printed}")
print(f"the page without its scripts: 0/50 {'0/50' in visible}, 'epoch 7' {'epoch 7' in visible}")
assert "0/50" in text and "50/50" not in text, "the behaviour has changed"
assert "50/50" in state and "epoch 7" in state and "epoch 7" not in printed, "the behaviour has changed"
assert "0/50" not in visible and "epoch 7" not in visible, "the behaviour has changed"
print("as stated")
PY
