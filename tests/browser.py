"""A headless Chromium for the tests of pages, with what it said and whom it asked.

with browser(width=1280, height=900) as driver:
    driver.get(url)
    ...
    assert not console_messages(driver)
    assert {urlsplit(url).netloc for url in requested(driver)} == {"127.0.0.1:8000"}
"""

import contextlib
import json
import os
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_REMEDY = "no chromium with chromedriver; as root `bash launch/install.sh test` installs them"


def find_browser():
    """Paths of the browser and of its driver; None without both of them."""
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    # Where GitHub's machines have it.
    beside = os.pathsep.join([os.environ["PATH"], os.environ.get("CHROMEWEBDRIVER", "")])
    driver = shutil.which("chromedriver", path=beside)
    return (found, driver) if found and driver else None


@contextlib.contextmanager
def browser(width=1280, height=900, *, dark=False, touch=False, scale=1):
    """A selenium driver; skips the test where there is no browser, in CI fails it.

    Args:
      width: of the page, in CSS pixels; also less than the 500 of a window.
      height: the same.
      dark: whether the page is told that dark colours are preferred.
      touch: whether fingers point and nothing hovers.
      scale: pixels of a screenshot for each of them.
    """
    found = find_browser()
    if found is None:
        # A machine that checks changes must not pass what it did not look at.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(_REMEDY)
    options = webdriver.ChromeOptions()
    options.binary_location, driver_path = found
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Only this machine has an address, and a container has neither a sandbox nor much /dev/shm.
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "hide-scrollbars",
        "force-color-profile=srgb",
        "no-proxy-server",
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
        f"window-size={max(width, 500)},{height}",
    ):
        options.add_argument(f"--{flag}")
    # With its path the driver is not looked for on the internet.
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    try:
        driver.set_page_load_timeout(60)
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": touch}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        if touch:
            driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
        yield driver
    finally:
        driver.quit()


def console_messages(driver):
    """What the page wrote to the console since this was last asked, errors of loading included."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requested(driver):
    """The addresses that pages asked for since this was last called, but no files and no data."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if not url.startswith(("file:", "data:", "blob:", "about:"))]
