"""The page of `dreamlib share` from a file in Chromium and Firefox, with the network off."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from dreamlib.export.page import share
from dreamlib.sampling.generate import generate
from tests.browser.firefox import firefox
from tests.browser.pages import SCREENS, browser, missing, wait_for

pytestmark = pytest.mark.slow
DRAWN = "document.querySelectorAll('#sheet button:not([disabled])').length"
PIXELS = """Array.from(document.querySelectorAll('#sheet canvas'), canvas => Array.from(
  canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data))"""


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    return share(trained, tmp_path_factory.mktemp("page") / "page.html")


def check(found, run, evaluate):
    """All of a drawn page: 64 images as `sample` has them, steps of one, a walk, another sheet."""
    wait_for(lambda: evaluate(DRAWN) == 64, 120, "for 64 images")
    pixels = np.array(evaluate(PIXELS), np.uint8).reshape(64, 16, 16, 4)
    assert (pixels[..., 3] == 255).all()
    apart = np.abs(generate(run, range(64)).astype(int) - pixels[..., :3])
    assert (apart <= 1).mean() >= 0.999
    assert "Seeds 0 to 63" in evaluate("document.getElementById('status').textContent")
    evaluate("document.querySelectorAll('#sheet button')[5].click() ?? 1")
    wait_for(lambda: not evaluate("document.getElementById('step').disabled"), 60, "for its steps")
    told = evaluate("document.getElementById('way-text').textContent")
    assert told.startswith("Seed 5: step 3 of 4, t = ")
    evaluate("document.getElementById('walk').click() ?? 1")
    named = "document.querySelectorAll('#frames canvas[aria-label]').length"
    wait_for(lambda: evaluate(named) == 9, 60, "for the walk")
    evaluate("document.getElementById('seed').value = 7")
    evaluate("document.getElementById('draw').click() ?? 1")
    wait_for(lambda: evaluate(DRAWN) == 64, 120, "for another sheet")
    again = np.array(evaluate(PIXELS), np.uint8).reshape(64, 16, 16, 4)
    assert (again[0] == pixels[7]).all()
    assert not evaluate("document.querySelectorAll('.warning').length")
    assert evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.skipif(bool(missing()), reason=missing() or "there is a browser")
def test_in_chromium(page, trained):
    with browser() as chromium:
        context = chromium.new_context(viewport={"width": 390, "height": 800}, offline=True)
        tab, said, asked = context.new_page(), [], []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        check(tab, trained, lambda text: tab.evaluate(f"() => {text}"))
        own = [text for text in said if "willReadFrequently" not in text]  # of our reading here
        assert not own
        assert all(address.startswith(("file:", "blob:", "data:")) for address in asked)
        SCREENS.mkdir(parents=True, exist_ok=True)
        tab.screenshot(path=SCREENS / "share-chromium.png", full_page=True)


@pytest.mark.skipif(not shutil.which("firefox-esr"), reason="there is no firefox-esr here")
def test_in_firefox(page, trained, tmp_path):
    pytest.importorskip("websocket")
    with firefox(tmp_path) as fox:
        fox.size(1200, 900)
        fox.goto(page.as_uri())
        check(fox, trained, fox.evaluate)
        assert not fox.logged
        assert all(address.startswith(("file:", "blob:", "data:")) for address in fox.asked)
        SCREENS.mkdir(parents=True, exist_ok=True)
        fox.shoot(SCREENS / "share-firefox.png")
