"""The pages in a real browser: no message on the console, no request to anywhere, and they work."""

import json

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By

from tests.browser import browser as chromium
from xmodal_jax.report import __main__ as program


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report with pictures and hostile texts, and a comparison of two."""
    directory = tmp_path_factory.mktemp("pages")
    (directory / "images").mkdir()
    rng = np.random.default_rng(0)
    names = np.array([f"{k}.jpg" for k in range(12)])
    for k, name in enumerate(names):
        Image.new("RGB", (40 + k, 30), (20 * k, 0, 99)).save(directory / "images" / name)
    texts = np.array([f'<img src=x onerror="alert({k})"> & dog </style>{k}' for k in range(24)])
    for run in ("a", "b"):
        scores = rng.normal(size=(12, 24))
        np.savez(directory / f"{run}.npz", scores=scores, captions=texts, image_names=names)
        words = ["evaluate", str(directory / f"{run}.npz"), "--out", str(directory / run)]
        assert program.main([*words, "--images", str(directory / "images"), "--teran-parity"]) == 0
    runs = [str(directory / run) for run in ("a", "b")]
    assert program.main(["compare", *runs, "--out", str(directory / "both")]) == 0
    return directory


def opened(browser, path):
    """Opens a page; returns what its console said, and the addresses that it asked for."""
    browser.get_log("performance")
    browser.get(path.as_uri())
    events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    return browser.get_log("browser"), asked


@pytest.mark.parametrize("name", ["a/report.html", "both/comparison.html"])
def test_nothing_on_the_console_and_nothing_asked_for(browser, pages, name):
    said, asked = opened(browser, pages / name)
    assert said == []
    assert asked[0] == (pages / name).as_uri()
    assert all(url.startswith("data:") for url in asked[1:])
    assert browser.find_elements(By.TAG_NAME, "table")
    assert not browser.find_elements(By.TAG_NAME, "img")


def test_an_error_would_be_seen(browser, tmp_path):
    (tmp_path / "bad.html").write_text("<script>nothing()</script><img src='http://127.0.0.1:9/x'>")
    said, asked = opened(browser, tmp_path / "bad.html")
    assert any("nothing is not defined" in line["message"] for line in said)
    assert "http://127.0.0.1:9/x" in asked


def test_failures_show_pictures_and_can_be_searched(browser, pages):
    opened(browser, pages / "a" / "report.html")
    [picture, *_] = browser.find_elements(By.CSS_SELECTOR, ".example .picture")
    assert picture.size == {"width": 112, "height": 112}
    assert "data:image/jpeg" in picture.value_of_css_property("background-image")
    failures = browser.find_elements(By.CLASS_NAME, "example")
    browser.find_element(By.ID, "filter").send_keys("</STYLE>7")
    shown = [item for item in failures if item.is_displayed()]
    assert 0 < len(shown) < len(failures)
    assert all("</style>7" in item.text for item in shown)
