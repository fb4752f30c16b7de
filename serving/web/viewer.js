/** One picture, large, with its settings and the actions on it. */

import { byId, copy, plural } from "./dom.js";
import { asCurl, asPython, fileName } from "./recipes.js";

const NAMES = {
  negative_prompt: "Negative prompt",
  guidance_scale: "Guidance",
  guidance_schedule: "Schedule",
  temperature: "Temperature",
  top_k: "Top-k",
  top_p: "Top-p",
  min_p: "Min-p",
  background: "Background",
};

export class Viewer {
  #gallery;
  #on;
  #picture = null;
  #rows = 2;
  #dialog = byId("viewer");
  #keep = byId("keep");

  /**
   * on: what the page does with a picture: reuse(picture), vary(picture), paint(picture), remove(picture), why(picture),
   * continueFrom(picture, keepRows, prompt), and start(), which returns {rows, prompt, n} for a continuation.
   */
  constructor({ gallery, on }) {
    this.#gallery = gallery;
    this.#on = on;
    byId("viewer-close").addEventListener("click", () => this.#dialog.close());
    byId("viewer-previous").addEventListener("click", () => this.#step(-1));
    byId("viewer-next").addEventListener("click", () => this.#step(1));
    byId("viewer-curl").addEventListener("click", (event) => copy(asCurl(this.#picture), event.currentTarget));
    byId("viewer-python").addEventListener("click", (event) => copy(asPython(this.#picture), event.currentTarget));
    byId("viewer-why").addEventListener("click", () => on.why(this.#picture));
    for (const name of ["reuse", "vary", "paint"]) {
      byId(`viewer-${name}`).addEventListener("click", () => this.#leave(() => on[name](this.#picture)));
    }
    byId("viewer-delete").addEventListener("click", () => this.#delete());
    this.#dialog.addEventListener("close", () => this.#gallery.focus(this.#picture));
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close(); // beside the box
    });
    this.#dialog.addEventListener("keydown", (event) => this.#onKey(event));
    this.#wireContinue();
  }

  open(picture) {
    const { rows, prompt, n } = this.#on.start();
    this.#rows = rows;
    this.#keep.max = rows - 1;
    this.#setKeep(Math.ceil(rows / 2));
    byId("continue").open = false;
    byId("continue-prompt").value = prompt || picture.fields.prompt || "";
    byId("continue-hint").textContent = `${plural(n, "picture")}, with the form's seed and settings.`;
    this.#show(picture);
    this.#dialog.showModal();
  }

  /** Shows the picture's place after the gallery has changed; closes if the picture is not there any more. */
  refresh() {
    if (!this.#dialog.open) return;
    if (this.#gallery.pictures.includes(this.#picture)) this.#show(this.#picture);
    else this.#dialog.close();
  }

  #show(picture) {
    const { pictures } = this.#gallery;
    const place = pictures.indexOf(picture);
    this.#picture = picture;
    byId("viewer-image").src = this.#gallery.url(picture);
    byId("viewer-image").classList.toggle("transparent", picture.background === "transparent");
    byId("viewer-image").alt = picture.fields.prompt || "Picture without a prompt";
    byId("viewer-prompt").textContent = picture.fields.prompt || "No prompt";
    byId("viewer-place").textContent = `${place + 1} of ${pictures.length}`;
    byId("viewer-previous").disabled = place === 0;
    byId("viewer-next").disabled = place === pictures.length - 1;
    byId("viewer-facts").replaceChildren(...facts(picture).flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
    const download = byId("viewer-download");
    download.href = this.#gallery.url(picture);
    download.download = fileName(picture);
  }

  #step(by) {
    const { pictures } = this.#gallery;
    const next = pictures[pictures.indexOf(this.#picture) + by];
    if (next) this.#show(next);
  }

  #onKey(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && !event.target.closest("input, textarea")) this.#step(by);
  }

  /** Closes first: what comes next may move the focus. */
  #leave(then) {
    this.#dialog.addEventListener("close", then, { once: true });
    this.#dialog.close();
  }

  #delete() {
    const { pictures } = this.#gallery;
    const place = pictures.indexOf(this.#picture);
    const neighbour = pictures[place + 1] ?? pictures[place - 1];
    this.#leave(async () => {
      await this.#on.remove(this.#picture);
      this.#gallery.focus(neighbour);
    });
  }

  #wireContinue() {
    const details = byId("continue");
    const stage = byId("stage");
    const choose = (event) => {
      const { top, height } = stage.getBoundingClientRect();
      this.#setKeep(Math.round(((event.clientY - top) / height) * this.#rows));
    };
    details.addEventListener("toggle", () => {
      stage.classList.toggle("cutting", details.open);
      if (details.open) this.#dialog.scrollTop = 0;
    });
    this.#keep.addEventListener("input", () => this.#setKeep(this.#keep.valueAsNumber));
    stage.addEventListener("pointerdown", (event) => {
      if (!details.open) return;
      event.preventDefault();
      stage.setPointerCapture(event.pointerId);
      choose(event);
    });
    stage.addEventListener("pointermove", (event) => {
      if (stage.hasPointerCapture(event.pointerId)) choose(event);
    });
    byId("continue-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const prompt = byId("continue-prompt").value.trim();
      this.#leave(() => this.#on.continueFrom(this.#picture, this.#keep.valueAsNumber, prompt));
    });
  }

  #setKeep(rows) {
    this.#keep.value = Math.min(this.#rows - 1, Math.max(1, rows));
    byId("stage").style.setProperty("--kept", `${(this.#keep.valueAsNumber / this.#rows) * 100}%`);
    byId("keep-words").textContent = `Keep the upper ${this.#keep.value} of ${this.#rows} rows`;
  }
}

function facts(picture) {
  const { fields, seed, index, translation, ranking, size, started, seconds, endpoint, source } = picture;
  const rows = [
    ["Drawn as", translation?.drawn_prompt],
    ["Negative as", translation?.drawn_negative_prompt],
    ["Seed", String(seed)],
    ["Index", String(index)],
    ["Score", ranking && `${ranking.score.toFixed(3)} by ${ranking.judge}`],
    ["Rank", ranking && `${ranking.rank} of ${ranking.candidates}`],
    ["Model", fields.model],
    ["Size", size?.replace("x", " × ")],
    ...Object.entries(NAMES).map(([name, label]) => [label, fields[name]?.toString()]),
    ["From", endpoint !== "generations" && source ? from(fields, source) : null],
    ["Drawn", new Date(started).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })],
    ["Took", seconds === null ? null : `${seconds.toFixed(1)} s`],
  ];
  return rows.filter(([, value]) => value);
}

/** What of another picture was kept. */
function from({ keep_rows: rows }, source) {
  return rows === undefined ? `what is not painted of ${source}` : `${rows} rows of ${source}`;
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}
