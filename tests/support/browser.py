"""Debian's Chromium without a window, driven over WebDriver, for tests of the page."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ALONE = (  # it calls nobody by itself
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-sync", "--disable-background-networking", "--disable-component-update"),
    "--disable-dev-shm-usage",
)


def missing() -> str | None:
    """Why there can be no browser, if so."""
    if CHROMIUM is None or DRIVER is None:
        return "chromium and chromedriver are not installed"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    return None


IN_CHROMIUM = pytest.mark.skipif(missing() is not None, reason=f"no browser: {missing()}")
SOON = "test_a_question_is_answered"  # the one that runs also where slow tests do not


@contextmanager
def browser(profile: Path, width: int = 1280, height: int = 860) -> Iterator[Any]:
    """A new Chromium with an empty profile; its log has every network request."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (*ALONE, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(executable_path=str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """Wait for a condition; return what it gives once it is true.

    Raises:
        AssertionError: it never was.
    """
    from selenium.common.exceptions import StaleElementReferenceException

    end = time.monotonic() + seconds
    while True:
        try:
            if value := condition():
                return value
        except StaleElementReferenceException:
            pass
        if time.monotonic() > end:
            raise AssertionError(f"after {seconds:g} seconds not so: {what}")
        time.sleep(0.03)


def appear(driver: Any, width: int, height: int, theme: str) -> None:
    """Show the page as on a screen of this size, of a system with this theme."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = [{"name": "prefers-color-scheme", "value": theme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
