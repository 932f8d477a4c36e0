"""The script behind the newcomer's page runs a page's commands in one shell and writes down what they print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = """
```python title="say.py"
print("hi")
```

```console
$ pip install nothing
as it was
$ python3 say.py && mkdir inside && cd inside
old
$ basename "$PWD"; echo late >&2
```

Text stays.
"""


def test_a_page_is_run_again(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    command = [
        sys.executable, str(ROOT / "bench" / "transcript.py"), str(page), "--data", str(tmp_path), "--environment", str(tmp_path / "env")
    ]  # fmt: skip
    assert subprocess.run([*command, "--check"], capture_output=True).returncode == 1
    assert page.read_text() == PAGE  # looking changes nothing
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert (
        "$ pip install nothing\nas it was\n$ python3 say.py && mkdir inside && cd inside\nhi\n" in text
    )  # one shell, and what was left out stays
    assert "\ninside\nlate\n" in text
    assert text.endswith("Text stays.\n")
    assert subprocess.run([*command, "--check"], capture_output=True).returncode == 0
