# Licensed under the Apache License, Version 2.0.
"""The page itself: what stands where, and what happens on which event."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import gradio as gr
from gradio.components import Component
from starlette.middleware import Middleware

from modeling_tier import TierZeroShotPipeline

from . import mcp_tools, rendering
from .answers import (
    COSINE,
    FINDINGS,
    MAP_KINDS,
    MAX_FINDING_LENGTH,
    MAX_FINDINGS,
    MAX_SENTENCE_LENGTH,
    SENTENCE,
    Answers,
    Picture,
    describe_model,
    draw_pictures,
    read_findings,
    read_upload,
    read_words,
    split_findings,
)
from .api import Endpoints
from .hardening import harden
from .painting import BY_VALUE, STRETCHED, archive, data_uri
from .sessions import Session, Sessions
from .theme import theme
from .uploads import MAX_UPLOAD_BYTES, Upload, UploadMiddleware, Uploads, file_chooser
from .zero_gpu import move_to_gpu, on_gpu


UNSPLIT = "the whole sentence"
MAX_QUEUED_EVENTS = 100
CONCURRENCY = "models"  # of all events that compute: one at a time, whoever asks

_SET_STRENGTH = "value => { document.documentElement.style.setProperty('--tier-strength', value / 100); }"

# On a narrow screen the answers are far below the button that asks for them.
_SCROLL_TO_SCORES = """message => {
    if (!message && innerWidth < 700) document.getElementById("tier-scores-title").scrollIntoView();
}"""

_DOWNLOAD = """content => {
    if (!content) return;
    const link = document.createElement("a");
    link.href = content;
    link.download = "tier-result.zip";
    link.click();
}"""


class Asked(NamedTuple):
    """What a user asks of a picture: the values of the components, in the order in which events hand them on."""

    findings: str
    sentence: str
    colours: str = BY_VALUE
    kind: str = COSINE


class Handlers:
    """
    What happens on each event of a page. The methods return new values of the components that `_connect` names; a
    ValueError is shown on the page.

    Args:
        models: pipelines by name.
        sessions: what the page remembers of its windows.
    """

    def __init__(self, models: dict[str, TierZeroShotPipeline], sessions: Sessions):
        self.models, self.sessions, self.drawings = models, sessions, draw_pictures()

        # Functions of their own, whose arguments have no model in them: see zero_gpu.py.
        def findings_of(picture: Picture, findings: list[str], kind: str) -> Answers:
            return read_findings(models, picture, findings, kind)

        def words_of(picture: Picture, sentence: str, kind: str) -> Answers:
            return read_words(models, picture, sentence, kind)

        self.read_findings, self.read_words = findings_of, words_of

    def use_gpu(self) -> None:
        """Compute on a GPU from here on, where this is ZeroGPU."""
        move_to_gpu(self.models)
        self.read_findings, self.read_words = on_gpu(self.read_findings), on_gpu(self.read_words)

    def begin(self, request: gr.Request) -> None:
        """A window was opened: it shows the first drawing."""
        self.sessions.put(request.session_hash, Session(None, *self.first))

    def end(self, request: gr.Request) -> None:
        """A window was closed."""
        self.sessions.forget(request.session_hash)

    def show_first(self) -> tuple:
        """What every window begins with."""
        session = Session()
        shown = self._look(session, self.drawings[0], Asked("\n".join(FINDINGS), SENTENCE))
        self.first = session.findings, session.words
        return shown

    def choose(self, session: Session, drawing: int, *asked: str) -> tuple:
        picture = self.drawings[drawing]
        shown = self._look(session, picture, Asked(*asked))
        session.own = None
        return rendering.preview(picture), *shown

    def take(self, session: Session, upload: Upload | None, *asked: str) -> tuple:
        picture = read_upload(upload)
        shown = self._look(session, picture, Asked(*asked))
        session.own = picture
        return None, rendering.preview(picture), *shown

    def read(self, session: Session, drawing: int | None, *asked: str) -> tuple:
        return self._look_findings(session, self._current(session, drawing), Asked(*asked))

    def split(self, session: Session, drawing: int | None, *asked: str) -> tuple:
        return self._look_words(session, self._current(session, drawing), Asked(*asked))

    def switch_kind(self, session: Session, word: int, colours: str, kind: str) -> tuple:
        """What is shown, by maps of another kind: the models look again."""
        _check_kept(session)
        findings, words = session.findings, session.words
        session.findings = self.read_findings(findings.picture, [row.text for row in findings.rows], kind)
        session.words = self.read_words(words.picture, words.rows[0].text, kind)
        return self.recolour(session, word, colours)

    def switch_word(self, session: Session, colours: str, word: int) -> tuple:
        _check_kept(session)
        return (rendering.maps(session.words, colours, word),)

    def recolour(self, session: Session, word: int, colours: str) -> tuple:
        _check_kept(session)
        return rendering.maps(session.findings, colours), rendering.maps(session.words, colours, word)

    def pack(self, session: Session, colours: str) -> tuple:
        _check_kept(session)
        return (data_uri(archive(self.models, session.findings, session.words, colours), "application/zip"),)

    def _current(self, session: Session, drawing: int | None) -> Picture:
        if drawing is None and session.own is None:
            raise ValueError("The picture is no longer kept. Choose it again, or choose a drawing.")
        return session.own if drawing is None else self.drawings[drawing]

    def _look(self, session: Session, picture: Picture, asked: Asked) -> tuple:
        return *self._look_findings(session, picture, asked), *self._look_words(session, picture, asked)

    def _look_findings(self, session: Session, picture: Picture, asked: Asked) -> tuple:
        answers = session.findings = self.read_findings(picture, split_findings(asked.findings), asked.kind)
        status = rendering.status(answers, len(self.models))
        return status, rendering.scores(answers, list(self.models)), rendering.maps(answers, asked.colours)

    def _look_words(self, session: Session, picture: Picture, asked: Asked) -> tuple:
        answers = session.words = self.read_words(picture, asked.sentence, asked.kind)
        choices = [(row.text if i else UNSPLIT, i) for i, row in enumerate(answers.rows)]
        return gr.Radio(choices=choices, value=0), rendering.maps(answers, asked.colours, 0)


def _check_kept(session: Session) -> None:
    if session.findings is None or session.words is None:
        raise ValueError("These results are no longer kept. Read the radiograph again.")


def build_page(models: dict[str, TierZeroShotPipeline]) -> gr.Blocks:
    """
    The page, with the first drawing already read. Start it by [`launch`].

    Args:
        models: as [`load_models`] gives them.

    Returns:
        the page; its `uploads` and `sessions` are all that it keeps of its users.
    """
    uploads, sessions = Uploads(), Sessions()
    handlers = Handlers(models, sessions)
    first = handlers.show_first()
    described = {label: describe_model(pipeline) for label, pipeline in models.items()}
    handlers.use_gpu()
    with _blocks() as page:
        gr.HTML(rendering.head())
        alert = gr.HTML(js_on_load="element.setAttribute('role', 'alert')", elem_id="tier-alert")
        with gr.Row(elem_id="tier-columns"):
            with gr.Column(scale=3, min_width=300, elem_id="tier-questions"):
                questions = _questions(handlers.drawings, uploads)
            with gr.Column(scale=8, min_width=300, elem_id="tier-answers"):
                answers = _answers(first, described)
        gr.HTML(rendering.about(described))
        _connect(page, handlers, questions, answers, alert)
        endpoints = Endpoints(handlers.read_findings, uploads)
        for endpoint in (endpoints.scores, endpoints.overlay):
            gr.api(endpoint, concurrency_id=CONCURRENCY)
    page.uploads, page.sessions = uploads, sessions
    return page


def error_page(message: str) -> gr.Blocks:
    """A page that says why there is none."""
    with _blocks() as page:
        gr.HTML(rendering.head() + rendering.error(message))
    page.uploads, page.sessions = Uploads(), Sessions()
    return page


def launch(page: gr.Blocks, **options) -> tuple:
    """
    Start a page of [`build_page`], and return as soon as it answers. Where the package `mcp` is installed, programs
    can call its endpoints by the Model Context Protocol, too, at `gradio_api/mcp/`.

    Args:
        page: the page.
        **options: of `gr.Blocks.launch`.

    Returns:
        its application, its address, and None.
    """
    harden(page, mcp_tools.can_serve())
    page.queue(max_size=MAX_QUEUED_EVENTS, api_open=False)  # closed: routes that would pass the queue
    launched = page.launch(
        theme=theme(),
        css=rendering.asset("style.css"),
        head=f"<script>\n{rendering.asset('script.js')}</script>",
        footer_links=[],
        run_history=False,  # it would keep pictures and findings in the browser
        ssr_mode=False,
        share=False,
        max_file_size=MAX_UPLOAD_BYTES,  # so that the browser refuses a larger file before it sends it
        app_kwargs={"middleware": [Middleware(UploadMiddleware, uploads=page.uploads)]},
        quiet=True,  # it would advise to share the page with the world
        prevent_thread_lock=True,
        mcp_server=mcp_tools.can_serve(),
        **options,
    )
    mcp_tools.set_form_of_answers(page)
    return launched


def _blocks() -> gr.Blocks:
    return gr.Blocks(title="TIER: where the words point", analytics_enabled=False)


def _questions(drawings: list[Picture], uploads: Uploads) -> SimpleNamespace:
    """The left column: a picture and findings."""
    gr.HTML("<h2>Radiograph</h2>")
    drawing = gr.Radio(
        [(picture.name, i) for i, picture in enumerate(drawings)],
        value=0,
        label="Drawn by code, of no clinical meaning",
        elem_id="tier-drawings",
    )
    file = file_chooser(uploads, label="Your own: PNG, JPEG, TIFF or DICOM", height=120, elem_id="tier-file")
    preview = gr.HTML(rendering.preview(drawings[0]), elem_id="tier-preview")
    gr.HTML("<h2>Findings</h2>")
    findings = gr.Textbox(
        "\n".join(FINDINGS),
        lines=6,
        max_lines=MAX_FINDINGS,
        max_length=MAX_FINDINGS * MAX_FINDING_LENGTH,
        label="One finding on each line",
        info="Each is a question: “left pleural effusion.” against “No left pleural effusion.”",
        elem_id="tier-findings",
    )
    run = gr.Button("Read the radiograph", variant="primary", elem_id="tier-run")
    return SimpleNamespace(drawing=drawing, file=file, preview=preview, findings=findings, run=run)


def _answers(first: tuple, described: dict[str, dict]) -> SimpleNamespace:
    """
    The right column: scores, maps, and the maps of single words.

    Args:
        first: what they begin with.
        described: each model, as [`describe_model`] gives it.
    """
    first_status, first_scores, first_maps, first_word, first_word_maps = first
    gr.HTML('<h2 id="tier-scores-title">Scores</h2>')
    status = gr.HTML(first_status, js_on_load="element.setAttribute('role', 'status')", elem_id="tier-status")
    scores = gr.HTML(first_scores, elem_id="tier-scores")
    gr.HTML("<h2>Maps</h2>")
    kind = gr.Radio(
        [(label, name) for name, label in MAP_KINDS.items()],
        value=COSINE,
        label="What the maps show",
        info=rendering.kinds_explained(described),
        interactive=any(about["no_contributions"] is None for about in described.values()),
        elem_id="tier-kind",
    )
    with gr.Row():
        strength = gr.Slider(
            0, 100, 70, step=5, label="Strength of the colours, %", min_width=260, elem_id="tier-strength"
        )
        colours = gr.Radio(
            [BY_VALUE, STRETCHED], value=BY_VALUE, label="Colours", min_width=260, elem_id="tier-colours"
        )
    maps = gr.HTML(first_maps, elem_id="tier-maps")
    gr.HTML("<h2>Single words</h2>")
    with gr.Row(equal_height=True):
        sentence = gr.Textbox(
            SENTENCE,
            label="A sentence",
            max_length=MAX_SENTENCE_LENGTH,
            scale=4,
            min_width=260,
            elem_id="tier-sentence",
        )
        split = gr.Button("Show its words", scale=1, min_width=140, elem_id="tier-split")
    word = gr.Radio(first_word.choices, value=first_word.value, label="Show the map of", elem_id="tier-words")
    word_maps = gr.HTML(first_word_maps, elem_id="tier-word-maps")
    download = gr.Button("Download these results (zip)", elem_id="tier-download")
    packed = gr.Textbox(visible="hidden")
    return SimpleNamespace(**{name: value for name, value in locals().items() if isinstance(value, Component)})


def _connect(
    page: gr.Blocks, handlers: Handlers, questions: SimpleNamespace, answers: SimpleNamespace, alert: gr.HTML
) -> None:
    """Which event calls which handler, with the values of which components, and what it changes."""
    q, a = questions, answers
    finding_outputs, word_outputs = [a.status, a.scores, a.maps], [a.word, a.word_maps]
    asked = [q.findings, a.sentence, a.colours, a.kind]

    def on(events, handler: Callable, inputs: list, outputs: list):
        return gr.on(
            events,
            _guarded(handlers.sessions, handler, len(outputs)),
            inputs,
            [*outputs, alert],
            show_progress="minimal",
            api_name=handler.__name__,
            api_visibility="private",
            concurrency_id=CONCURRENCY,
        )

    on(q.drawing.input, handlers.choose, [q.drawing, *asked], [q.preview, *finding_outputs, *word_outputs])
    taken = on(q.file.upload, handlers.take, [q.file, *asked], [q.drawing, q.preview, *finding_outputs, *word_outputs])
    taken.then(lambda: None, None, q.file, api_visibility="private")
    read = on(q.run.click, handlers.read, [q.drawing, *asked], finding_outputs)
    read.then(None, alert, None, js=_SCROLL_TO_SCORES)
    on([a.split.click, a.sentence.submit], handlers.split, [q.drawing, *asked], word_outputs)
    on(a.word.input, handlers.switch_word, [a.colours, a.word], [a.word_maps])
    on(a.colours.input, handlers.recolour, [a.word, a.colours], [a.maps, a.word_maps])
    on(a.kind.input, handlers.switch_kind, [a.word, a.colours, a.kind], [a.maps, a.word_maps])
    packed = on(a.download.click, handlers.pack, [a.colours], [a.packed])
    packed.then(None, a.packed, None, js=_DOWNLOAD)
    a.strength.input(None, a.strength, None, js=_SET_STRENGTH)
    page.load(handlers.begin, None, None, queue=False, api_visibility="private")
    page.unload(handlers.end)


def _guarded(sessions: Sessions, handler: Callable, num_outputs: int) -> Callable:
    """
    The handler with the session of the window that asks. A ValueError is read on the page, and leaves everything
    else as it is.
    """

    def guarded(request: gr.Request, *arguments):
        before = sessions.get(request.session_hash)
        session = Session(before.own, before.findings, before.words)
        try:
            outputs = handler(session, *arguments)
        except ValueError as error:
            return *[gr.skip()] * num_outputs, rendering.alert(str(error))
        sessions.put(request.session_hash, session)
        return *outputs, ""

    return guarded
