"""Pages in a real browser: they load without a complaint; nodes are found, folded and hovered, by pointer and by keyboard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browser as chromium
import pytest
import test_page
import torch
from test_diff import Long
from torch import nn

from irtool.analysis.diff.diff import diff
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.tracing.trace import trace
from irtool.workflows.folders.run_folder import write_run_page

pytestmark = pytest.mark.skipif(bool(chromium.why_not()), reason=chromium.why_not())
graphs, folder = test_page.graphs, test_page.folder
PHONE, DESKTOP = (360, 740), (1280, 900)
Open = Callable[..., "Page"]


class Page:
    """A page that is open."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def run(self, script: str) -> Any:
        """The value of a script, once what it set off is drawn."""
        value = self.driver.execute_script(script)
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 0)));"
        )
        return value

    def text(self, selector: str) -> str:
        return str(self.run(f"return [...document.querySelectorAll({selector!r})].map(e => e.textContent).join('|')"))

    def keys(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()
        self.run("")

    def boxes(self) -> int:
        return int(self.run("return irtoolPage.explorer.count"))

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if "favicon" not in entry["message"]]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium.browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def opened(driver: Any) -> Open:
    def open_page(path: Path, size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> Page:
        phone = size == PHONE
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": phone}
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        for kind in ("browser", "performance"):
            driver.get_log(kind)  # what went before is of no interest
        driver.get(path.as_uri())
        page = Page(driver)
        assert page.run("return document.documentElement.dataset.ready") == "yes"
        return page

    return open_page


def test_a_run_page_loads_in_full(folder: Path, opened: Open) -> None:
    page = opened(folder / "report.html")
    assert page.text("h1") == "a small VGG"
    assert page.text("main h2").split("|") == [
        "The graph, before and after", "Channels kept in each layer", "What it costs, before and after", "The chain of equality", "Training", "Sensitivity of layers",
        "How it was made",
    ]  # fmt: skip
    assert "is a graph output (at output)" in page.text("#channels td")
    assert page.run("return document.querySelectorAll('.chart polyline').length") == 4
    assert page.run("return document.querySelectorAll('.graph[data-side=before] .box').length") > 5
    sent = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    requests = [message["params"] for message in sent if message["method"] == "Network.requestWillBeSent"]
    own = [request["request"]["url"] for request in requests if request["documentURL"].startswith("file:")]  # not the browser's first tab
    assert own
    assert {url.partition(":")[0] for url in own} <= {"file", "data"}
    assert page.complaints() == []


def test_a_node_is_found_folded_and_hovered(folder: Path, opened: Open) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    page = opened(folder / "report.html")
    page.run("document.querySelector('.explorer').scrollIntoView()")
    before = page.boxes()
    page.driver.find_element(By.ID, "find").send_keys("conv features.4")
    assert page.text("#found li").startswith("Conv features.4")
    page.run("document.querySelector('#found li').dispatchEvent(new PointerEvent('pointerdown', {bubbles: true}))")
    assert page.text(".details .name") == "features.4"
    assert "channels" in page.text(".details .differs th")
    box = page.driver.find_element(By.CSS_SELECTOR, ".graph[data-side=after] .box.chosen .body")
    ActionChains(page.driver).move_to_element(box).perform()
    assert page.run("return !document.querySelector('.tip').hidden")
    assert page.text(".tip .name") == "features.4"
    assert "1×" in page.text(".tip td")
    page.run("document.querySelector('.details .crumbs button').click()")  # folds `features`
    assert page.boxes() < before
    assert "features" in page.text(".graph[data-side=after] .module .title")
    module = page.driver.find_element(By.CSS_SELECTOR, ".graph[data-side=after] .module .body")
    ActionChains(page.driver).move_to_element(module).click().perform()
    page.run("")
    assert page.boxes() == before
    assert page.complaints() == []


def test_all_of_it_by_keyboard(folder: Path, opened: Open) -> None:
    from selenium.webdriver.common.keys import Keys

    page = opened(folder / "report.html")
    page.run("document.querySelector('.graph[data-side=before]').focus()")
    assert page.text(".details h4") == "Input"
    page.keys(Keys.ARROW_DOWN)
    assert page.text(".details .name") == "features.0"
    assert page.text(".tip .name") == "features.0"
    before = page.boxes()
    page.keys(Keys.BACKSPACE)
    assert page.boxes() < before
    assert page.text(".details h4") == "Module"
    page.keys(Keys.ENTER)
    assert page.boxes() == before
    page.keys("/")
    page.keys("classifier", Keys.ENTER)
    assert page.text(".details .name") == "classifier"
    assert page.run("return document.activeElement.classList.contains('graph')")
    scale = page.run("return irtoolPage.explorer.camera.k")
    page.keys("+")
    assert page.run("return irtoolPage.explorer.camera.k") > scale
    assert page.run("return document.querySelector('.graph[data-side=before]').getAttribute('aria-activedescendant')")
    assert page.complaints() == []


def test_a_drag_moves_both_sides(folder: Path, opened: Open) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    page = opened(folder / "report.html")
    page.run("document.querySelector('.explorer').scrollIntoView()")
    at = "return [...document.querySelectorAll('.graph > g')].map(g => g.getAttribute('transform'))"
    before = page.run(at)
    svg = page.driver.find_element(By.CSS_SELECTOR, ".graph[data-side=after]")
    ActionChains(page.driver).move_to_element_with_offset(svg, -150, 0).click_and_hold().move_by_offset(0, -60).release().perform()
    after = page.run(at)
    assert before[0] == before[1]
    assert after[0] == after[1] != before[0]


def test_a_phone_shows_one_side_and_never_scrolls_sideways(folder: Path, opened: Open) -> None:
    page = opened(folder / "report.html", PHONE)
    width = "return [document.documentElement.scrollWidth, window.innerWidth]"
    assert page.run(width) == [360, 360]
    shown = "return [...document.querySelectorAll('.panel')].filter(p => p.clientWidth > 0).map(p => p.dataset.side)"
    assert page.run(shown) == ["after"]
    page.run("document.querySelector('[data-show=before]').click()")
    assert page.run(shown) == ["before"]
    assert page.run("return document.querySelectorAll('.graph[data-side=before] .box').length") > 3
    small = "return [...document.querySelectorAll('button')].filter(b => b.offsetParent && b.offsetHeight < 24).length"
    assert page.run(small) == 0
    assert page.complaints() == []


def luminance(color: str) -> float:
    red, green, blue = (int(part) / 255 for part in color.removeprefix("rgb(").rstrip(")").split(",")[:3])
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_light_and_dark(folder: Path, opened: Open, dark: bool) -> None:
    page = opened(folder / "report.html", dark=dark)
    ground = luminance(page.run("return getComputedStyle(document.documentElement).backgroundColor"))
    assert (ground < 0.05) == dark
    for selector in ("h1", ".lead", ".delta", ".tile .old", "td", ".holds", ".muted"):
        ink = luminance(page.run(f"return getComputedStyle(document.querySelector({selector!r})).color"))
        high, low = max(ink, ground), min(ink, ground)
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector  # WCAG 2.2, 1.4.3
    page.run("document.querySelector('.theme').click()")
    chosen = page.run("return document.documentElement.dataset.theme")
    assert chosen == "light"
    assert luminance(page.run("return getComputedStyle(document.documentElement).backgroundColor")) > 0.8
    page.run("document.querySelector('.theme').click(); document.querySelector('.theme').click()")
    assert page.run("return document.documentElement.dataset.theme") is None


@pytest.fixture(scope="module")
def long() -> tuple[FxGraph, FxGraph]:
    x = torch.zeros(1, 4, 2, 2)
    return trace(Long(), x), trace(Long(extra=500), x)


def test_two_thousand_nodes_are_folded_at_first_and_can_all_be_shown(long: tuple[FxGraph, FxGraph], tmp_path: Path, opened: Open) -> None:
    path = tmp_path / "long.html"
    path.write_text(diff(*long).to_html())
    page = opened(path)
    assert page.boxes() < 130
    page.run("irtoolPage.explorer.query.value = 'added'; irtoolPage.explorer.search(); irtoolPage.explorer.take(0)")
    assert "sigmoid" in page.text(".details .name")
    page.run("[...document.querySelectorAll('.toolbar button')].find(b => b.textContent === 'Unfold all').click()")
    assert page.boxes() == 2003
    assert page.run("return document.querySelectorAll('.graph[data-side=after] .box').length") < 60  # only those in sight are drawn
    page.run("irtoolPage.explorer.fit(true); irtoolPage.explorer.draw()")
    assert page.run("return document.querySelectorAll('.graph[data-side=after] .box').length") > 1500
    assert page.complaints() == []


def test_names_of_models_are_shown_as_they_are(tmp_path: Path, opened: Open) -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()).eval(), torch.zeros(1, 3, 4, 4))
    found = diff(graph, graph)
    for node in found.picture["nodes"]:
        node["label"] = test_page.EVIL
    path = tmp_path / "evil.html"
    path.write_text(found.to_html(test_page.EVIL, "b"))
    page = opened(path)
    assert page.run("return document.title").startswith("</script>")
    page.run("document.querySelector('.graph').focus()")
    assert page.text(".details .name") == test_page.EVIL
    assert page.run("return document.querySelectorAll('main img, main script').length") == 0
    assert page.complaints() == []


def test_the_graph_has_the_width_until_a_node_is_chosen(opened: Open, folder: Path) -> None:
    page = opened(folder / "report.html", DESKTOP)
    width = page.run("return document.querySelector('.panels').clientWidth / innerWidth")
    assert width > 0.9
    assert page.run("return document.querySelector('.details').hidden")
    page.run("irtoolPage.explorer.choose(1)")
    assert not page.run("return document.querySelector('.details').hidden")
    page.run("document.querySelector('.details .close').click()")
    assert page.run("return document.querySelector('.details').hidden")
    assert page.run(
        "return [...document.querySelectorAll('.bars .total')].every((bar) => bar.clientWidth === bar.parentElement.clientWidth)"
    )


def test_on_a_phone_the_whole_width_of_the_graph_is_in_sight(opened: Open, folder: Path) -> None:
    page = opened(folder / "report.html", (390, 800))
    assert page.run("const e = irtoolPage.explorer; return e.visible()[0].size[0] / e.camera.k >= e.scene.width || e.camera.k === 0.5")
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")


def test_titles_of_nested_modules_do_not_overprint_each_other(tmp_path: Path, opened: Open) -> None:
    inner = nn.Sequential(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)), nn.ReLU()), nn.ReLU())
    graph = trace(nn.Sequential(inner, nn.ReLU()).eval(), torch.zeros(1, 3, 8, 8))
    (tmp_path / "page.html").write_text(diff(graph, graph).to_html(), encoding="utf-8")
    page = opened(tmp_path / "page.html", DESKTOP)
    page.run("irtoolPage.explorer.refold(() => irtoolPage.explorer.tree.openAll())")
    crossing = """
      const boxes = [...document.querySelectorAll('[data-side="after"] .heads text')].map((text) => text.getBoundingClientRect());
      return [boxes.length, boxes.some((a, i) => boxes.some((b, j) => i < j && a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom))]"""
    count, over = page.run(crossing)
    assert count >= 3
    assert not over


def test_one_model_is_viewed_alone(cli: Callable[..., tuple[int, str, str]], tmp_path: Path, opened: Open) -> None:
    code, printed, error = cli("view", "VGG:depth=11,width=0.0625", "--input", "1x3x32x32", "--out", tmp_path / "net.html")
    assert (code, error) == (0, "")
    assert printed == f"written to {tmp_path / 'net.html'}\n"
    page = opened(tmp_path / "net.html", DESKTOP)
    assert page.text("h1") == "VGG:depth=11,width=0.0625"
    assert page.run("return irtoolPage.explorer.visible().length") == 1
    assert "features.0" in page.text("#layers tbody")
    page.run("irtoolPage.explorer.choose(1)")
    assert page.complaints() == []


@pytest.mark.parametrize(("old", "new", "shown"), [(0.60, 0.444, ("0.600 ms", "0.444 ms", "74 % of the time")), (1234.0, 95.6, ("1,234 ms", "95.6 ms", "8 % of the time"))])  # fmt: skip
def test_times_and_their_ratio_agree_on_a_page(
    folder: Path, graphs: Any, opened: Open, old: float, new: float, shown: tuple[str, str, str]
) -> None:
    """Whatever a report of an older release says beside them."""
    report = json.loads((folder / "report.json").read_text())
    report["before"]["latency_ms"], report["after"]["latency_ms"], report["ratios"] = {"mnn": old}, {"mnn": new}, {"mnn": 0.9}
    (folder / "report.json").write_text(json.dumps(report))
    write_run_page(folder, *graphs, "a small VGG")
    page, (before, after, share) = opened(folder / "report.html"), shown
    assert f"Latency, mnn{after}from {before}{share}" in page.text(".tile")
    assert f"Latency, mnn|{before}|{after}|{share}" in page.text("#measured td, #measured tbody th")


def test_a_diff_begins_with_the_totals_as_tiles(opened: Open, graphs: Any, tmp_path: Path) -> None:
    before, after = graphs[0], graphs[1]
    (tmp_path / "page.html").write_text(diff(before, after).to_html(), encoding="utf-8")
    assert opened(tmp_path / "page.html", DESKTOP).text(".tile dt") == "Parameters|MACs|Weights"
