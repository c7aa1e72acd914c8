"""A run as one page of HTML that needs no network: curves, pictures, configuration."""

import base64
import glob
import html
import json
import math
import os
import re

from jaxdiff.training import page
from jaxdiff.training.runs import read_config, read_log

MOST_PICTURES = 24


def report_page(runs):
    """One self-contained page on one run, or on two side by side.

    Args:
      runs: directories that `fit` wrote.

    Returns:
      HTML, a string. Curves of every number in the log by step, loss by noise level, where the time
      went, sample pictures by step, and the configuration with what differs marked.

    Raises:
      ValueError: for a directory that holds no run.
    """
    names = _names(runs)
    parts = [_read(run, name) for run, name in zip(runs, names, strict=True)]
    configs = [part.pop("config") for part in parts]
    data = json.dumps(_finite(parts)).replace("<", "\\u003c")  # nothing in it may close the element
    title = html.escape(" and ".join(names))
    summaries = "".join(f'<p class="soft">{html.escape(_summary(part))}</p>' for part in parts)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{page.STYLE}</style></head><body><main>
<h1>{title}</h1>{summaries}
<section><h2>Curves</h2>
<p class="soft">Hover for values, drag to zoom, double-click for all; with the keyboard, arrows move the
cursor, + and - zoom, shift and arrows pan, Escape shows all.</p>
<div class="grid" id="curves"></div></section>
<section id="levels-part"><h2>Loss by noise level</h2><div class="grid" id="levels"></div></section>
<section id="goodput-part"><h2>Where the time went</h2><div class="grid" id="goodput"></div></section>
<section id="pictures-part"><h2>Samples</h2><div id="pictures"></div></section>
<section><h2>Configuration</h2>{_table(names, configs)}</section>
</main><script type="application/json" id="data">{data}</script>
<script>{page.SCRIPT}</script></body></html>
"""


def _names(runs):
    """Base names, or whole paths where these are the same."""
    short = [os.path.basename(os.path.abspath(run)) for run in runs]
    return short if len(set(short)) == len(runs) else [str(run) for run in runs]


def _read(run, name):
    log = read_log(run)
    return {
        "name": name,
        "config": read_config(run),
        "lines": [line for line in log if "event" not in line and "step" in line],
        "goodput": next((line["goodput"] for line in reversed(log) if "goodput" in line), None),
        "pictures": _pictures(run),
    }


def _pictures(run):
    """Pictures by step, the first and the last among them, as data URIs."""
    found = []
    for path in glob.glob(os.path.join(glob.escape(run), "samples-*.png")):
        if match := re.fullmatch(r"samples-(\d+)\.png", os.path.basename(path)):
            found.append((int(match[1]), path))
    found.sort()
    if len(found) > MOST_PICTURES:
        chosen = [round(i * (len(found) - 1) / (MOST_PICTURES - 1)) for i in range(MOST_PICTURES)]
        found = [found[i] for i in chosen]
    return [{"step": step, "uri": _data_uri(path)} for step, path in found]


def _data_uri(path):
    with open(path, "rb") as file:
        return "data:image/png;base64," + base64.b64encode(file.read()).decode()


def _summary(part):
    if not part["lines"]:
        return f"{part['name']}: no log line yet"
    last = part["lines"][-1]
    loss = "none finite" if last["loss"] is None else f"{last['loss']:.4g}"
    return f"{part['name']}: step {last['step']:,}, loss {loss}"


def _table(names, configs):
    rows = []
    for field in sorted(set().union(*configs)):
        values = [json.dumps(config[field]) if field in config else "–" for config in configs]
        mark = ' class="differs"' if len(set(values)) > 1 else ""
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in values)
        rows.append(f"<tr{mark}><td>{html.escape(field)}</td>{cells}</tr>")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    return f"<table><tr><th>setting</th>{head}</tr>{''.join(rows)}</table>"


def _finite(value):
    """Numbers that JSON has none for become null."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
