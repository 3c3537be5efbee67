"""All benchmarks that take minutes, or those named; a JSON file and a page of tables.

    make bench                       # all, about an hour on an idle machine
    make bench BENCH=dream_cost      # one
    make bench BENCH=--quick         # all, two rounds of small turns: about four minutes
    python -m benchmarks growth --draw figures    # its picture again, of what is committed here

Each runs in a process of its own, so that one's memory is not another's.  Results of those that
did not run now are kept.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.suite import NAMES, QUICK, ROUNDS, page, run
from benchmarks.timing import apart
from dreamlib.report.figures.style import save_figure
from dreamlib.utils.files import read_json, write_json, write_text


def draw(name: str, found: dict[str, Any], folder: Path) -> None:
    """The picture of a benchmark that has one."""
    module = import_module(f"benchmarks.{name}")
    if hasattr(module, "figure"):
        save_figure(module.figure(found), folder, name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure dreamlib beside its peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="two rounds of small turns")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--draw", type=Path, help="pictures of the committed numbers, to here")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    if options.draw:
        committed = read_json(Path(__file__).with_name("benchmarks.json"))
        for name in options.names or NAMES:
            draw(name, committed[name], options.draw)
        return
    path = options.out / "benchmarks.json"
    found = read_json(path) if path.exists() else {}
    rounds = options.rounds or (QUICK if options.quick else ROUNDS)
    for name in options.names or NAMES:
        print(f"{name} ...", flush=True)
        found[name] = apart(run, name, rounds, options.quick)
        found = {each: found[each] for each in NAMES if each in found}
        write_json(path, found)
        print(import_module(f"benchmarks.{name}").table(found[name]), flush=True)
        draw(name, found[name], options.out)
        print(f"took {found[name]['took_seconds']:.0f} s", flush=True)
    write_text(options.out / "benchmarks.md", page(found))
    print(f"{path} and {options.out / 'benchmarks.md'}")


if __name__ == "__main__":
    main()
