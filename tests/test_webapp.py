"""The web page: what it answers, what it refuses, and that it works in a browser."""

import io
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from msun_fastai.data.images import load_pixels
from msun_fastai.errors import ImageError
from msun_fastai.explain import Explainer, heated
from msun_fastai.models.saving import load_model_folder
from msun_fastai.predict import Predictor

pytest.importorskip("starlette", reason="starlette is not installed")
from starlette.testclient import TestClient

from msun_fastai.webapp import MOST_BYTES, make_app

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def picture(shapes, width, height, kind="PNG"):
    """An image file of this size."""
    held = io.BytesIO()
    pixels = load_pixels(shapes.train[0].image)
    Image.fromarray(pixels).resize((width, height)).save(held, kind)
    return held.getvalue()


def huge_header(width=20_000, height=20_000):
    """A PNG that says it is enormous, in a hundred bytes."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def saved(saved_run):
    return load_model_folder(saved_run)


@pytest.fixture(scope="module")
def client(saved):
    return TestClient(make_app(saved, "<b>shapes</b>"), base_url="http://127.0.0.1:7860")


@pytest.mark.parametrize(("width", "height"), [(20, 30), (40, 33), (200, 170)])
def test_it_answers_as_predict_does(client, saved, shapes, width, height):
    data = picture(shapes, width, height)
    found = client.post("/explain", content=data).json()
    expected = Predictor(saved).predict_one(data)
    assert (found["width"], found["height"]) == (width, height)
    assert found["native_size"] == found["size"] == min(width, height)
    assert found["scale"] == expected.scale
    assert [one["label"] for one in found["top"]] == [label for label, _ in expected.top]
    assert found["top"][0]["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert found["macs"] == Explainer(saved).macs[found["scale"]]
    assert found["macs"] <= found["canonical_macs"] == Explainer(saved).macs[64]
    assert found["seen"].startswith("data:image/png;base64,")
    assert found["looked"] != found["seen"]


def test_rescaled_it_goes_where_images_of_that_size_go(client, saved, shapes):
    data = picture(shapes, 240, 120)
    scales = {}
    for size in (8, 16, 24, 25, 32, 48, 49, 64, 120):
        found = client.post(f"/explain?size={size}", content=data).json()
        assert (found["size"], found["native_size"]) == (size, 120)
        assert found["scale"] == saved.model.route(size)
        scales[size] = found["top"][0]["probability"]
    own = client.post("/explain", content=data).json()
    assert scales[120] == own["top"][0]["probability"]
    # the same subnet sees that something was lost
    assert found["scale"] == saved.model.route(49) == 64
    assert scales[49] != pytest.approx(scales[120], abs=1e-6)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"no image at all", "not an image"),
        (huge_header(), "more than the 89478485 pixels"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 100, "cannot be opened"),
    ],
)
def test_bad_uploads_get_a_message(client, data, says):
    reply = client.post("/explain", content=data)
    assert reply.status_code == 400
    assert re.search(says, reply.json()["error"]), reply.json()
    assert "\n" not in reply.json()["error"]


def test_uploads_are_limited(client):
    reply = client.post("/explain", content=bytes(MOST_BYTES + 1))
    assert (reply.status_code, "larger than 20 MiB" in reply.json()["error"]) == (413, True)


@pytest.mark.parametrize("size", ["0", "-3", "1.5", "9999999", "x", ""])
def test_sizes_are_checked(client, shapes, size):
    reply = client.post(f"/explain?size={size}", content=picture(shapes, 40, 40))
    assert (reply.status_code, "a whole number" in reply.json()["error"]) == (422, True)


def test_other_sites_cannot_use_it(client):
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "&lt;b&gt;shapes&lt;/b&gt;" in page.text
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert client.get("/explain").status_code == 405
    assert client.get("/../../etc/passwd").status_code == 404


def test_the_map_is_on_the_picture():
    pixels = np.full((8, 8, 3), 100, np.uint8)
    cam = torch.zeros(2, 2)
    cam[0, 0] = 3.0
    found = heated(pixels, cam).astype(int)
    assert (found[-1, -1] == 100).all()
    assert abs(found[0, 0] - 100).sum() > 50
    assert (heated(pixels, torch.zeros(2, 2)) == 100).all()


def test_an_image_that_cannot_be_read_is_an_image_error(saved):
    with pytest.raises(ImageError):
        Explainer(saved).explain(b"nothing")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_in_a_browser(saved_run, shapes, tmp_path):
    """Small, middle and large image, the slider, a broken file, a header of 20,000 x 20,000."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    words = [sys.executable, "-m", "msun_fastai", "app", "--model", str(saved_run)]
    words += ["--port", str(port), "--device", "cpu"]
    files = {"small": (20, 24), "middle": (40, 36), "large": (300, 200)}
    for name, size in files.items():
        (tmp_path / f"{name}.png").write_bytes(picture(shapes, *size))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "huge.png").write_bytes(huge_header())
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert f"http://127.0.0.1:{port}" in server.stdout.readline()
        with api.sync_playwright() as playwright:
            options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
            browser = playwright.chromium.launch(**options)
            page = browser.new_page(viewport={"width": 1000, "height": 900})
            complaints = []
            page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            _open(page, f"http://127.0.0.1:{port}/")
            shots = Path(tmp_path / "shots")
            shots.mkdir()
            for name, scale in (("small", "16"), ("middle", "32"), ("large", "64")):
                page.set_input_files("#file", tmp_path / f"{name}.png")
                api.expect(page.locator("#native")).to_have_text(f"{min(files[name])} pixels")
                assert page.text_content("#scale") == scale
                assert page.locator("#top li").count() == 5
                page.screenshot(path=shots / f"{name}.png", full_page=True)
            page.evaluate(
                "s => {const e = document.getElementById('size'); e.value = s;"
                "e.dispatchEvent(new Event('input'))}",
                18,
            )
            api.expect(page.locator("#scale")).to_have_text("16")
            assert "rescaled to 18 pixels" in page.text_content("#asked")
            page.screenshot(path=shots / "rescaled.png", full_page=True)
            assert complaints == []
            for name, says in (
                ("broken", "not an image"),
                ("huge", "more than the 89478485 pixels"),
            ):
                page.set_input_files("#file", tmp_path / f"{name}.png")
                api.expect(page.locator("#error")).to_contain_text(says)
                assert page.locator("#found").is_hidden()
                page.screenshot(path=shots / f"{name}.png")
            browser.close()
    finally:
        server.terminate()
        server.wait(timeout=20)


def _open(page, address):
    for _ in range(100):
        try:
            page.goto(address)
            return
        except Exception:  # it has said its address before it listens
            time.sleep(0.1)
    page.goto(address)
