"""Every command of README.md, CONTRIBUTING.md and docs/: those of dreamlib are run, page by page.

A page's commands run in its order, in one empty folder, as written; READY, WORDS and ADDED below
say what stands in for what a test has not got (CelebA, Inception's weights, a Drive) or has no
time for (the large networks).  What is only looked up, and why, is said at each `look_up_...`.  A
command that is neither fails: it has to be thought about.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from PIL import Image

from dreamlib.cli.main import app
from dreamlib.config import factory as build
from dreamlib.data.classic_sets import FILES
from dreamlib.metrics.features import extract
from dreamlib.report.figures import style
from tests.conftest import TINY
from tests.data.test_sources import idx_bytes
from tests.metrics.test_inception import stand_in as stand_in_for
from tests.metrics.test_inception import weights as random_inception
from tests.training.conftest import TINY_GAN

inception = random_inception  # a fixture
ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SH = re.compile(r"```(?:sh|bash|shell|console)\n(.*?)```", re.S)
SHELL = ("trap", "until", "for", "while")  # such lines are run by bash, as they stand
LOOKED_UP = ("notebooks", "demo")  # minutes; tests/notebook/test_notebooks.py has them
DEAR = ("figures", "evaluate --images A")  # seconds: of equal commands the first page's is run
ELSEWHERE = ("ARCHITECTURE.md",)  # tests/test_docs.py runs these


def sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


SMALL = sets(*TINY, "data.name=faces", "data.size=16", "evaluate.extractor=classifier")

# What a page takes for granted: a finished run in each of these folders.
READY = {
    "SHARING.md": ["runs/faces"],
    "README.md": ["runs/faces-2"],
    "EVALUATION.md": ["runs/faces", "runs/faces-2"],
    "HARDWARE.md": ["runs/faces"],
    "TRAINING.md": ["runs/faces"],
    "CONTRIBUTING.md": ["runs/faces"],
}

# Words, and what stands in for them.  (Folders of images are made under the names that pages use.)
WORDS = {
    "/content/drive/MyDrive/dreamlib": "drive",
    "/mnt/disk": "disk",
    "/usr/share/datasets/fashion-mnist": "fashion",
    "--n 500": "--n 20",
    "--steps 2000": "--steps 3 --seeds 1 --n 100 --losses standard --losses perturb-0.1",
}

# Commands that begin so get these words as well.
ADDED = {
    r"train .*--preset (?!gan-)": SMALL,
    r"train .*--preset gan-": sets(*TINY_GAN, "data.name=faces", "data.size=16"),
    r"explain .*--(batch|gpus)": sets("net.widths=[8, 16]", "net.heads=2", "data.size=16"),
    r"data (prepare|show|verify) celeba64": SMALL,
    r"data (stats|export) .*--preset celeba64": SMALL,
    r"data (prepare|show|verify) fashion-cpu": ["--data", "fashion"],
    r"data (prepare|show|verify) cats\d+": ["--size", "16"],
    r"ablate": sets(
        *[*TINY, "diffusion.steps=100", "sample.batch=50", "sample.shard=50"],
        *["data.floor=100", "data.reference=100", "evaluate.reference=100"],
    ),
}

# ---------------------------------------------------------------------------- commands of a page


@dataclass(frozen=True)
class Line:
    page: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    def __str__(self) -> str:
        return f"{self.page}: {self.text.splitlines()[0][:60]}"


def lines_of(page: Path) -> list[Line]:
    """The commands in a page's ```sh blocks; neighbouring lines of shell are one script."""
    found: list[Line] = []
    for block in SH.findall(page.read_text("utf-8")):
        whole = block.replace("\\\n", " ").splitlines()
        texts = [text for text in whole if shlex.split(text, comments=True)]
        for shell, group in itertools.groupby(texts, lambda text: text.split()[0] in SHELL):
            group = ["\n".join(group)] if shell else group
            found += [Line(page.name, text) for text in group]
    return found


LINES = [line for page in PAGES if page.exists() for line in lines_of(page)]


def without_environment(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """NAME=value words at the head of a command, and the command."""
    count = len(list(itertools.takewhile(lambda word: re.match(r"[A-Z_]+=", word), words)))
    return dict(word.split("=", 1) for word in words[:count]), words[count:]


def of_dreamlib(words: list[str]) -> list[str] | None:
    """What follows `dreamlib` or `python -m dreamlib`; None for another program."""
    for head in (["dreamlib"], ["python", "-m", "dreamlib"], [".venv/bin/dreamlib"]):
        if words[: len(head)] == head:
            return words[len(head) :]
    return None


def is_repeated(line: Line) -> bool:
    """One of DEAR that stands, word for word, on an earlier page; it is only looked up."""
    if not " ".join(of_dreamlib(line.words) or []).startswith(DEAR):
        return False
    first = next(other for other in LINES if other.words == line.words)
    return first.page != line.page


def is_run(line: Line) -> bool:
    words = of_dreamlib(without_environment(line.words)[1])
    if line.page in ELSEWHERE or is_repeated(line):
        return False
    return line.text.split()[0] in SHELL or (words is not None and words[0] not in LOOKED_UP)


# ---------------------------------------------------------------------------- the world of a page


def pictures(folder: Path, seed: int, count: int = 40) -> None:
    folder.mkdir(parents=True)
    images = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).resize((16, 16)).save(folder / f"{i}.png")


def furnish(world: Path) -> None:
    """The folders of images that pages name."""
    pictures(world / "path/to/cats", 0)
    pictures(world / "path/to/images", 1)
    for seed, name in enumerate("AB"):
        pictures(world / name, seed, 10)  # through Inception: few
    with zipfile.ZipFile(world / "cats.zip", "w") as archive:
        for path in sorted((world / "path/to/cats").iterdir()):
            archive.write(path, path.name)
    rng = np.random.default_rng(0)
    (world / "fashion").mkdir()
    for part, count in (("train", 40), ("test", 20)):
        images = rng.integers(0, 256, (count, 28, 28))
        (world / "fashion" / FILES[f"{part} images"]).write_bytes(idx_bytes(images))
        labels = np.arange(count) % 10
        (world / "fashion" / FILES[f"{part} labels"]).write_bytes(idx_bytes(labels))


@pytest.fixture
def world(tmp_path, data_home, inception, monkeypatch, quick_python):
    """A folder with the images that pages name; Inception is random; this process works there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "INCEPTION", stand_in_for(build.INCEPTION, inception))
    monkeypatch.setenv("DREAMLIB_WEIGHTS", str(inception.parent))
    monkeypatch.setitem(extract.__kwdefaults__, "batch", 10)  # of 100: ten images fill it
    monkeypatch.setattr(style, "DPI", 50)  # quicker, as in tests/report/test_figures.py
    monkeypatch.setattr(style, "TRUETYPE", {})
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    furnish(tmp_path)
    return tmp_path


def stand_in(text: str) -> str:
    for word, other in WORDS.items():
        text = re.sub(rf"(?<![\w/]){re.escape(word)}(?![\w/])", other, text)
    return text


def script(text: str) -> int:
    """The exit code of lines of shell, `dreamlib` being this one."""
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("no bash")
    head = f'dreamlib() {{ "{sys.executable}" -m dreamlib "$@"; }}\n'
    return subprocess.run([shell, "-c", head + text], timeout=300, check=False).returncode


def run(line: Line, patch: pytest.MonkeyPatch, program: Callable[..., Any]) -> tuple[int, str]:
    """The exit code of a command, and what it printed."""
    text = stand_in(line.text)
    if line.text.split()[0] in SHELL:
        return script(text), ""
    environment, words = without_environment(shlex.split(text, comments=True))
    words = of_dreamlib(words) or []
    more = [extra for start, extra in ADDED.items() if re.match(start, " ".join(words))]
    with patch.context() as inside:
        for name, value in environment.items():
            inside.setenv(name, value)
        code, out, err = program()(*words, *itertools.chain(*more))
        return code, out[-1500:] + err


LONG = ("EVALUATION.md", "GAN.md", "HARDWARE.md")  # pages for the long checks
PAGES_THAT_RUN = [
    pytest.param(page, marks=pytest.mark.slow) if page in LONG else page
    for page in sorted({line.page for line in LINES if is_run(line)})
]


@pytest.mark.parametrize("page", PAGES_THAT_RUN)
def test_the_commands_of_a_page_run(page, world, trained, monkeypatch, program):
    if any("dreamlib export" in line.text for line in LINES if line.page == page):
        pytest.importorskip("onnxscript")
    for folder in READY.get(page, []):
        shutil.copytree(trained.folder, world / folder)
    for line in LINES:
        if line.page == page and is_run(line):
            code, text = run(line, monkeypatch, program)
            assert code == 0, f"{line.text}\nexit code {code}\n{text}"


def test_the_program_in_the_readme_runs(world):
    """The four verbs, with a network and numbers of images that take seconds."""
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    small = program.replace('preset="faces16"', f'preset="faces16", overrides={TINY}')
    small = small.replace("(500, 5000)", "(20, 60)")
    assert small.count("overrides") == small.count("(20, 60)") == 1
    state: dict = {}
    exec(small, state)  # the page's own text
    assert state["images"].shape == (64, 16, 16, 3)
    assert {row.n for row in state["study"].of("generated")} == {20, 60}


# ---------------------------------------------------------------------------- looked up, not run


def look_up_dreamlib(words: list[str]) -> None:
    """The command exists, and so does every option; no more arguments than it takes.

    For commands in running text (`dreamlib evaluate RUN`), and for those of LOOKED_UP.
    """
    command = typer.main.get_command(app)
    words = [word for word in words if word not in ("...", "…")]
    while hasattr(command, "commands") and words:
        name, *words = words
        if name == "COMMAND" or name.startswith("{"):  # any of them
            return
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    options = {name: p for p in command.params for name in (*p.opts, *p.secondary_opts)}
    free, rest = 0, iter(words)
    for word in rest:
        if not word.startswith("-"):
            free += 1
            continue
        name, equals, _ = word.partition("=")
        assert name in options, f"{command.name} has no option {name}: it has {sorted(options)}"
        if not (equals or getattr(options[name], "is_flag", False)):
            for _ in range(options[name].nargs):
                next(rest, None)  # its value; running text may leave it out
    takes = [p.nargs for p in command.params if p.param_type_name == "argument"]
    assert -1 in takes or free <= sum(takes), f"{command.name} takes no {words}"


def look_up_make(words: list[str]) -> None:
    """The target exists, by a dry run: the real ones install, take minutes, or rewrite links."""
    tool = shutil.which("make")
    if tool is None:
        pytest.skip("no make")
    done = subprocess.run(
        [tool, "--dry-run", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for text in done.stdout.splitlines():
        found = of_dreamlib(["python", *shlex.split(text)[1:]]) if "-m dreamlib" in text else None
        if found:
            look_up_dreamlib(found)


def look_up_python(words: list[str]) -> None:
    """`python -m tests...`: the module has every option that is named.  Benchmarks take minutes
    to hours; what they measured is committed, and compared with the pages by tests/test_docs.py."""
    assert words[0] == "-m", words
    module, options = words[1], words[2:]
    if module == "pytest":
        return look_up_files(options)
    found = importlib.import_module(module)
    assert callable(found.main)
    source = Path(str(found.__file__)).read_text("utf-8")
    for word in options:
        if word.startswith("-"):
            assert f'"{word}"' in source, f"{module} has no option {word}"
    return None


def look_up_pip(words: list[str]) -> None:
    """Extras of this project exist.  Installing needs a network, and changes the machine."""
    assert words[0] in ("install", "download", "wheel"), words
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        for name in extra.split(","):
            assert re.search(rf"^{name} = \[", project, re.M), f"there is no extra {name}"


def look_up_conda(words: list[str]) -> None:
    """The file exists, and the environment has the name.  Needs a network, and conda."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    if words[0] == "activate":
        assert words[1:] == [environment["name"]]
    else:
        assert words == ["env", "create", "-f", "environment.yml"]


def one_of(*verbs: str) -> Callable[[list[str]], None]:
    """The verb is one that we mean: it would need a network, or write."""

    def look_up(words: list[str]) -> None:
        assert words[0] in verbs, words

    return look_up


def look_up_files(words: list[str]) -> None:
    """They exist: tests are run anyway; nbconvert rewrites notebooks, JupyterLab waits."""
    for word in words:
        if word.startswith("tests/") or word.endswith(".ipynb"):
            assert list(ROOT.glob(word.split("::")[0])), word


CHECKED = {
    "dreamlib": look_up_dreamlib,
    "make": look_up_make,
    "python": look_up_python,
    "pytest": look_up_files,
    "pip": look_up_pip,
    "conda": look_up_conda,
    "git": one_of("clone", "commit", "tag", "push", "switch"),
    "ruff": one_of("check", "format"),
    "jupyter": look_up_files,
    "cd": lambda words: None,  # the reader's own folders
    "pwd": lambda words: None,
}


def look_up(words: list[str]) -> None:
    _, words = without_environment(words)
    ours = of_dreamlib(words)
    if ours is not None:
        return look_up_dreamlib(ours)
    program = words[0].removeprefix(".venv/bin/")
    assert program in CHECKED, f"{program}: run it in tests/cli/test_commands.py, or say why not"
    return CHECKED[program](words[1:])


@pytest.mark.parametrize("line", [x for x in LINES if not is_run(x)], ids=str)
def test_other_commands_exist(line):
    look_up(line.words)


def in_text(path: Path) -> list[Line]:
    """Commands in `backticks`: of a page's text, of messages and docstrings, of notebooks."""
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    if path.suffix == ".py":  # a message in several pieces
        text = re.sub(r'" *\n\s*f?"', "", text)
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    programs = "|".join(CHECKED)
    found = re.findall(rf"`((?:{programs}) [^`\n]*(?:\n[^`\n]+)?)`", text)
    return [Line(path.name, " ".join(command.split())) for command in found]


SOURCES = [
    *(page for page in PAGES if page.exists()),
    *sorted((ROOT / "dreamlib").rglob("*.py")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]
NAMED = sorted({line for path in SOURCES for line in in_text(path)}, key=str)


@pytest.mark.parametrize("line", NAMED, ids=str)
def test_commands_in_running_text_exist(line):
    look_up(shlex.split(line.text))


def test_there_is_something_to_check():
    assert len([line for line in LINES if is_run(line)]) >= 30
    assert len(NAMED) >= 30


@pytest.mark.parametrize(
    "command",
    [
        "dreamlib trian runs/faces",
        "dreamlib train runs/faces --ours 3",
        "dreamlib sample runs/faces runs/other",
        "dreamlib data prepare faces16 --sise 16",
        "dreamlib run status runs/faces --png",
        "make demoo",
        "python -m benchmarks.sampler_table --sedes 3",
        "pip install -e '.[alll]'",
        "rm -rf runs",
    ],
)
def test_wrong_commands_are_found_out(command):
    with pytest.raises((AssertionError, ImportError)):
        look_up(shlex.split(command))


def test_comments_and_continued_lines(tmp_path):
    page = tmp_path / "page.md"
    text = "# only text\nmake demo \\\n  DATA=x   # why\nfor i in 1; do\nfor j\n"
    page.write_text(f"```sh\n{text}```\n")
    first, second = lines_of(page)
    assert first.words == ["make", "demo", "DATA=x"]
    assert second.text.splitlines() == ["for i in 1; do", "for j"]


def test_the_environment_is_told_apart():
    assert without_environment(["A_B=1", "dreamlib", "x=2"]) == ({"A_B": "1"}, ["dreamlib", "x=2"])
    assert os.environ.get("DREAMLIB_MIRROR") is None
