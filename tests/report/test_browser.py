"""The page in a real Chromium: nothing is fetched, the console stays empty, the slider shows what it should."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from raydenoise.config import ReportConfig
from raydenoise.report import page
from tests.report.rows import MakeOut, failure, row

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
QUIET = (
    "--headless",
    "--no-sandbox",  # which root needs
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1600",
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="chromium or chromedriver is missing: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = str(CHROMIUM)
    for argument in QUIET:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def report(make_out: MakeOut, pictures: dict[str, str]) -> Path:
    hostile = "<script>document.title = 'hacked'</script><img src=x onerror=\"document.title = 'hacked'\">.png"
    return make_out([row(0, **pictures), row(1, key=hostile), failure(2, "empty", hostile, key=hostile)])


def visit(browser: webdriver.Chrome, root: Path) -> None:
    """Open the page; nothing may be fetched but itself and what it holds, and nothing said on the console."""
    browser.get_log("browser")
    browser.get_log("performance")
    address = Path(page.run(ReportConfig(folder=str(root)))["report"]).as_uri()
    browser.get(address)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [address]


def colours(element: WebElement) -> tuple[list[int], list[int]]:
    """What is seen in the left half of an element and right of its middle."""
    with PIL.Image.open(io.BytesIO(element.screenshot_as_png)) as picture:
        seen = np.asarray(picture.convert("RGB"))
    height, width = seen.shape[:2]
    band = seen[height // 5 : height // 3]  # above the handle's grip and the labels
    left, right = band[:, width // 8 : width * 3 // 8], band[:, width * 5 // 8 : width * 6 // 8]
    return [int(value) for value in np.median(left, axis=(0, 1))], [int(v) for v in np.median(right, axis=(0, 1))]


def hidden(before: WebElement) -> float:
    """How much of the picture before is cut away from its right, in percent, as the browser computes it."""
    return float(before.value_of_css_property("clip-path").removeprefix("inset(").split()[1].removesuffix("%"))


def test_the_page_of_a_run_loads_alone_and_the_slider_shows_before_and_after(
    browser: webdriver.Chrome, report: Path
) -> None:
    visit(browser, report)
    assert browser.title == "out: raydenoise denoising"
    loaded = "return [...document.images].map(image => image.complete && image.naturalWidth > 0)"
    assert all(browser.execute_script(loaded))

    compare = browser.find_element(By.CSS_SELECTOR, ".compare")
    slider, before = (compare.find_element(By.CSS_SELECTOR, name) for name in ("input", ".before"))
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", compare)
    red, green = [200, 0, 0], [0, 200, 0]  # before and after, in the left 210 of the 256 pixels shown
    assert (hidden(before), colours(compare)) == (50, (red, green))
    slider.send_keys(Keys.HOME)
    assert (hidden(before), colours(compare)) == (100, (green, green))
    slider.send_keys(Keys.END)
    assert (hidden(before), colours(compare)) == (0, (red, red))
    slider.send_keys(Keys.ARROW_LEFT)
    assert hidden(before) == 1

    quarter = compare.size["width"] // 4
    mouse = ActionChains(browser).move_to_element(compare).click_and_hold()
    mouse.move_by_offset(-quarter, 0).release().perform()
    assert 70 <= hidden(before) <= 80
    assert colours(compare)[1] == green
    assert browser.get_log("browser") == []


def test_a_narrow_screen_needs_no_scrolling_aside(browser: webdriver.Chrome, report: Path, training: Path) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    for folder in (report, training):
        visit(browser, folder)
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_dark_page_has_dark_plots(browser: webdriver.Chrome, report: Path) -> None:
    shown = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        visit(browser, report)
        plot = browser.find_element(By.CSS_SELECTOR, ".plot img")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
        with PIL.Image.open(io.BytesIO(plot.screenshot_as_png)) as picture:
            shown.append(picture.convert("L").getpixel((3, 3)))
    assert shown[0] > 240
    assert shown[1] < 60
