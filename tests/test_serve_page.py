"""`gpuzoo serve`: the page on which a person draws, in a real Chromium."""

import base64

import numpy as np
import serving
from serving import (
    TOKEN,
    Service,
    expected,
    images,
    png,
    write_artefact,
)

from gpuzoo.data.images import read_image

serving.skip_without_extra()


def open_page(browser, service):
    """The page, and what went wrong or elsewhere on it."""
    page, problems = browser.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: (
            problems.append(message.text) if message.type == "error" else None
        ),
    )
    home = f"http://{service.host}:{service.port}/"
    page.on(
        "request",
        lambda one: (
            None
            if one.url.startswith((home, "blob:", "data:"))
            else problems.append(one.url)
        ),
    )
    page.goto(home)
    return page, problems


def draw(page, *points):
    box = page.locator("#canvas").bounding_box()
    for number, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x, box["y"] + y, steps=4)
        if not number:
            page.mouse.down()
    page.mouse.up()


def test_a_person_draws_and_sees_the_answer(browser, service, matrix, tmp_path):
    page, problems = open_page(browser, service)
    assert page.title() == "linear" and not page.locator("#label").inner_text()
    draw(page, (140, 40), (140, 240))
    page.wait_for_selector("#label:not(:empty)")
    sent = page.evaluate("centred().toDataURL()").partition(",")[2]
    pixels = read_image(base64.b64decode(sent), (28, 28), 1).pixels
    wanted = expected(matrix, pixels[None])[0]
    assert page.locator("#label").inner_text() == str(wanted.argmax())
    assert page.locator("#sure").inner_text() == f"{100 * wanted.max():.1f} %"
    # The drawing is in the middle: 20 of 28 pixels high.
    light = np.argwhere(pixels[..., 0] > 100)
    assert light.min(0)[0] in (3, 4, 5) and light.max(0)[0] in (22, 23, 24)
    assert len(page.locator("#bars progress").all()) == 5
    page.click("#clear")
    assert not page.locator("#label").inner_text()
    # A file, and one that is no image.
    (tmp_path / "picture.png").write_bytes(png(images(1)[0]))
    page.set_input_files("#file", tmp_path / "picture.png")
    page.wait_for_selector("#label:not(:empty)")
    assert page.locator("#label").inner_text() == str(
        expected(matrix, images(1))[0].argmax()
    )
    assert problems == []
    # A dark stroke on light paper: said, and exchanged if the person wants it.
    paper = np.full((56, 56), 230, np.uint8)
    paper[10:46, 24:30] = 20
    (tmp_path / "paper.png").write_bytes(png(paper))
    page.set_input_files("#file", tmp_path / "paper.png")
    page.wait_for_selector("#hint:not(:empty)")
    assert page.evaluate("document.getElementById('file').files[0].name") == "paper.png"
    assert "light on dark" in page.locator("#hint").inner_text()
    page.check("#invert")
    dark = read_image(png(255 - paper), (28, 28), 1).pixels
    sure = f"{100 * expected(matrix, dark[None])[0].max():.1f} %"
    page.wait_for_selector(f"#sure:text-is('{sure}')")
    assert not page.locator("#hint").inner_text()
    # A wide picture is stretched, as the service reads it.
    wide = np.zeros((20, 80, 4), np.uint8)
    wide[:, 40:] = 255, 0, 0, 255
    (tmp_path / "wide.png").write_bytes(png(wide))
    page.set_input_files("#file", tmp_path / "wide.png")
    seen = (
        "[70, 210].map(x => [10, 270].map(y => pen.getImageData(x, y, 1, 1).data[1]))"
    )
    for _ in range(200):  # drawn when it has been decoded
        page.wait_for_timeout(50)
        shown = np.array(page.evaluate(seen))
        if shown[1, 0] > 150:
            break
    assert shown[1, 0] > 150
    assert (shown[0] < 5).all() and (abs(shown[1] - shown[1, 0]) < 5).all()
    page.uncheck("#invert")
    (tmp_path / "broken.png").write_bytes(b"no image")
    page.set_input_files("#file", tmp_path / "broken.png")
    page.wait_for_selector("#problem:not(:empty)")
    assert "image" in page.locator("#problem").inner_text()
    assert page.goto(page.url + "docs").ok and "POST /predict" in page.inner_text(
        "body"
    )
    page.close()


def test_names_of_classes_are_not_executed(browser, place):
    names = [
        "</script><script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "ABOUT",
        "NONCE",
        "\u2028",
    ]
    write_artefact(place / "hostile", classes=names, side=8)
    (place / "hostile-log").mkdir()
    service = Service(place / "hostile", place / "hostile-log", "--rate", "0")
    try:
        page, problems = open_page(browser, service)
        draw(page, (100, 100), (150, 180))
        page.wait_for_selector("#label:not(:empty)")
        assert page.locator("#label").text_content() in names
        assert set(page.locator("#bars span").all_text_contents()) >= set(names)
        page.goto(page.url + "docs")
        assert problems == []
        page.close()
    finally:
        service.stop()


def test_the_page_asks_for_the_token(browser, closed):
    page, _ = open_page(browser, closed)
    draw(page, (140, 40), (140, 240))
    page.wait_for_selector("#problem:not(:empty)")
    assert "token" in page.locator("#problem").inner_text()
    page.fill("#token", TOKEN)
    draw(page, (140, 40), (140, 240))
    page.wait_for_selector("#label:not(:empty)")
    page.close()
