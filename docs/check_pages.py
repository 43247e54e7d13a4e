"""Checks the built pages: what a reader without a network, or with a phone, would not see.

`python docs/check_pages.py docs/_build/html` reads the pages, and opens each in Chromium at the
widths of a desktop and of a phone if there is one (`--browser` makes it an error if there is none).
The faults are printed, one a line; the exit status is 1 if there are any.
"""

import argparse
import json
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sphinx.search.en import SearchEnglish

WIDTHS = (1440, 390)
# So many letters fit into a box of code, and into what cannot be broken in a line of a table.
CODE_COLUMNS = 86
TABLE_COLUMNS = 92
# A page of the module's source is shown as it is, with lines of up to a hundred letters.
SOURCE = "_modules/"
RAW_FORMULA = re.compile(r"\\\(|\\\[|\$\$|\\[a-zA-Z]{2,}\b|\$[^$\n]*[\\^_][^$\n]*\$")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# What people type, American spelling included, must lead somewhere.
SEARCHED = """
    install tutorial train resume checkpoint save load weights pretrained fine-tuning transfer
    predict inference classify accuracy loss nan stuck chance vanishing exploding overfitting
    dropout lrn normalization normalize initialization kaiming mean std statistics cifar10 imagenet
    torchvision dataset dataloader imagefolder csv augmentation mixup cutmix scheduler optimizer
    hyperparameters batch epoch seed reproducible deterministic interrupt memory oom speed benchmark
    bfloat16 amp compile download offline proxy mirror windows macos linux gpu cuda parameters flops
    macs architecture groups stride padding grayscale gray color rgb contribute
"""


@dataclass
class Box:
    """A box of code or a table: what is longest in it."""

    text: str = ""
    rows: list[list[str]] = field(default_factory=list)


class Page(HTMLParser):
    """What a page shows and loads."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.undescribed: list[str] = []
        self.texts: list[str] = []
        self.code: list[Box] = []
        self.tables: list[Box] = []
        self.title = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag in ("script", "img", "iframe"):
            self.loaded += [values["src"]] if "src" in values else []
        # Sphinx takes the name of the file where there is no text.
        if tag == "img" and re.fullmatch(r"|\S+\.\w+", values.get("alt", "")):
            self.undescribed.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon"):
            self.loaded.append(values["href"])
        if tag in ("img", "link", "meta", "br", "hr", "input", "col", "wbr"):
            return
        self.open.append(tag)
        if tag == "pre":
            self.code.append(Box())
        if tag == "table":
            self.tables.append(Box())
        if tag == "tr" and self.tables:
            self.tables[-1].rows.append([])
        if tag in ("td", "th") and self.tables and self.tables[-1].rows:
            self.tables[-1].rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "title" in self.open and "svg" not in self.open:
            self.title += data
        if {"script", "style", "math"} & set(self.open):
            return
        if "pre" in self.open:
            self.code[-1].text += data
        elif "code" not in self.open:
            self.texts.append(data)
        if {"td", "th"} & set(self.open) and self.tables and self.tables[-1].rows:
            self.tables[-1].rows[-1][-1] += data


def unbreakable(table: Box) -> int:
    """The letters of the longest words of all columns, with two for the space between columns."""
    width: dict[int, int] = {}
    for row in table.rows:
        for column, cell in enumerate(row):
            longest = max(map(len, cell.split()), default=0)
            width[column] = max(width.get(column, 0), longest)
    return sum(width.values()) + 2 * len(width)


def faults_of_page(site: Path, name: str, page: Page) -> Iterator[str]:
    for address in page.loaded:
        parts = urlsplit(address)
        if parts.scheme == "data":
            continue
        if parts.scheme or parts.netloc:
            yield f"{name}: loaded from the network: {address}"
        elif not (site / name).parent.joinpath(unquote(parts.path)).is_file():
            yield f"{name}: a file that is missing: {address}"
    for address in page.undescribed:
        yield f"{name}: an image without a text that says what it shows: {address}"
    for text in page.texts:
        if found := RAW_FORMULA.search(text):
            yield f"{name}: a raw formula: {text[max(0, found.start() - 20) :][:60]!r}"
    if name.startswith(SOURCE):
        return
    for box in page.code:
        line = max(box.text.splitlines(), key=len, default="")
        if len(line) > CODE_COLUMNS:
            start = f"{line[:60]!r}"
            yield f"{name}: {len(line)} letters in a line of code, {CODE_COLUMNS} fit: {start}"
    for table in page.tables:
        if unbreakable(table) > TABLE_COLUMNS:
            head = table.rows[0][:3]
            yield f"{name}: a table of {unbreakable(table)} letters, {TABLE_COLUMNS} fit: {head}"


def plain_title(title: str) -> str:
    return re.sub(r"^(the|a|an) ", "", title.split(" - ", maxsplit=1)[0].strip().lower())


def faults(site: Path) -> list[str]:
    """What is wrong with the pages of a folder, as far as it can be seen without a browser."""
    found: list[str] = []
    titles: dict[str, str] = {}
    for file in sorted(site.rglob("*.html")):
        name = file.relative_to(site).as_posix()
        page = Page(file.read_text(encoding="utf-8"))
        found += faults_of_page(site, name, page)
        title = plain_title(page.title)
        if title in titles:
            found.append(f"{name}: the title of {titles[title]} too: {page.title!r}")
        titles[title] = name
    index = site / "searchindex.js"
    if index.exists():
        text = index.read_text(encoding="utf-8")
        terms = json.loads(text[text.index("(") + 1 : text.rindex(")")])
        known = {*terms["terms"], *terms["titleterms"]}
        stem = SearchEnglish({}).stem
        for word in SEARCHED.split():
            if not all({part, stem(part)} & known for part in word.split("-")):
                found.append(f"search: nothing is found for {word!r}")
    return found


# Runs in a page of its own, which opens each page of the site in a frame of each width.
SCRIPT = r"""
const RAW = new RegExp(RAW_SOURCE);
const report = [];
const shown = (element) => element.checkVisibility({visibilityProperty: true});
const words = (element) =>
  (element.textContent || element.src || "").trim().replace(/\s+/g, " ").slice(0, 60);
const scrolls = (view, element) => /auto|scroll/.test(view.getComputedStyle(element).overflowX);
function measure(view, name, width) {
  const page = view.document, add = (text) => report.push(`${name} at ${width}: ${text}`);
  const root = page.documentElement;
  if (root.scrollWidth > width) add(`the page is ${root.scrollWidth} wide`);
  const main = page.querySelector("[role=main]") || page.body;
  const column = main.getBoundingClientRect();
  const boxed = (element) => {
    for (let e = element; e && e !== main; e = e.parentElement) if (scrolls(view, e)) return true;
    return false;
  };
  for (const e of main.querySelectorAll("*")) {
    if (!shown(e)) continue;
    const wider = e.scrollWidth - e.clientWidth;
    if (e.clientWidth && wider > 1) {
      const style = view.getComputedStyle(e);
      if (/hidden|clip/.test(style.overflowX) && e.clientWidth > 1)
        add(`${wider} px of ${e.tagName} are cut: ${words(e)}`);
      if (scrolls(view, e)) {
        if (width >= 1000 && !name.startsWith(SOURCE))
          add(`${wider} px of ${e.className || e.tagName} are hidden: ${words(e)}`);
        const first = e.querySelector("tbody td:first-child");
        if (first && view.getComputedStyle(first).position !== "sticky")
          add(`a table scrolls without its first column: ${words(e)}`);
      }
    }
    const box = e.getBoundingClientRect();
    const end = Math.min(column.right, width);
    const leaf = /^(math|svg|table|pre|img)$/i.test(e.tagName);
    if (leaf && box.width && (box.right > end + 1 || box.left < column.left - 1) && !boxed(e))
      add(`${e.tagName} ends ${Math.round(box.right - end)} px beyond the column: ${words(e)}`);
  }
  const walker = page.createTreeWalker(main, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!shown(parent) || parent.closest("script, style")) continue;
    if (!parent.closest("pre, code, math") && RAW.test(walker.currentNode.data))
      add(`a raw formula: ${walker.currentNode.data.trim().slice(0, 60)}`);
    const range = page.createRange();
    range.selectNodeContents(walker.currentNode);
    for (const box of range.getClientRects())
      if (box.right > Math.min(column.right, width) + 1 && !boxed(parent)) {
        add(`text ends ${Math.round(box.right - column.right)} px beyond the column: ` +
          walker.currentNode.data.trim().slice(0, 60));
        break;
      }
  }
  for (const image of page.images)
    if (!image.complete || !image.naturalWidth)
      add(`an image failed: ${image.getAttribute("src")}`);
}
async function all() {
  for (const width of WIDTHS) for (const name of PAGES) {
    const frame = document.createElement("iframe");
    frame.style = `border: 0; width: ${width}px; height: 900px`;
    frame.src = "/" + name;
    await new Promise((done) => { frame.onload = done; document.body.append(frame); });
    await frame.contentDocument.fonts.ready;
    try { measure(frame.contentWindow, name, width); }
    catch (error) { report.push(`${name} at ${width}: ${error.stack}`); }
    frame.remove();
  }
  await fetch("/report", {method: "POST", body: JSON.stringify(report)});
}
all();
"""


class Handler(SimpleHTTPRequestHandler):
    """Gives the files of the site and the page with the script, and takes its report."""

    script = ""
    reports: "queue.Queue[list[str]]"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path != "/check":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(f"<!doctype html><body><script>{self.script}</script>".encode())

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.reports.put(json.loads(text))


def browser() -> str | None:
    """The first Chromium that is installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def faults_in_browser(site: Path, program: str, seconds: float = 300) -> list[str]:
    """What is wrong with the pages of a folder when Chromium shows them without a network."""
    pages = sorted(file.relative_to(site).as_posix() for file in site.rglob("*.html"))
    values = {"RAW_SOURCE": RAW_FORMULA.pattern, "WIDTHS": WIDTHS, "PAGES": pages, "SOURCE": SOURCE}
    script = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
    reports: queue.Queue[list[str]] = queue.Queue()
    handler = type("SiteHandler", (Handler,), {"script": script + SCRIPT, "reports": reports})
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=site)) as server,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [
            program,
            "--headless",
            "--no-sandbox",  # the pages are our own, and containers have none
            "--disable-gpu",
            "--no-first-run",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={profile}",
            "--remote-debugging-port=0",  # stays open until it is ended
            "--window-size=1500,1000",
            f"http://127.0.0.1:{server.server_port}/check",
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return reports.get(timeout=seconds)
        except queue.Empty:
            return [f"{program} gave no report within {seconds:.0f} s"]
        finally:
            process.terminate()
            process.wait()
            server.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path)
    parser.add_argument("--browser", action="store_true", help="an error if there is no Chromium")
    arguments = parser.parse_args()
    found = faults(arguments.site)
    program = browser()
    if program is not None:
        found += faults_in_browser(arguments.site, program)
    elif arguments.browser:
        sys.exit(f"error: no Chromium is installed (none of {', '.join(BROWSERS)})")
    else:
        print("The pages were not opened in a browser: no Chromium is installed.")
    for fault in found:
        print(fault)
    print(f"{len(found)} faults in {len(list(arguments.site.rglob('*.html')))} pages")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
