"""The controls of the demo: a page of Gradio whose events are the scripts in `page/`.

Gradio draws text boxes, numbers, choices and buttons. Their events are functions of the scripts,
which ask `demo_pages`; none is a function of Python. So nothing but the page and its files is
answered by Gradio: its routes for files of the machine, uploads, a queue of its own and a proxy are
not there. What it has no part for stands in `gr.HTML`: the player, which is fed fragments of MP4
(Gradio's own streamed video runs a program `ffmpeg` for each), the pictures of the timestep matrix
and the density, and the first frame, which goes along with what is asked for.

The page works offline: statistics, links to share and fonts of others are off, and the browser is
told to load nothing from elsewhere (Content Security Policy).
"""

from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
from gradio.themes import Default
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from jvdm.serving.demo import EXAMPLE

PAGE = Path(__file__).with_name("page")
MOST_SEED = 2**32 - 1
SHOWN = ("/", "/theme.css", "/manifest.json", "/favicon.ico")
"""What Gradio answers; its files that do not change lie under `FILES`."""
FILES = ("assets", "static")
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "img-src 'self' blob: data:; media-src 'self' blob:"
)
"""Content Security Policy: Gradio makes functions of the texts in its page."""


def routes() -> list[Any]:
    """Returns routes of Starlette: the page for everybody, and its files."""
    shown, folder = Shown(), Path(gr.__file__).parent / "templates" / "frontend"
    files = [Mount(f"/{name}", StaticFiles(directory=folder / name)) for name in FILES]
    pages = [Route(path, shown, methods=["GET"]) for path in SHOWN]
    return [*pages, *files, Mount("/", StaticFiles(directory=PAGE))]


class Shown:
    """ASGI application: the page of Gradio, whatever else a request says of itself.

    Gradio reads addresses from headers of proxies, and files that a query names; it gets neither.
    """

    def __init__(self) -> None:
        font: Any = ("system-ui", "sans-serif")
        self.app = gr.mount_gradio_app(
            fastapi.FastAPI(),
            blocks(),
            "/",
            footer_links=[],
            head='<link rel="stylesheet" href="style.css">',
            run_history=False,
            ssr_mode=False,
            theme=Default(font=font, font_mono="monospace"),
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request."""

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message["headers"], policy]}
            await send(message)

        host = [(name, value) for name, value in scope["headers"] if name == b"host"]
        await self.app({**scope, "query_string": b"", "headers": host}, receive, sending)


def called(name: str) -> str:
    """Returns the script of an event, which calls a function of `page/` with the values of parts.

    Args:
        name: Of a file without its end, and of what it exports.
    """
    file, _, function = name.partition(".")
    url = f'new URL("{file}.js", document.baseURI)'
    return f"(...given) => import({url}).then((page) => page.{function}(...given))"


def blocks() -> Any:
    """Returns the page, as `gr.Blocks`; what it says of the model is asked for when it opens."""
    with gr.Blocks(title="jvdm", analytics_enabled=False, fill_width=True) as page:
        fixed("<header><h1>jvdm</h1><p id=about></p></header><p id=refused role=alert></p>")
        with gr.Tabs(visible="hidden", elem_id="tabs") as tabs:
            with gr.Tab("Stream", render_children=True), gr.Row():
                streamed = stream()
            with gr.Tab("Gallery", render_children=True):
                compared = gallery()
        page.load(None, None, [tabs, *streamed, *compared], js=called("page.opened"))
    return page


def stream() -> list[Any]:
    """Adds the page that streams.

    Returns:
        Parts that `opened` fills.
    """
    with gr.Column(scale=1, min_width=300):
        prompt = gr.Textbox(EXAMPLE, label="What is to be seen", elem_id="prompt", max_lines=1)
        with gr.Row():
            seconds = number("Seconds", "seconds", minimum=1)
            seed = number("Seed", "seed", minimum=0, maximum=MOST_SEED, placeholder="drawn")
            steps = number("Steps", "steps", minimum=1)
            guidance = number("Guidance", "guidance", minimum=1, maximum=20, step=0.1)
        with gr.Row():
            system = choice("System", "system", ("plain", "plain"))
            attention = choice("Attention", "attention", ("usual", ""))
            density = number("Density", "density", minimum=0.01, maximum=1, step=0.01)
        fixed(FIRST_FRAME)
        with gr.Row():
            start = gr.Button("Start", elem_id="start", variant="primary", min_width=90)
            change = gr.Button(
                "Change the prompt", elem_id="change", interactive=False, min_width=90
            )
            cancel = gr.Button("Cancel", elem_id="cancel", interactive=False, min_width=90)
    with gr.Column(scale=1, min_width=300):
        fixed(PLAYER)
        faster = gr.Button("Begin again, faster", elem_id="faster", elem_classes="closed")
        fixed(SAID)
    with gr.Column(scale=1, min_width=300):
        fixed(DRAWN)
    asked = [prompt, seconds, seed, steps, guidance, system, attention, density]
    for event in (start.click, prompt.submit):
        event(None, asked, None, js=called("stream.start"))
    change.click(None, prompt, None, js=called("stream.change"))
    cancel.click(None, None, None, js=called("stream.cancel"))
    faster.click(None, asked, [steps, guidance], js=called("stream.faster"))
    return [*asked, faster]


def gallery() -> list[Any]:
    """Adds the page that compares systems.

    Returns:
        Parts that `opened` fills.
    """
    with gr.Row():
        same = gr.Textbox(EXAMPLE, label="What is to be seen", elem_id="same", max_lines=1, scale=4)
        seed = gr.Number(
            0, label="Seed", elem_id="same-seed", minimum=0, maximum=MOST_SEED, min_width=90
        )
    label = "Systems, all with this prompt and seed"
    systems = gr.CheckboxGroup([], label=label, elem_id="systems")
    with gr.Row():
        make = gr.Button("Make", elem_id="make", variant="primary")
        stop = gr.Button("Cancel", elem_id="stop", interactive=False)
    fixed("<p id=gallery-error role=alert></p><div id=cards></div>")
    make.click(None, [same, seed, systems], None, js=called("gallery.make"))
    stop.click(None, None, None, js=called("gallery.stop"))
    return [same, systems]


def number(label: str, name: str, **more: Any) -> Any:
    """Adds a number, which may be left empty."""
    more.setdefault("placeholder", "usual")
    return gr.Number(label=label, elem_id=name, min_width=90, **more)


def choice(label: str, name: str, first: tuple[str, str]) -> Any:
    """Adds a choice, whose first is chosen; `opened` adds more."""
    return gr.Dropdown([first], value=first[1], label=label, elem_id=name, min_width=90)


def fixed(text: str) -> Any:
    """Adds what the scripts fill."""
    return gr.HTML(text, js_on_load=None)


FIRST_FRAME = """
<label id="drop">First frame: drop a picture here, or choose a file
  <input id="image" type="file" accept="image/*">
  <img id="shown" alt="" hidden>
</label>"""
PLAYER = """
<video id="video" muted playsinline controls></video>
<p id="state" role="status"></p>"""
SAID = """
<p id="error" role="alert"></p>
<ol id="told"></ol>
<ul id="notes"></ul>
<p id="save" hidden><a id="film" download="stream.mp4">Save the film</a></p>"""
DRAWN = """
<figure>
  <canvas id="matrix" width="480" height="320"></canvas>
  <figcaption>Timestep matrix: one row per call of the network, one column per latent frame.
    Dark is noise, light is finished. <span id="levels"></span></figcaption>
</figure>
<figure>
  <canvas id="attended" width="480" height="160"></canvas>
  <figcaption>Share of attention that was computed, chunk after chunk, and layer by layer in the
    last one. <span id="density-now"></span></figcaption>
</figure>"""
