"""The site from the file system, in a real browser: its search finds, and what the copy button takes of a console is what was typed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser as chromium
import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.skipif(bool(chromium.why_not()), reason=chromium.why_not()),
    pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="mkdocs-material is not installed: pip install 'irtool[dev]'"),
]
# Three pages of the site are enough to search in, and are built in seconds.
CONFIG = """
INHERIT: {root}/mkdocs.yml
docs_dir: {docs}
site_dir: {site}
strict: false
hooks: []
plugins: [search, offline]
nav: [{{Start: index.md}}, {{Glossary: glossary.md}}, {{Passes: passes.md}}]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small site with the theme, the scripts and the styles of the whole one."""
    folder = tmp_path_factory.mktemp("docs")
    docs, made = folder / "docs", folder / "site"
    (docs / "assets").mkdir(parents=True)
    for name in ("glossary.md", "assets/extra.css", "assets/iframe-worker.js"):
        (docs / name).write_bytes((ROOT / "docs" / name).read_bytes())
    (docs / "index.md").write_text("# Start\n\nNothing here.\n")
    (docs / "passes.md").write_bytes((ROOT / "docs" / "tutorials" / "passes.md").read_bytes())
    (folder / "mkdocs.yml").write_text(CONFIG.format(root=ROOT, docs=docs, site=made))
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "-f", str(folder / "mkdocs.yml")]
    done = subprocess.run(command, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium.browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def test_the_search_works_from_the_file_system(site: Path, driver: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get((site / "index.html").as_uri())
    driver.execute_script("document.querySelector('label[for=__search]').click()")
    driver.find_element(By.CSS_SELECTOR, ".md-search__input").send_keys("barrier")
    found = WebDriverWait(driver, 60).until(lambda page: page.find_elements(By.CSS_SELECTOR, ".md-search-result__item a"))
    assert any("glossary.html" in (link.get_attribute("href") or "") for link in found)
    asked = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)


def test_the_copy_button_takes_what_was_typed(site: Path, driver: Any) -> None:
    driver.get((site / "passes.html").as_uri())
    script = """
      const code = [...document.querySelectorAll('code')].find((one) => one.querySelector('.gp'));
      const shown = code.innerText;
      code.setAttribute('data-md-copying', '');  // as the theme does while it copies
      const copied = code.innerText;
      code.removeAttribute('data-md-copying');
      return [shown, copied]"""
    shown, copied = driver.execute_script(script)
    assert ">>> " in shown
    assert ">>>" not in copied
    assert copied.strip()
    compile(copied, "copied", "exec")


def test_the_site_is_as_dark_as_the_system_at_each_visit(site: Path, driver: Any) -> None:
    for scheme, named in (("dark", "slate"), ("light", "default"), ("dark", "slate")):
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        driver.get((site / "glossary.html").as_uri())
        assert driver.execute_script("return document.body.dataset.mdColorScheme") == named
