"""The notebooks' setup cell and what it runs, in environments of their own without dreamlib."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from dreamlib import __version__, install
from dreamlib.notebook.runner.notebooks import HOME

ROOT = HOME.parent
COLAB = install.COLAB
SETUP = "import importlib.util, subprocess, sys"  # in the setup cell of every notebook
PROJECT = (ROOT / "pyproject.toml").read_text()
HERE = Path(sysconfig.get_path("purelib"))
KAGGLE = {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}
PUBLISHED = f"git+https://github.com/dreamlib/dreamlib@{'0123456789' * 4}"

# It writes down how it was called, and "installs" what PIP_GIVES lists for what it was asked for.
PIP = """
import json, os, pathlib, sys
held = [a.split("=", 1)[1] for a in sys.argv if a.startswith("--constraint=")]
call = {"args": sys.argv[1:], "held": pathlib.Path(held[0]).read_text() if held else ""}
with open(os.environ["PIP_LOG"], "a") as file:
    file.write(json.dumps(call) + "\\n")
gives = json.loads(os.environ["PIP_GIVES"]).get(sys.argv[-1])
if gives is None:
    sys.exit("ERROR: No matching distribution found for " + sys.argv[-1])
name, target = gives
os.symlink(target, pathlib.Path(__file__).parent.parent / name)
"""


def cells(kind: str) -> list[str]:
    notebook = json.loads((HOME / "00_complete.ipynb").read_text())
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == kind]


def setup_cell() -> str:
    (cell,) = (source for source in cells("code") if SETUP in source)
    return cell


def choosing(path: Path | str) -> str:
    """The cell whose reader has named what is attached."""
    cell = setup_cell()
    return re.sub('^SOURCE = ".*?"', f'SOURCE = "{path}"', cell, count=1, flags=re.MULTILINE)


@dataclass
class Environment:
    """A Python with this one's packages, dreamlib and some others excepted."""

    folder: Path
    inputs: Path

    @property
    def site(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))

    @property
    def calls(self) -> list[dict]:
        """How the stand-in for pip was called."""
        log = self.folder / "pip.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def pretend_pip(self) -> None:
        (self.site / "pip").unlink()
        (self.site / "pip").mkdir()
        (self.site / "pip/__init__.py").write_text("")
        (self.site / "pip/__main__.py").write_text(PIP)

    def run(self, code: str, cwd: Path, **variables: str | dict) -> subprocess.CompletedProcess:
        code = code.replace('"/kaggle/input"', f'"{self.inputs}"')
        ours = {"PIP_LOG": str(self.folder / "pip.jsonl"), "PIP_CONFIG_FILE": os.devnull}
        ours |= {"PIP_INDEX_URL": "http://127.0.0.1:9/simple"}  # nobody answers there
        ours |= {"PIP_GIVES": json.dumps(variables.pop("gives", {}))}
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
        env |= ours | variables
        program = [str(self.folder / "bin/python"), "-c", code]
        return subprocess.run(program, cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """environment("typer", ...) -> one without these modules, and with a stand-in for pip."""
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)

    def make(*without: str, pip: bool = False) -> Environment:
        made = Environment(tmp_path / "environment", tmp_path / "kaggle/input")
        command = [sys.executable, "-m", "venv", "--without-pip", str(made.folder)]
        subprocess.run(command, check=True)
        left_out = {"dreamlib", "__editable__", *without}
        for path in HERE.iterdir():
            name = re.split(r"[-.]", path.name)[0]
            if name not in left_out and not path.name.startswith("__editable__"):
                (made.site / path.name).symlink_to(path)
        if not pip:
            made.pretend_pip()
        return made

    return make


def away(tmp_path: Path) -> Path:
    """A working folder that has nothing of the project near it."""
    folder = tmp_path / "away/from/home"
    folder.mkdir(parents=True)
    return folder


def clone(folder: Path, inputs: Path | None = None) -> Path:
    """The project's files as a clone would have them, with another place for Kaggle's inputs."""
    folder.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "dreamlib", folder / "dreamlib", ignore=ignored)
    (folder / "notebooks").mkdir()
    path = folder / "dreamlib/install.py"
    text = path.read_text().replace(str(COLAB), str(folder / "no-colab"))
    path.write_text(text.replace("/kaggle/input", str(inputs)) if inputs else text)
    return folder


WHERE = "\nprint('FROM', importlib.util.find_spec('dreamlib').origin)"
BANNER = f"dreamlib {__version__} · local · Python {sys.version.split()[0]} · torch "


def twice(cell: str) -> str:
    """The second time nothing is installed, and nothing changes."""
    again = "\nsubprocess.run = None\nbefore = list(sys.path)\n"
    return cell + again + cell + WHERE + "\nassert sys.path == before"


def assert_ready(done: subprocess.CompletedProcess, home: Path, platform: str = "local") -> None:
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith(BANNER.replace("local", platform))], lines
    assert f"FROM {home / 'dreamlib/__init__.py'}" in lines


# where dreamlib is found


@pytest.mark.parametrize("place", [".", "notebooks"])
def test_a_clone_is_used_where_it_is(environment, tmp_path, place):
    env, home = environment(), clone(tmp_path / "work/dreamlib")
    done = env.run(setup_cell() + WHERE, home / place)
    assert done.returncode == 0, done.stderr
    found = Path(done.stdout.split("FROM ")[1].strip())
    assert (home / place / found).resolve() == home / "dreamlib/__init__.py"
    assert env.calls == []


def test_a_clone_below_the_working_folder_is_no_namespace_package(environment, tmp_path):
    """`!git clone` on Colab leaves the project in ./dreamlib, the package one deeper."""
    env, home = environment(), clone(tmp_path / "content/dreamlib")
    assert_ready(env.run(setup_cell() + WHERE, home.parent), home)
    assert env.calls == []


@pytest.mark.parametrize("place", ["code", "datasets/somebody/code/dreamlib-main"])
def test_an_attached_folder_that_is_named_is_used(environment, tmp_path, place):
    env = environment()
    home = clone(env.inputs / place)
    done = env.run(twice(choosing(home)), away(tmp_path), **KAGGLE)
    assert_ready(done, home, "kaggle")
    assert env.calls == []


def test_what_is_merely_attached_is_never_run(environment, tmp_path):
    """Neither where dreamlib is missing nor where it is installed; nor are other wheels used."""
    env = environment("typer")
    home = clone(env.inputs / "a/dreamlib")
    (home / "dreamlib/install.py").write_text("raise SystemExit('it ran')")
    (env.inputs / "a/dreamlib-9.9-py3-none-any.whl").touch()
    attach(env, "typer", "9.9.9")
    done = env.run(choosing(PUBLISHED), away(tmp_path), **KAGGLE)
    assert done.stderr.strip().endswith("No module named 'dreamlib'")
    assert "it ran" not in done.stderr
    (env.site / "dreamlib").symlink_to(ROOT / "dreamlib")
    gives = {install.REQUIRED["typer"]: ["typer", str(HERE / "typer")]}
    done = env.run(setup_cell() + WHERE, tmp_path / "away", gives=gives, **KAGGLE)
    assert_ready(done, env.site, "kaggle")
    assert not [a for call in env.calls for a in call["args"] if str(env.inputs) in a]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools")
    home = clone(tmp_path_factory.mktemp("wheel") / "source")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "-w", str(home.parent), str(home)]
    subprocess.run(command, check=True)
    return home.parent / f"dreamlib-{__version__}-py3-none-any.whl"


def test_an_attached_wheel_is_installed_and_a_second_run_does_nothing(environment, tmp_path, wheel):
    env = environment(pip=True)
    place = env.inputs / "datasets/somebody/wheels"
    place.mkdir(parents=True)
    shutil.copy(wheel, place)
    # Both runs in one process: the second must find what the first installed under its feet.
    done = env.run(twice(choosing(place / wheel.name)), away(tmp_path), **KAGGLE)
    assert_ready(done, env.site, "kaggle")
    assert done.stdout.count("torch ") == 2


@pytest.mark.slow
def test_the_wheel_holds_all_that_the_library_needs(environment, tmp_path, wheel):
    env = environment(pip=True)
    env.inputs.mkdir(parents=True)
    shutil.copy(wheel, env.inputs)
    code = choosing(env.inputs / wheel.name) + (
        "\nimport dreamlib, dreamlib.report.html_report"
        "\nrun = dreamlib.open_run('runs/a', 'faces16', overrides=['data.train=60', "
        "'data.reference=30', 'data.floor=30', 'train.length=2'])"
        "\nprint(dreamlib.__file__, [tick.step for tick in dreamlib.train(run)])"
    )
    done = env.run(code, away(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"{env.site / 'dreamlib/__init__.py'} [1, 2]" in done.stdout


@pytest.mark.parametrize("stray", [False, True])
def test_otherwise_the_commit_is_fetched_without_its_dependencies(environment, tmp_path, stray):
    """A folder called dreamlib that holds no package (a mirror, say) is not taken for one."""
    env, cwd = environment(), away(tmp_path)
    if stray:
        (cwd / "dreamlib/runs").mkdir(parents=True)
    gives = {PUBLISHED: ["dreamlib", str(clone(tmp_path / "tag") / "dreamlib")]}
    assert_ready(env.run(twice(choosing(PUBLISHED)), cwd, gives=gives), env.site)
    (call,) = env.calls
    assert call["args"] == ["install", "-q", "--no-deps", PUBLISHED]


def test_a_copy_that_was_not_published_says_so_and_asks_nobody(environment, tmp_path):
    """The name in its badges may be anybody's."""
    env = environment()
    done = env.run(setup_cell(), away(tmp_path))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("not a published one: attach dreamlib, name its path as SOURCE")
    assert env.calls == []


@pytest.fixture
def fork(tmp_path):
    """-> (a commit stamped into its notebooks, the setup cell of one, variables): `make slug` in a
    clone of this project, on a git server of this machine that answers for github.com."""
    served, work = tmp_path / "served/me/mine", tmp_path / "work"
    clone(work)
    for name in ("notebooks", "tools", "docs", "CITATION.cff", "CONTRIBUTING.md"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, work / name, **{"dirs_exist_ok": True} if source.is_dir() else {})
    git(work, "init", "-q", "-b", "main")
    commit(work, "the library")
    sha = git(work, "rev-parse", "HEAD")
    command = [sys.executable, "-I", "-S", "tools/slug.py", "me/mine", "v1"]
    told = subprocess.run(command, cwd=work, capture_output=True, text=True, check=True).stdout
    assert f"the notebooks install {sha}: commit them, tag that v1, push both" in told
    commit(work, "stamped")
    git(work, "tag", "v1")
    git(work, "clone", "-q", "--bare", str(work), str(served))
    variables = {"GIT_CONFIG_COUNT": "1", "PIP_NO_BUILD_ISOLATION": "false"}
    variables["GIT_CONFIG_KEY_0"] = f"url.file://{served.parent.parent}/.insteadOf"
    variables["GIT_CONFIG_VALUE_0"] = "https://github.com/"
    notebook = json.loads((work / "notebooks/00_complete.ipynb").read_text())
    (cell,) = ("".join(c["source"]) for c in notebook["cells"] if SETUP in "".join(c["source"]))
    return work, sha, cell, variables


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    command = ["git", "-C", str(folder), *who, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit(folder: Path, words: str) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", words)


@pytest.mark.slow
def test_a_fork_installs_what_was_published_whatever_its_tag_says_later(
    environment, tmp_path, fork
):
    work, sha, cell, variables = fork
    assert f'SOURCE = "git+https://github.com/me/mine@{sha}"' in cell
    (work / "dreamlib/install.py").write_text("raise SystemExit('other code ran')")
    commit(work, "other code, under the same tag")
    git(work, "tag", "-f", "v1")
    served = tmp_path / "served/me/mine"
    git(work, "push", "-q", "--force", "--tags", str(served), "main")
    env = environment(pip=True)
    assert_ready(env.run(cell + WHERE, away(tmp_path), **variables), env.site)
    # and where that commit is no more, nothing takes its place
    shutil.rmtree(env.folder), shutil.rmtree(served)
    git(work, "checkout", "-q", "--orphan", "fresh")
    commit(work, "history rewritten")
    served.mkdir()
    git(served, "init", "-q", "--bare")
    git(work, "push", "-q", "--force", str(served), "fresh:main")
    env = environment(pip=True)
    done = env.run(cell, tmp_path / "away/from/home", **variables)
    assert done.returncode == 1
    assert "other code ran" not in done.stdout + done.stderr
    assert done.stderr.strip().endswith("No module named 'dreamlib'")


def test_what_is_not_committed_is_not_stamped(tmp_path):
    work = clone(tmp_path / "work")
    shutil.copytree(ROOT / "tools", work / "tools")
    git(work, "init", "-q")
    commit(work, "the library")
    (work / "dreamlib/new.py").write_text("")
    command = [sys.executable, "-I", "-S", "tools/slug.py", "me/mine"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    assert done.returncode == 1
    assert "commit this first" in done.stderr
    assert "dreamlib/new.py" in done.stderr


@pytest.mark.parametrize("installer", ["pip", "none"])
def test_without_internet_it_says_what_to_do(environment, tmp_path, installer):
    env = environment(*["pip"] * (installer == "none"), pip=True)
    done = env.run(choosing(PUBLISHED), away(tmp_path))
    assert done.returncode == 1
    assert done.stderr.strip().endswith("No module named 'dreamlib'")
    (text,) = (c for c in cells("markdown") if c.startswith("## Set-up"))
    assert '"No module named dreamlib" means' in text
    assert all(word in text for word in ("Internet", "attach", "wheel", "folder"))


# what is missing beside it


def ready(env: Environment, tmp_path: Path, **variables) -> subprocess.CompletedProcess:
    """The setup cell in a clone of the project."""
    home = tmp_path / "clone"
    if not home.exists():
        clone(home, env.inputs)
    return env.run(setup_cell(), home, **variables)


def test_only_what_is_missing_is_installed_and_nothing_is_changed(environment, tmp_path):
    env = environment("typer", "yaml", "lpips")
    needs = [install.REQUIRED["yaml"], install.REQUIRED["typer"], install.OPTIONAL["lpips"][0]]
    gives = {need: [m, str(HERE / m)] for need, m in zip(needs, ("yaml", "typer", "lpips"))}
    done = ready(env, tmp_path, gives=gives)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("dreamlib ")
    assert len(done.stdout.splitlines()) == 1
    assert [call["args"][-1] for call in env.calls] == needs
    for call in env.calls:
        assert not [a for a in call["args"] if re.match("(torch|numpy)", a) or a == "--upgrade"]
        for name in ("torch", "torchvision", "numpy", "pillow", "pydantic"):
            assert f"{name}=={metadata.version(name)}\n" in call["held"]
    assert ready(env, tmp_path).stdout == done.stdout
    assert len(env.calls) == 3, "the second run found all there"


def test_a_torch_unknown_to_pip_is_not_fetched_again(environment, tmp_path):
    env = environment("lpips")
    (env.site / f"torch-{metadata.version('torch')}.dist-info").unlink()
    ready(env, tmp_path)
    assert "--no-deps" in env.calls[0]["args"]


def test_scores_that_cannot_be_had_are_one_line_and_the_notebook_goes_on(environment, tmp_path):
    env = environment("cleanfid", "lpips")
    done = ready(env, tmp_path, **KAGGLE)
    assert done.returncode == 0, done.stderr
    off, banner = done.stdout.splitlines()
    assert off == (
        "off, because pip could not fetch clean-fid lpips: FID with Inception features, LPIPS; "
        "everything else works"
    )
    assert " · kaggle · " in banner


def test_a_required_package_that_cannot_be_had_stops_with_the_steps(environment, tmp_path):
    env = environment("typer", pip=True)
    done = ready(env, tmp_path, **KAGGLE)  # the real pip again
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: dreamlib needs typer: turn Internet on")
    for words in ("pip download --no-deps typer", "pip wheel --no-deps .", "attach"):
        assert words in last
    assert "No matching distribution found for typer" in done.stdout
    env.pretend_pip()
    done = ready(env, tmp_path)
    assert "pip could not install it here" in done.stderr
    assert f"{env.folder / 'bin/python'} -m pip install typer" in done.stderr


@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_torch_and_numpy_are_asked_for_and_never_installed(environment, tmp_path, name):
    env = environment(name)
    done = ready(env, tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {name} cannot be imported, and a notebook does not")
    assert env.calls == []


def attach(env: Environment, name: str, version: str, requires: str = "") -> None:
    """A wheel of one empty module among Kaggle's inputs."""
    folder = env.inputs / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{name}-{version}.dist-info"
    more = f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        f"{name}.py": f"__version__ = {version!r}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{about}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in (files | {f"{about}/RECORD": record}).items():
            wheel.writestr(path, text)


@pytest.mark.slow
def test_attached_wheels_are_used_and_numpy_stays_as_it_is(environment, tmp_path):
    """The real pip: typer comes from its wheel; an lpips that wants another numpy is refused."""
    env = environment("typer", "lpips", pip=True)
    attach(env, "typer", "9.9.9")
    attach(env, "lpips", "9.9.9", requires="numpy>=99")
    attach(env, "numpy", "99.0")
    home = clone(tmp_path / "clone")
    done = env.run(choosing(env.inputs / "wheels"), home, **KAGGLE)
    assert done.returncode == 0, done.stderr
    assert (env.site / "typer.py").read_text() == "__version__ = '9.9.9'\n"
    assert "could not fetch lpips: LPIPS" in done.stdout
    assert f"numpy {metadata.version('numpy')}" in done.stdout
    assert not (env.site / "numpy.py").exists()


def declared(name: str) -> set[str]:
    """A list of requirements in pyproject.toml; read as text, for the sake of Python 3.10."""
    return set(ast.literal_eval(re.search(rf"^{name} = (\[.*?\])$", PROJECT, re.M | re.S)[1]))


def test_it_asks_for_what_the_project_declares():
    needs, extras = declared("dependencies"), {need for need, _ in install.OPTIONAL.values()}
    never = {need for need in needs if need.split(">")[0] in install.NEVER}
    assert len(never) == len(install.NEVER)
    assert {*install.REQUIRED.values()} == needs - never
    assert declared("eval") <= extras <= declared("eval") | declared("notebooks")


@pytest.mark.parametrize("version", ["2.10.0+cu128", "2.1.3", "1!2.0rc1.post3.dev4", "2026.9.0"])
def test_versions_are_pinned_if_pip_reads_them(version):
    assert install.VERSION.fullmatch(version)
    assert not install.VERSION.fullmatch(f"{version} of Debian")
