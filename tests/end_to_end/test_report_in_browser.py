"""The report in headless Chromium, without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from automl.report.page import write_report
from tests.automl.report.examples import compare, finished, rows

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytest.importorskip("selenium", reason="selenium is not installed (extra dev)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
MISSING = [name for name, found in (("chromium", CHROMIUM), ("chromedriver", DRIVER)) if not found]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def load(browser: Chrome, page: Path) -> str:
    """Open the page and wait until it has drawn its charts, or given up."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(page.as_uri())
    return WebDriverWait(browser, 60).until(
        lambda driver: driver.execute_script("return document.body.dataset.charts")
    )


def requests(browser: Chrome) -> list[str]:
    """Every address asked for since the start, without those of the browser's own start page."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [
        each["request"]["url"] for each in sent if not each["documentURL"].startswith("chrome:")
    ]


def drawn(browser: Chrome) -> dict[str, Any]:
    """The data that plotly has drawn, by chart."""
    return browser.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('.chart')]"
        ".map(chart => [chart.id, {data: JSON.parse(JSON.stringify(chart.data))}]))"
    )


def test_the_report_is_drawn_offline_from_the_values_of_the_csv(
    tmp_path: Path, browser: Chrome
) -> None:
    study = finished(tmp_path, trials=32, promoted=True)
    page = write_report(study)
    study.close()

    assert load(browser, page) == "drawn"

    assert page.stat().st_size < 5_000_000
    assert [url for url in requests(browser) if not url.startswith("data:")] == [page.as_uri()]
    assert browser.get_log("browser") == []
    figures = drawn(browser)
    assert set(figures) == {"history", "learning_curves", "parallel", "importances"}
    assert compare(figures, rows(study.directory), "val/epe") > 100
    for name in figures:
        marks = "path.point, .point path, .lines path"
        count = f"return document.querySelectorAll('#{name} svg :is({marks})').length"
        assert browser.execute_script(count) > 0, f"{name} is empty"
    broken = "return [...document.images].filter(image => !image.naturalWidth).length"
    assert browser.execute_script(broken) == 0


def test_the_page_fits_a_phone(tmp_path: Path, browser: Chrome) -> None:
    study = finished(tmp_path, trials=4, promoted=True)
    page = write_report(study)
    study.close()
    size = {"width": 360, "height": 780, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    assert load(browser, page) == "drawn"

    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360


def test_the_button_copies_the_best_spec(tmp_path: Path, browser: Chrome) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    study = finished(tmp_path, trials=4)
    page = write_report(study)
    study.close()
    load(browser, page)

    browser.find_element(By.CSS_SELECTOR, "[data-copies]").send_keys(Keys.ENTER)

    said = browser.find_element(By.ID, "copied")
    WebDriverWait(browser, 30).until(lambda _: said.text)
    text = browser.execute_script("return document.getElementById('spec').textContent")
    assert text == (study.directory / "best_spec.yaml").read_text("utf-8")
