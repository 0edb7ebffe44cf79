"""The page in a real browser: a caption becomes pictures, which are downloaded and made again."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.training import environment, only_run, run_module, run_task, train_tiny

webdriver = pytest.importorskip("selenium.webdriver")
pytestmark = pytest.mark.skipif(
    not shutil.which("chromium") or not shutil.which("chromedriver"),
    reason="there is no chromium here (Debian: chromium, chromium-driver)",
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1100,1000",
)


LAST = ".row:last-child figure:last-child a"


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints."""
    runs = tmp_path_factory.mktemp("runs")
    train_tiny(shards, runs, "engine.images=16", "engine.checkpoint.every_images=8")
    return only_run(runs)


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    """The address that the command prints; Ctrl-C ends it with code 0."""
    command = [sys.executable, "-m", "t2i_hpc.serve", f"run={run}", "port=0", "device=cpu"]
    server = subprocess.Popen(
        [*command, "threads=1", "most_images=16"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert server.stdout is not None
    said = [server.stdout.readline() for _ in range(4)]
    found = re.fullmatch(r"open (http://127\.0\.0\.1:\d+/\?token=\S{22})\n", said[1])
    assert found, (said, server.stderr)
    assert said[0] == f"{run.name} after 16 training images, on cpu\n"
    assert said[2].startswith("from another machine first: ssh -N -L ")
    yield found[1]
    server.send_signal(2)
    assert (server.wait(30), server.stderr and server.stderr.read()) == (0, "")


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    driver.implicitly_wait(30)
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def wait_until(browser: Any, script: str) -> Any:
    """Return a JavaScript expression's value as soon as it is true."""
    loop = f"const done = arguments[0], look = () => {{ const v = {script}; v ? done(v) : "
    return browser.execute_async_script(f"{loop}setTimeout(look, 50); }}; look();")


def downloaded(browser: Any, downloads: Path, link: str, name: str) -> bytes:
    """Click a link; return what the browser saved, which has its name when it is whole."""
    browser.find_element("css selector", link).click()
    end = time.monotonic() + 60
    while not (downloads / name).exists():
        assert time.monotonic() < end, sorted(downloads.iterdir())
        time.sleep(0.05)
    return (downloads / name).read_bytes()


def pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_caption_becomes_pictures_that_a_command_makes_again(
    browser: Any, address: str, downloads: Path, run: Path, tmp_path: Path
) -> None:
    browser.get(address)
    assert "token" not in browser.current_url
    box = browser.find_element("id", "caption")
    wait_until(browser, "document.querySelectorAll('#checkpoint option').length === 3")
    box.send_keys("a red circle")
    browser.find_element("css selector", "#words button:nth-child(2)").click()
    box.send_keys("blue")  # between the braces that the click made
    assert box.get_attribute("value") == "a {red,blue} circle"
    browser.execute_script("document.getElementById('columns').value = 2")
    browser.find_element("id", "go").click()
    shown = "document.querySelectorAll('figure .picture')"
    wait_until(browser, f"{shown}.length === 4 && [...{shown}].every((p) => p.naturalWidth === 64)")
    captions = browser.execute_script(
        "return [...document.querySelectorAll('.caption')].map((p) => p.textContent)"
    )
    assert captions == ["a red circle", "a blue circle"]

    one = downloaded(browser, downloads, LAST, "a_blue_circle-1-1.png")
    wait_until(browser, "document.getElementById('all').href")
    both = downloaded(browser, downloads, "#all", "images.png")
    record = json.loads(downloaded(browser, downloads, "#record", "images.json"))
    asked = 'captions=["a {red,blue} circle"]'
    again = run_task("generate", f"run={run}", asked, "columns=2", f"output={tmp_path}/again")
    assert again.returncode == 0, again.stderr
    told = json.loads((tmp_path / "again/pictures.json").read_text())
    hashes = [image["sha256"] for row in record["rows"] for image in row["images"]]
    assert hashes == [picture["sha256"] for picture in told["pictures"]]
    assert pixels(one).shape == (64, 64, 3)
    assert (pixels(both)[66:, 66:] == pixels(one)).all()
    assert Image.open(io.BytesIO(one)).info["caption"] == "a blue circle"
    assert asked.replace('"', '\\"') in record["commands"][0].replace('"', '\\"')


def test_masks_lie_over_the_pictures(browser: Any) -> None:
    """Of the last block, at the resolution that it works at."""
    browser.execute_script(
        "const block = document.getElementById('block'); block.value = block.max;"
        "block.dispatchEvent(new Event('input'))"
    )
    over = "document.querySelectorAll('figure .over:not([hidden])')"
    assert wait_until(browser, f"{over}.length === 4 && {over}[0].naturalWidth") == 64


def test_one_caption_over_the_checkpoints(browser: Any) -> None:
    browser.execute_script("document.getElementById('checkpoint').value = 'all'")
    browser.execute_script("document.getElementById('caption').value = 'one square'")
    browser.find_element("id", "go").click()
    small = "[...document.querySelectorAll('.caption small')].map((each) => each.textContent)"
    wait_until(browser, f"{small}.length === 2")
    assert browser.execute_script(f"return {small}") == ["after 8 images", "after 16 images"]


def test_a_refusal_is_shown(browser: Any) -> None:
    browser.execute_script("document.getElementById('caption').value = 'qwertz'")
    browser.find_element("id", "go").click()
    said = wait_until(
        browser,
        "document.querySelector('#status.wrong') && document.getElementById('status').textContent",
    )
    assert "no word of the caption 'qwertz' is in the run's vocabulary" in said


def test_the_browser_has_nothing_to_complain_of(browser: Any) -> None:
    """No script error, nothing that the content policy blocks; answers that refuse are errors."""
    logged = [each["message"] for each in browser.get_log("browser")]
    assert [text for text in logged if "400 (Bad Request)" not in text] == []


def test_a_script_asks_with_the_token_in_a_header(address: str) -> None:
    base, _, token = address.partition("/?token=")
    asked = urllib.request.Request(
        f"{base}/api/images",
        json.dumps({"captions": ["a red circle"], "columns": 17}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=60)
    assert refused.value.code == 400
    assert "17 images, and 16 are allowed" in json.loads(refused.value.read())["error"]


def test_a_port_that_is_taken_is_said_before_loading(address: str, run: Path) -> None:
    port = address.partition("/?")[0].rpartition(":")[2]
    done = run_module("serve", f"run={run}", f"port={port}")
    assert done.returncode == 2
    assert "port=0 takes any free one" in done.stderr
