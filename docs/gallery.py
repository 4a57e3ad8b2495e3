"""Draw the figures of gallery.md: python docs/gallery.py runs its blocks and saves what each draws."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl

HERE = Path(__file__).parent
STEP = re.compile(r"```python\n(?P<code>.*?)```|!\[[^\]]*\]\((?P<image>[^)]*)\)", re.S)

if __name__ == "__main__":
    mpl.use("Agg")
    names: dict[str, Any] = {}
    for step in STEP.finditer((HERE / "gallery.md").read_text()):
        if step["code"]:
            exec(step["code"], names)
        else:
            path = HERE / step["image"]
            path.parent.mkdir(exist_ok=True)
            names["ax"].figure.savefig(path, dpi=80, metadata={"Software": None})
