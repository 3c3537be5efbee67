"""One HTML file that draws the run's images in a browser: from a disk, without a server or network.

The network is computed by `kernels/kernels.wasm` (its source beside it), float32, one image at a
time, by up to four workers.  Noise is keyed as everywhere: seed k is image k.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from dreamlib.config.factory import make_schedule
from dreamlib.export.facts import TOLD, Facts
from dreamlib.export.page_weights import pack_weights
from dreamlib.report.html import templates_of
from dreamlib.runs.run import Run
from dreamlib.utils.errors import ConfigError
from dreamlib.utils.files import write_text

HERE = Path(__file__).parent
WHOLE = 2**32  # seeds that one 32-bit word of the generator's key can hold
HEAVY = 40 << 20  # bytes of a page that browsers and mail programs still take


def share(run: Run, path: Path | None = None, *, large: bool = False) -> Path:
    """Write the page of a run's averaged weights; its path (figures/NAME-page.html of the run).

    Scores and settings are on it, as far as the run holds them.  ConfigError for a GAN, and for a
    page above 40 MB unless `large`; NotThere before there are weights.
    """
    facts, config = Facts(run), run.config
    if config.model == "gan":
        raise ConfigError(
            "the page draws with diffusion models: a GAN leaves by `dreamlib export`, as ONNX"
        )
    if config.sample.seed >= WHOLE:
        raise ConfigError(f"the page takes sampler seeds below {WHOLE:,}: --set sample.seed=0")
    table, packed = pack_weights(facts.weights)
    if 4 * len(packed) / 3 > HEAVY and not large:
        raise ConfigError(
            f"the page of this network would weigh {4 * len(packed) / 3e6:,.0f} MB, too much for "
            "many browsers: share a smaller model, publish it by `dreamlib export`, or make the "
            "page all the same with --large"
        )
    name = f"{facts.name}-page.html"
    path = path / name if path and path.is_dir() else path or run.dir.figures / name
    write_text(path, _page(facts, _model(facts) | {"arrays": table}, packed))
    return path


def _model(facts: Facts) -> dict[str, Any]:
    """What the page's script knows of the network beside its weights."""
    run, sample = facts.run, facts.run.config.sample
    return run.network | {
        "alpha_bar": make_schedule(run.config).alpha_bar.tolist(),
        "sample": {name: getattr(sample, name) for name in type(sample).model_fields},
        "told": facts.told(),
    }


def _page(facts: Facts, model: dict[str, Any], packed: bytes) -> str:
    templates = templates_of(HERE / "templates")
    style = _text("page.css", templates) + _text("share.css", templates)
    script = _text("share.js", templates)
    sample = facts.run.config.sample
    return templates.get_template("share.html").render(
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        worker=Markup(_text("model.js", templates)),
        title=f"{facts.name}: {facts.images}",
        summary=facts.summary,
        size=facts.run.config.data.size,
        total=len(model["alpha_bar"]),
        sample=sample,
        samplers=_samplers(sample),
        attributes=facts.labels,
        known=TOLD,
        scores=facts.scores(),
        notes=facts.notes(),
        about=facts.about().items(),
        facts=facts.rows(),
        model=Markup(json.dumps(model).replace("<", "\\u003c")),
        weights=_base64(packed),
        kernels=_base64(gzip.compress((HERE / "kernels" / "kernels.wasm").read_bytes(), mtime=0)),
    )


def _samplers(sample: Any) -> dict[str, dict[str, Any]]:
    """Name -> changes of the run's own settings."""
    own = f"as trained: {sample.sampler}" + (
        f", eta {sample.eta:g}" if sample.eta and sample.sampler != "ddpm" else ""
    )
    return {
        own: {},
        "DPM-Solver++(2M)": {"sampler": "dpmpp_2m", "eta": 0},
        "DPM-Solver++(2M) with fresh noise": {"sampler": "dpmpp_2m", "eta": 1},
        "DDIM": {"sampler": "ddim", "eta": 0},
    }


def _text(name: str, templates: Environment) -> str:
    assert isinstance(templates.loader, FileSystemLoader)
    return templates.loader.get_source(templates, name)[0]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _policy(style: str, script: str) -> str:
    """Nothing is fetched; no script runs but the page's own, its worker and its WebAssembly."""
    style_hash, script_hash = (
        f"'sha256-{_base64(hashlib.sha256(text.encode()).digest())}'" for text in (style, script)
    )
    return (
        f"default-src 'none'; script-src {script_hash} 'wasm-unsafe-eval'; "
        f"style-src {style_hash}; worker-src blob:; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )
