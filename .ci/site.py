"Prepare _proc/ for Quarto: nbdev's processing of the notebooks, without the cells that only steer the export."
import json
import re
from pathlib import Path

from nbdev.quarto import nbdev_proc_nbs

home = Path(__file__).resolve().parent.parent


def steers(cell):
    "A code cell of nothing but directives such as `#| default_exp data`."
    source = "".join(cell["source"]).strip()
    return cell["cell_type"] == "code" and all(re.match(r"#\|\s*\w+(\s+[\w.]+)?$", line) for line in source.splitlines())


if __name__ == "__main__":
    nbdev_proc_nbs.__wrapped__()
    for path in (home / "_proc").glob("*.ipynb"):
        nb = json.loads(path.read_text(encoding="utf-8"))
        nb["cells"] = [cell for cell in nb["cells"] if not steers(cell)]
        path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
