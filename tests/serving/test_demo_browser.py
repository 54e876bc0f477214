"""The pages of the demo in headless Chromium, which `.ci/run` installs; skipped without it."""

import base64
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from jvdm.serving import demo_streams
from jvdm.serving.demo import Demo
from jvdm.serving.limits import Limits
from jvdm.video import read_video
from tests.serving.demo_client import Client, shown

pytest.importorskip("gradio", reason="the controls of the demo are those of gradio")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
Keys = webdriver.Keys
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("chromium and chromium-driver are not installed", allow_module_level=True)

pytestmark = pytest.mark.browser
OTHER = "a small blue box rests"


@pytest.fixture(scope="module")
def demo(pipe, tmp_path_factory):
    made = Demo(pipe, tmp_path_factory.mktemp("demo"), Limits(max_streams=1))
    yield made
    made.close()


@pytest.fixture(scope="module")
def address(demo):
    with shown(demo) as where:
        yield where


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("headless=new", "disable-dev-shm-usage", "window-size=1200,900", "no-sandbox"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


class Page:
    """The page in one tab, by the ids of its elements."""

    def __init__(self, browser, address, rest="/"):
        self.browser, self.tab = browser, browser.current_window_handle
        browser.get(address + rest)
        self.until(lambda: browser.find_elements("id", "start"))
        self.until(lambda: self["start"].is_displayed())

    def __getitem__(self, name):
        """Returns an element, or of a control of Gradio what is typed into."""
        found = self.browser.find_element("id", name)
        return next(iter(found.find_elements("css selector", "input, textarea")), found)

    def text(self, name):
        return self[name].text

    def script(self, code, *given):
        return self.browser.execute_script(code, *given)

    def fill(self, **values):
        for name, value in values.items():
            self[name].send_keys(Keys.CONTROL, "a")
            self[name].send_keys(value)

    def until(self, holds, seconds=60):
        end = time.monotonic() + seconds
        while not (found := holds()):
            assert time.monotonic() < end, (self.text("state"), self.text("error"))
            time.sleep(0.05)
        return found

    def tab_of(self, name):
        tabs = self.browser.find_elements("css selector", "#tabs [role=tab]")
        return next(tab for tab in tabs if tab.text == name)

    def played(self):
        return self.script("return document.getElementById('video').currentTime")

    def colors(self, canvas):
        """Returns how many colours a canvas shows."""
        code = """const {width, height} = arguments[0];
            const data = arguments[0].getContext('2d').getImageData(0, 0, width, height).data;
            return new Set(new Uint32Array(data.buffer)).size"""
        return self.script(code, self[canvas])

    def stream(self):
        """Returns the path of the last stream that the page asked for."""
        code = """return performance.getEntriesByType('resource').map(entry => entry.name)
            .filter(name => name.includes('api/streams/')).at(-1)"""
        return "/api/streams/" + self.script(code).split("/api/streams/")[1][:32]


@pytest.fixture
def page(browser, address):
    browser.get_log("browser")
    opened = Page(browser, address)
    yield opened
    browser.switch_to.window(opened.tab)
    if opened["cancel"].is_enabled():
        opened["cancel"].click()
        opened.until(lambda: not opened["cancel"].is_enabled())


def frames_of(client, path, folder):
    (folder / "film.mp4").write_bytes(client("GET", f"{path}/film"))
    return read_video(folder / "film.mp4").frames.astype(int)


def test_a_video_plays_while_it_is_made(page, browser):
    assert page.text("about").startswith("nano, 64x64, 6 frames a second")
    assert (page["cancel"].is_enabled(), page.text("error")) == (False, "")
    page.fill(seconds="40", seed="1")
    page["start"].click()
    page.until(lambda: page.played() > 0.5)
    assert page.text("state").startswith("Playing")
    before = page.played()
    page.until(lambda: page.played() > before + 1, seconds=30)
    size = page.script("const v = arguments[0]; return [v.videoWidth, v.paused]", page["video"])
    assert size == [64, False]
    assert page.colors("matrix") > 4 and page.colors("attended") > 1
    assert page.text("levels").startswith("Row ") and page.text("density-now") == "Now 100.0 %."
    row = page.text("levels")
    page.until(lambda: page.text("levels") != row)
    page["cancel"].click()
    page.until(lambda: page.text("state").startswith("cancelled"))
    assert page["film"].get_attribute("href").startswith("blob:")
    assert browser.get_log("browser") == []


def test_nothing_comes_from_elsewhere(page, address):
    """The page works where no other machine can be reached."""
    names = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    loaded = page.script(names)
    assert len(loaded) > 20 and all(name.startswith(f"{address}/") for name in loaded)
    forbidden = """const done = arguments[0];
        fetch('http://127.0.0.2:9/').then(() => done('sent'), error => done(error.message));"""
    said = []
    page.script("""window.refused = [];
        document.addEventListener('securitypolicyviolation', it => refused.push(it.blockedURI))""")
    said.append(page.browser.execute_async_script(forbidden))
    assert said != ["sent"] and page.script("return refused") == ["http://127.0.0.2:9/"]
    page.browser.get_log("browser")  # of the refusal


def test_what_is_slower_than_it_plays_says_so(page, demo, monkeypatch):
    made, asked = demo.stream, []

    def slowly(client, settings):
        asked.append(settings)
        stream = made(client, settings)
        session = demo_streams.Session

        class Slow(session):
            def step(self, *commands):
                time.sleep(1.0)
                return session.step(self, *commands)

        monkeypatch.setattr(demo_streams, "Session", Slow)
        return stream

    monkeypatch.setattr(demo, "stream", slowly)
    page.fill(seconds="6", seed="1")
    page["start"].click()
    page.until(lambda: "so it pauses" in page.text("state"))
    speed = float(page.text("state").split("; ")[1].split()[0])
    assert 0 < speed < 6 and "6 are played" in page.text("state")
    page.until(lambda: page["faster"].is_displayed())
    assert page.text("faster") == "Begin again with 4 steps, without guidance: faster"
    page["faster"].click()
    page.until(lambda: len(asked) == 2)
    page.until(lambda: "so it pauses" in page.text("state"))
    assert not page["faster"].is_displayed()
    settings = [(one.get("num_inference_steps"), one.get("guidance_scale")) for one in asked]
    assert settings == [(None, None), (4, 1)] and asked[1]["seed"] == 1


def test_sparse_attention_is_seen(page):
    page.fill(attention=f"draft{Keys.ENTER}", seconds="4", density="0.3")
    page["start"].click()
    page.until(lambda: page.text("state").startswith("done"))
    assert "attention is dense above the noise level" in page.text("notes")
    assert 30 <= float(page.text("density-now").split()[1]) < 90
    assert page.colors("attended") > 2


def test_another_system_is_chosen(page):
    page.fill(seconds="2", system=f"freelong{Keys.ENTER}", prompt=f"a small box rests{Keys.ENTER}")
    page.until(lambda: "it is of one clip" in page.text("error"))
    page.fill(system=f"wave{Keys.ENTER}", prompt=f"a small box rests{Keys.ENTER}")
    page.until(lambda: page.text("state").startswith("done: 12 frames"))
    assert "a wave of lag 4" not in page.text("notes") and page.text("error") == ""
    page.fill(system=f"plain{Keys.ENTER}", prompt=f"a small box rests{Keys.ENTER}")
    page.until(lambda: "a wave of lag 4" in page.text("notes"))
    page.until(lambda: page.text("state").startswith("done: 12 frames"))


def test_the_prompt_is_changed_while_it_plays(page, address, tmp_path):
    page.fill(seconds="15", seed="2")
    page["start"].click()
    page.until(lambda: page.played() > 0.5)
    path = page.stream()
    page.fill(prompt="a small blue xylophone rests")
    page["change"].click()
    page.until(lambda: "xylophone" in page.text("notes"))
    page.until(lambda: "xylophone" in page.text("told"))
    page.fill(prompt=OTHER)
    page["change"].click()
    page.until(lambda: f": {OTHER}" in page.text("told"))
    frame = int(page.text("told").splitlines()[-1].split()[2])
    assert page.text("told").endswith(f"from frame {frame} ({frame / 6:.1f} s): {OTHER}")

    client = Client(address, 2)
    told = client.until(path, "done")
    asked = {"seed": 2, "duration": "15s", "prompt": told["told"][0]["prompt"]}
    plain = client.start(**asked)
    client.until(plain, "done")
    before, after = (frames_of(client, one, tmp_path) for one in (plain, path))
    assert before.shape == after.shape == (90, 64, 64, 3)
    first = told["told"][1]["frame"]
    np.testing.assert_array_equal(before[:first], after[:first])
    changed = zip(before[frame:], after[frame:], strict=True)
    assert all(abs(old - new).max() > 8 for old, new in changed)


def test_cancel_lets_the_next_one_begin(page, browser, address):
    page.fill(seconds="40")
    page["start"].click()
    page.until(lambda: page.played() > 0)
    browser.switch_to.new_window("tab")
    second = Page(browser, address)
    second.fill(seconds="3")
    second["start"].click()
    second.until(lambda: second.text("state") == "Waiting; 1 came before.")
    time.sleep(1.0)
    assert second.played() == 0
    browser.switch_to.window(page.tab)
    page["cancel"].click()
    page.until(lambda: page.text("state").startswith("cancelled"))
    browser.switch_to.window(second.tab)
    second.until(lambda: second.text("state") == "done: 18 frames, 3.0 s")
    second.until(lambda: second.played() > 1)
    browser.close()


def test_a_picture_is_moved_in(page, address, tmp_path):
    Image.new("RGB", (64, 64), (210, 40, 40)).save(tmp_path / "red.png")
    page["image"].send_keys(str(tmp_path / "red.png"))
    page.until(lambda: page["shown"].is_displayed())
    page.fill(seconds="2")
    page["start"].click()
    page.until(lambda: page.text("state").startswith("done"))
    first = frames_of(Client(address), page.stream(), tmp_path)[0]
    np.testing.assert_allclose(first.mean((0, 1)), [210, 40, 40], atol=40)

    drop = """const moved = new DataTransfer();
        moved.items.add(new File([arguments[1]], '../../x.png', {type: 'image/png'}));
        arguments[0].dispatchEvent(new DragEvent('drop', {dataTransfer: moved, bubbles: true}))"""
    page.script(drop, page.browser.find_element("id", "drop"), "this is no picture")
    text = base64.b64encode(b"this is no picture").decode()
    page.until(lambda: page.script("return arguments[0].src", page["shown"]).endswith(text))
    page["start"].click()
    page.until(lambda: "image is none that is read here" in page.text("error"))


def test_the_gallery_shows_its_videos(page, browser):
    page.tab_of("Gallery").click()
    page.until(lambda: page["make"].is_displayed())
    boxes = {
        label.text: label.find_element("tag name", "input")
        for label in page.browser.find_elements("css selector", "#systems label")
    }
    assert boxes["plain"].is_selected() and boxes["wave"].is_selected()
    for name, box in boxes.items():
        if box.is_selected() != (name in ("plain", "wave")):
            box.click()
    page["make"].click()
    cards = page.until(
        lambda: (
            [
                card
                for card in page["cards"].find_elements("class name", "card")
                if card.find_elements("tag name", "video")
            ]
            * (not page["stop"].is_enabled())
        )
    )
    assert [card.get_attribute("data-system") for card in cards] == ["plain", "wave"]
    for card, rows in zip(cards, (8, 12), strict=True):
        video = card.find_element("tag name", "video")
        page.script("arguments[0].scrollIntoView()", video)  # it plays where it is seen
        page.until(lambda video=video: page.script("return arguments[0].currentTime", video) > 0)
        assert page.script("return arguments[0].duration", video) == pytest.approx(1.5, abs=0.01)
        assert "denoise" in card.text and "100.0 % of the attention" in card.text
        height = "return arguments[0].naturalHeight"
        assert page.script(height, card.find_element("class name", "matrix")) == (rows + 1) * 8
        assert page.script(height, card.find_element("class name", "strip")) >= 64
    assert browser.get_log("browser") == []


def test_with_a_key_the_page_needs_it(browser, demo):
    key = "a key of enough characters & more"
    with shown(demo, (key,)) as address:
        page = Page(browser, address, "/?key=a%20key%20of%20enough%20characters%20%26%20more")
        page.fill(seconds="1")
        page["start"].click()
        page.until(lambda: page.text("state").startswith("done"))
        browser.get(address + "/")
        page.until(lambda: browser.find_elements("id", "start"))
        page.until(lambda: "Authorization: Bearer KEY" in page.text("refused"))
        assert page.text("about") == ""
        assert page["start"].is_displayed() is False
