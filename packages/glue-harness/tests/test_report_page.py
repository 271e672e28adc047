"""The page: what is embedded, that it needs no network, and what it does in a browser."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glue_harness.report import report

WriteRun = Callable[..., None]
ODD = "</script><b>&\u2028"


@pytest.fixture(scope="module")
def page(write_run: WriteRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of 300 runs: two tasks, three optimizers, ten rates, five seeds; an odd model name."""
    folder = tmp_path_factory.mktemp("report")
    for seed in range(5):
        for rate in range(1, 11):
            for place, optimizer in enumerate(("adamw", "sgd", "adam")):
                for task in ("rte", "cola"):
                    score = 0.5 + 0.01 * place + 0.001 * rate + 0.0001 * seed
                    options = {"lr": round(rate * 1e-4, 4), "model": ODD}
                    write_run(folder / "runs", task, optimizer, seed, [score - 0.1, score], **options)
    report(folder / "runs", folder / "out", baseline="optimizer=adamw,optimizer.lr=1e-4")
    return (folder / "out/index.html").read_text(encoding="utf-8")


def embedded(text: str) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def rows(data: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    columns = data[f"{kind[:-1]}_columns"]
    return [dict(zip(columns, row, strict=True)) for row in data[kind]]


CHECKS = """
const say = {};
const text = line => [...line.children].map(cell => cell.textContent);
const lines = () => [...document.querySelectorAll("#body tr[tabindex]")];
const column = name => [...document.querySelectorAll("#head th")].findIndex(th => th.dataset.column === name);
const press = name => document.querySelector(`#head [data-column=${name}] button`).click();
const choose = (name, value) => {
  const select = document.getElementById("filter-" + name);
  select.value = value;
  select.onchange();
};
say.count = document.getElementById("count").textContent;
say.rendered = lines().length;
say.filters = [...document.querySelectorAll("#bar select")].map(select => select.id);
choose("optimizer", "sgd"); choose("task", "rte");
say.filtered = document.getElementById("count").textContent;
press("last");
say.first = text(lines()[0])[column("last")];
say.sort = document.querySelector("#head [data-column=last]").getAttribute("aria-sort");
press("last");
say.reversed = text(lines()[0])[column("last")];
lines()[0].click();
say.open = document.getElementById("details").open;
say.name = document.getElementById("name").textContent;
say.curves = document.querySelectorAll("#inside svg polyline").length;
say.points = document.querySelector("#inside svg polyline").getAttribute("points").split(" ").length;
say.alternative = document.querySelector("#inside svg").getAttribute("aria-label");
say.options = [...document.querySelectorAll("#inside dt")].map(dt => dt.textContent);
document.getElementById("close").click();
document.querySelector("[data-view=runs]").click();
say.runs = document.getElementById("count").textContent;
choose("optimizer", ""); choose("task", "");
document.getElementById("search").value = "lr 0.0003";
document.getElementById("search").oninput();
say.searched = document.getElementById("count").textContent;
say.rendered_runs = lines().length;
say.odd = document.querySelectorAll("b").length;
say.pictures = [...document.images].map(image => image.alt.length > 40 && image.src.startsWith("data:"));
const said = document.createElement("pre");
said.id = "said"; said.textContent = JSON.stringify(say);
document.body.append(said);
"""


def test_everything_is_embedded_and_nothing_is_fetched(page: str) -> None:
    for reference in re.findall(r"""(?:src|href)\\s*=\\s*["']?([^"'\\s>]+)""", page):
        assert reference.startswith("data:")
    assert "@import" not in page
    assert "url(" not in page
    without_namespace = page.replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in without_namespace
    assert "https://" not in without_namespace


def test_data_hold_every_run_and_setting_once(page: str) -> None:
    data = embedded(page)
    runs, settings = rows(data, "runs"), rows(data, "settings")
    assert len(runs) == 300
    assert len(settings) == 60
    assert sorted(place for setting in settings for place in setting["runs"]) == list(range(300))
    setting = next(s for s in settings if s["task"] == "cola" and s["setting"] == "sgd, lr 0.0003")
    assert setting["last"] == pytest.approx(0.5132)
    assert [runs[place]["last"] for place in setting["runs"]] == pytest.approx(
        [0.513, 0.5131, 0.5132, 0.5133, 0.5134]
    )
    run = runs[setting["runs"][0]]
    assert (run["epochs"], run["scores"]) == ([1.0, 2.0], pytest.approx([0.413, 0.513]))
    assert run["model"] == ODD
    options = data["common"] | data["configs"][run["config"]]
    assert options["optimizer"] == "sgd"
    assert options["optimizer.lr"] == 0.0003
    assert options["batch_size"] == 32
    assert setting["verdict"] == "undecided"
    baseline = next(s for s in settings if s["task"] == "cola" and s["setting"] == "adamw, lr 0.0001")
    assert (baseline["verdict"], baseline["difference"]) == ("", None)


def test_texts_of_charts_stand_beside_them(page: str) -> None:
    alternatives = [html.unescape(text) for text in re.findall(r'<img [^>]*alt="([^"]*)"', page)]
    assert len(alternatives) == 5
    assert any("rte" in text and "curves of accuracy" in text for text in alternatives)


def test_in_a_browser_filter_sort_and_click(page: str, tmp_path: Path) -> None:
    """Only the rows that are seen exist; the rest is a matter of scrolling."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium or google-chrome here")
    checked = tmp_path / "checked.html"
    checked.write_text(page.replace("</body>", f"<script>{{{CHECKS}}}</script></body>"), encoding="utf-8")
    done = subprocess.run(
        [
            *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", checked.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    said = json.loads(html.unescape(found[1]))
    assert said["count"] == "60 of 60 settings"
    assert 10 < said["rendered"] < 60
    assert said["filters"] == ["filter-task", "filter-optimizer"]
    assert said["filtered"] == "10 of 60 settings"
    assert said["first"].startswith("0.5202 ± 0.0002")
    assert said["sort"] == "descending"
    assert said["reversed"].startswith("0.5112 ± 0.0002")
    assert said["open"] is True
    assert said["name"] == "rte: sgd, lr 0.0001"
    assert (said["curves"], said["points"]) == (5, 2)
    assert "accuracy from 0.4110 to 0.5110 over 2 epochs, 5 runs" in said["alternative"]
    assert {"batch size", "optimizer.lr", "folders", "model"} <= set(said["options"])
    assert said["runs"] == "50 of 300 runs"
    assert said["searched"] == "30 of 300 runs"
    assert said["rendered_runs"] <= 30
    assert said["odd"] == 0
    assert said["pictures"] == [True] * 5
