"README.md is made from nbs/index.ipynb: `python .ci/readme.py` writes it, `--check` fails when it is out of date."
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

home = Path(__file__).resolve().parent.parent


def readme(notebook=home / "nbs" / "index.ipynb"):
    "The text of README.md: the notebook as Markdown, without hidden cells; links to notebooks point into nbs/."
    nb = nbformat.read(notebook, as_version=4)
    nb.cells = [cell for cell in nb.cells if not re.search(r"^#\|\s*hide\s*$", cell.source, flags=re.M)]
    for cell in nb.cells:
        cell.source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|"))
    nb.metadata.language_info = {"name": "python"}
    text, resources = MarkdownExporter().from_notebook_node(nb)
    if resources.get("outputs"):
        raise SystemExit("nbs/index.ipynb: README.md is made without pictures; take the figure out of the notebook.")
    text = re.sub(r"\]\((?!https?:|#|/|\.\./)([\w./-]+\.ipynb)", r"](nbs/\1", text)
    text = text.replace("](../", "](")
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


if __name__ == "__main__":
    target = home / "README.md"
    if "--check" not in sys.argv[1:]:
        target.write_text(readme(), encoding="utf-8")
    elif not target.exists() or target.read_text(encoding="utf-8") != readme():
        sys.exit("README.md is not what nbs/index.ipynb makes: run `make readme`.")
