"""The HTML report as a reader sees it, in headless Chromium: it loads, fits narrow and wide, and is legible."""

import dataclasses
import os
import shutil

import pytest

from robustkit.report import files, page
from tests import kinds, records

LIGHT, DARK = "light", "dark"
# Every text on the page with its colour, size, weight, and the backgrounds behind it, nearest first.
TEXTS = """
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode, parent = node.parentElement, style = getComputedStyle(parent);
  if (!node.textContent.trim() || parent.closest('title') || !parent.getClientRects().length) continue;
  const behind = [];
  for (let at = parent; at; at = at.parentElement) behind.push(getComputedStyle(at).backgroundColor);
  found.push({text: node.textContent.trim().slice(0, 40), size: parseFloat(style.fontSize), weight: style.fontWeight,
              colour: parent.closest('svg') ? style.fill : style.color, behind});
}
return found;
"""
# Words that are broken in the middle or stand one over another: a cell of a table narrower than its longest short word.
CUT = """
const found = [];
for (const cell of document.querySelectorAll('th, td')) {
  const outer = getComputedStyle(cell), walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
  const inner = cell.clientWidth - parseFloat(outer.paddingLeft) - parseFloat(outer.paddingRight);
  const pen = document.createElement('canvas').getContext('2d');
  while (walker.nextNode()) {
    const style = getComputedStyle(walker.currentNode.parentElement);
    pen.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
    for (const word of walker.currentNode.textContent.split(/[\\s\\-\\/]+/))
      if (word.length <= 12 && pen.measureText(word).width > inner + 2) found.push([word, inner]);
  }
}
return found;
"""
WIDTHS = "return [document.documentElement.scrollWidth, window.innerWidth]"
IMAGES = "return [...document.images].map(i => [i.complete, i.naturalWidth])"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium or chromedriver is not installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    words = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    profile = f"user-data-dir={tmp_path_factory.mktemp('profile')}"
    for word in (*words.split(), "disable-component-update", "disable-sync", profile):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    opened = webdriver.Chrome(options=options, service=service)
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page with everything on it: an audit, images, a long attack name, notes and a violated sample."""
    attacks = ("apgd:loss=dlr-targeted,steps=100,restarts=5,targets=9,and_so_on=a_name_without_end", "fab")
    record = records.random_record(400, attacks, images=True, audit=records.AUDIT, model="<script>alert(1)</script>")
    at = int(record.attacks["index"][record.attacks["outcome"] == "survived"][-1])
    record.samples["status"][at] = "UNKNOWN"
    record.attacks["outcome"][(record.attacks["index"] == at) & (record.attacks["attack"] == "fab")] = "violated"
    record = dataclasses.replace(record, flags=[{"kind": "note", "message": "a note " * 30}])
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page.run_page(record), encoding="utf-8")
    return file


def written(tmp_path_factory, name, text):
    file = tmp_path_factory.mktemp("page") / f"{name}.html"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def transfer(tmp_path_factory):
    return written(tmp_path_factory, "transfer", files.of_transfer(kinds.transfer())["report.html"])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return written(tmp_path_factory, "study", kinds.study_page())


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    return written(tmp_path_factory, "audit", files.of_audit(kinds.audit())["report.html"])


@pytest.fixture(scope="module")
def corruptions(tmp_path_factory):
    return written(tmp_path_factory, "corruptions", files.of_corruptions(kinds.corruptions())["report.html"])


@pytest.fixture(scope="module")
def bounds(tmp_path_factory):
    return written(tmp_path_factory, "bounds", files.of_bounds(kinds.bounds())["report.html"])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return written(tmp_path_factory, "certificate", files.of_certificate(kinds.certificate())["report.html"])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    runs = [records.random_record(100, eps=eps, audit=records.AUDIT) for eps in (0.1, 0.2)]
    file = tmp_path_factory.mktemp("page") / "sweep.html"
    file.write_text(page.sweep_page(("25.5/255", "0.2"), runs, ("eps-01", "eps-02")), encoding="utf-8")
    return file


def show(browser, file, scheme, width):
    """Open the page in a colour scheme and a width; keep a picture where ROBUSTKIT_SHOTS names a folder."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(file.as_uri())
    if shots := os.environ.get("ROBUSTKIT_SHOTS"):
        height = browser.execute_script("return document.documentElement.scrollHeight")
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**size, "height": height})
        browser.save_screenshot(f"{shots}/{file.stem}-{scheme}-{width}.png")
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def rgba(text):
    """The channels and the opacity, each in [0,1], of a computed colour."""
    name, _, inside = text.rstrip(")").partition("(")
    numbers = [float(part) for part in inside.replace(",", " ").replace("/", " ").split()]
    assert name in ("rgb", "rgba"), text
    return [value / 255 for value in numbers[:3]], numbers[3] if len(numbers) == 4 else 1.0


def over(behind):
    """The colour seen where these backgrounds lie over each other, the nearest first."""
    colour = [1.0, 1.0, 1.0]
    for text in reversed(behind):
        channels, opacity = rgba(text)
        colour = [opacity * new + (1 - opacity) * old for new, old in zip(channels, colour, strict=True)]
    return colour


def luminance(channels):
    """WCAG 2.2's relative luminance."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    """WCAG 2.2's contrast ratio, from 1 to 21."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_contrast_is_that_of_the_standard():
    assert contrast([0, 0, 0], [1, 1, 1]) == pytest.approx(21)
    assert contrast([0x76 / 255] * 3, [1, 1, 1]) == pytest.approx(4.54, abs=0.01)  # the well-known #767676
    assert contrast([0x77 / 255] * 3, [1, 1, 1]) < 4.5
    assert over(["rgba(0, 0, 0, 0.5)", "rgb(255, 255, 255)"]) == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize(
    "name", ["report", "sweep", "transfer", "study", "audit", "corruptions", "certificate", "bounds"]
)
def test_a_page_loads_fits_and_is_legible(browser, request, name, scheme, width):
    file = request.getfixturevalue(name)
    show(browser, file, scheme, width)
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    images = browser.execute_script(IMAGES)
    assert len(images) == (36 if name == "report" else 0)
    assert all(complete and wide for complete, wide in images)
    scrolled, inside = browser.execute_script(WIDTHS)
    assert inside == width
    assert scrolled <= inside
    texts = browser.execute_script(TEXTS)
    assert len(texts) > (200 if name == "report" else 40)
    assert not browser.execute_script(CUT)
    body = luminance(over(texts[0]["behind"]))
    assert body < 0.05 if scheme == DARK else body > 0.9
    faint = []
    for text in texts:
        large = text["size"] >= 24 or (text["size"] >= 18.66 and int(text["weight"]) >= 700)
        ratio = contrast(over([text["colour"], *text["behind"]]), over(text["behind"]))
        if ratio < (3 if large else 4.5):
            faint.append((text["text"], round(ratio, 2)))
    assert not faint


def test_a_script_in_a_name_does_not_run_and_is_shown(browser, report):
    show(browser, report, LIGHT, 1400)
    assert browser.execute_script("return document.scripts.length") == 0
    assert browser.execute_script("return document.querySelector('h1').textContent") == "<script>alert(1)</script>"


def test_a_printed_page_has_every_sample_and_is_light(browser, report):
    show(browser, report, DARK, 1400)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert colour == "rgb(255, 255, 255)"
    pdf = browser.execute_cdp_cmd(
        "Page.printToPDF", {"printBackground": True, "paperWidth": 8.27, "paperHeight": 11.69}
    )
    assert pdf["data"].startswith("JVBERi0")  # %PDF-
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
