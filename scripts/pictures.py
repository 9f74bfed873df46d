"""Pictures of executed chapters as files of their own, and sliders that need no widgets, for the built pages.

In a notebook a picture travels as text inside it, and so would every frame of every slider inside the page. Here each
becomes a file in a folder beside its page, fetched when it comes into view or its slider is touched. A slider becomes
an `<input type="range">`, which every browser draws, moves by keys and reads aloud; `_static/sliders.js` turns it.
"""

import base64
import hashlib
import html
import io
import json
import re
from pathlib import Path

from PIL import Image

VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
FRAME = re.compile(r'<img src="data:image/\w+;base64,([^"]*)" alt="([^"]*)">')
# In place of widgets that compute.
KERNEL = (
    "<p><em>What is here needs Python: it works where this chapter is opened in JupyterLab, Colab or Binder.</em></p>"
)
# The page `play` of bayesprompt.prompting.play: its data, then its script.
PLAY = re.compile(r'<script type="application/json">(.*?)</script><script>(.*?)</script>', re.DOTALL)
CHAPTER = re.compile(r'href="([^":]+)\.ipynb"')  # a link of a notebook to another one


def to_files(notebook: dict, folder: Path, address: str) -> None:
    """Write all pictures of an executed notebook to a folder, and leave HTML in its outputs that shows them.

    `address` is the folder as seen from the page.
    """
    widgets = notebook["metadata"].pop("widgets", {}).get(STATE, {}).get("state", {})
    for number, cell in enumerate(notebook["cells"]):
        alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
        for data in (output["data"] for output in cell.get("outputs", []) if "data" in output):
            if view := data.get(VIEW):
                data.clear()
                if "explore" in widgets[view["model_id"]]["state"].get("_dom_classes", []):
                    data["text/html"] = slider(widgets, view["model_id"], folder, address, f"slider-{number}")
                else:
                    data["text/html"] = KERNEL
            elif picture := data.get("image/png"):
                data.clear()
                data["text/html"] = image(*save(picture, folder, address), html.escape(alt))
            elif FRAME.search(text := "".join(data.get("text/html", ""))):
                text = PLAY.sub(lambda found: scripts(json.loads(found[1]), found[2], folder, address), text)
                small = FRAME.sub(lambda found: image(*save(found[1], folder, address), found[2]), text)
                data["text/html"] = CHAPTER.sub(r'href="\1.html"', small)


def scripts(data: dict, script: str, folder: Path, address: str) -> str:
    """HTML of the page `play` with its script and each network's weights as files, which `play.js` asks for by name."""
    for name, network in data["networks"].items():
        weights = f"(globalThis.playWeights ??= {{}})[{json.dumps(name)}] = {json.dumps(network.pop('text'))};\n"
        network["file"] = write(weights, folder, address)
    packed = json.dumps(data, separators=(",", ":")).replace("</", r"<\/")
    return f'<script type="application/json">{packed}</script><script src="{write(script, folder, address)}"></script>'


def write(script: str, folder: Path, address: str) -> str:
    """Write a script under a name made of it; return its address."""
    name = f"{hashlib.sha256(script.encode()).hexdigest()[:16]}.js"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(script, encoding="utf-8")
    return f"{address}/{name}"


def slider(widgets: dict[str, dict], model: str, folder: Path, address: str, name: str) -> str:
    """HTML of what `bayesprompt.lab.widgets.explore` made: its sliders, the first frame shown, and where all are."""
    *models, stack = children(widgets, model)
    states = [widgets[each]["state"] for each in models]
    frames = [(*save(data, folder, address), alt) for data, alt in leaves(widgets, stack)]
    lines = ['<div class="explore">']
    place = 0
    for number, state in enumerate(states):
        labels = [*map(html.escape, state["_options_labels"])]
        chosen = state.get("index", 0)  # what was not chosen is not in the state
        place, first = place * len(labels) + chosen, labels[chosen]
        lines += [
            f'<label for="{name}-{number}">{html.escape(state["description"])}</label>',
            f'<input id="{name}-{number}" type="range" max="{len(labels) - 1}" value="{chosen}"'
            f' autocomplete="off" aria-valuetext="{first}">',
            f'<span aria-hidden="true">{first}</span>',
        ]
    words = [state["_options_labels"] for state in states]
    turned = [(source, html.unescape(alt)) for source, _, alt in frames]
    script = json.dumps({"words": words, "frames": turned}, ensure_ascii=False).replace("</", r"<\/")
    return "\n".join([*lines, image(*frames[place]), f'<script type="application/json">{script}</script>', "</div>"])


def children(widgets: dict[str, dict], model: str) -> list[str]:
    """Names of the widgets inside a widget."""
    return [child.removeprefix("IPY_MODEL_") for child in widgets[model]["state"].get("children", [])]


def leaves(widgets: dict[str, dict], model: str) -> list[tuple[str, str]]:
    """All frames of stacks in stacks, the last slider's running fastest: picture and words, as they stand in HTML."""
    if inside := children(widgets, model):
        return [leaf for child in inside for leaf in leaves(widgets, child)]
    return [FRAME.fullmatch(widgets[model]["state"]["value"]).groups()]


def save(picture: str, folder: Path, address: str) -> tuple[str, tuple[int, int]]:
    """Write a picture, the same pixels in fewer bytes, under a name made of it; return its address and its size."""
    data = base64.b64decode(picture)
    path = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.webp"
    with Image.open(io.BytesIO(data)) as opened:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            opened.save(path, lossless=True)
        return f"{address}/{path.name}", opened.size


def image(source: str, size: tuple[int, int], alt: str) -> str:
    """An image whose place is kept until it has come."""
    return f'<img src="{source}" alt="{alt}" width="{size[0]}" height="{size[1]}" loading="lazy">'
