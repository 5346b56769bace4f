"""A headless Chromium, of Debian's packages chromium and chromium-driver."""

import contextlib
import pathlib
import shutil

import pytest


@contextlib.contextmanager
def opened(page: pathlib.Path, *, width=1200, height=900, dark=False):
  """Yields selenium's driver with a file open; fails on an error in its console.

  Skips the test where the browser, or selenium, is missing.
  """
  reason = "needs selenium (of [test]), and Debian's chromium and chromium-driver"
  webdriver = pytest.importorskip("selenium.webdriver", reason=reason)
  programs = shutil.which("chromium"), shutil.which("chromedriver")
  if not all(programs):
    pytest.skip(reason)
  options = webdriver.ChromeOptions()
  options.binary_location = programs[0]
  for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
    options.add_argument(f"--{argument}")
  options.add_argument(f"--window-size={width},{height}")
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  service = webdriver.ChromeService(programs[1])
  driver = webdriver.Chrome(options=options, service=service)
  try:
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    driver.get(page.as_uri())
    yield driver
    severe = [x for x in driver.get_log("browser") if x["level"] == "SEVERE"]
    assert severe == []
  finally:
    driver.quit()
