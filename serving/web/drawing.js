/** One request, from pressing Draw to its last picture: its status line, its tiles, cancelling and retrying. */

import { cancel, draw, ServiceError, tooLong } from "./api.js";
import { announce, byId, duration, fromTemplate, plural } from "./dom.js";

/** Most previews of each picture: decoding one takes the service as long as drawing two codes. */
const MAX_PREVIEWS = 4;
/** Said under pictures for which the service has a warning. */
const UNKNOWN = "The model knows no word of this prompt, so it drew something else: names that it knows are completed as you type.";
/** How long cancelling waits for the service's response before it closes the stream. */
const CANCEL_PATIENCE_MS = 1000;

/**
 * Draws a job and resolves when it is over, however it ends.
 *
 * job: {endpoint, fields, rows, image, source, mask}: the service's fields with n and seed; rows of codes of the model,
 * which has as many previews at most; for edits and variations the picture that is sent, its file name, and its mask if
 * one was painted.
 * gallery: where the pictures go. onRefused: called with a `ServiceError` when the service refuses, and with the job.
 */
export async function runJob(job, { gallery, onRefused }) {
  clearEnded();
  const tiles = gallery.begin(job.fields.n, job.rows);
  const line = new Line(job, { onRetry: () => runJob(job, { gallery, onRefused }), onGone: () => gallery.end(tiles) });
  const started = Date.now();
  let numDone = 0;
  let unknown = false;
  let kept = [];
  let candidates = null;
  tiles.forEach((tile, i) => {
    const name = `Picture ${i + 1} of ${tiles.length}`;
    tile.querySelector("progress").setAttribute("aria-label", name);
    tile.querySelector("img").alt = `${name}, while it is drawn`;
  });
  tiles[0].scrollIntoView({ block: "nearest" });
  try {
    const fields = { ...job.fields, stream: true, partial_images: Math.min(MAX_PREVIEWS, job.rows) };
    const { endpoint, image, mask } = job;
    for await (const event of draw(endpoint, { fields, image, mask, signal: line.signal, onStart: (start) => line.accept(start) })) {
      const tile = tiles[event.image_index];
      if (event.type.endsWith(".partial_image")) {
        line.draw();
        showPreview(tile, event, job.rows);
      } else if (event.type.endsWith(".completed")) {
        numDone++;
        kept = event.translation?.kept ?? [];
        unknown ||= (event.warnings?.length ?? 0) > (kept.length ? 1 : 0);
        candidates = event.candidates ?? null;
        await gallery.add(pictureOf(job, event, started), tile);
        if (numDone < tiles.length) announce(`Picture ${event.image_index + 1} of ${tiles.length} is done`);
      }
    }
    if (line.cancelled || numDone < tiles.length) throw new ServiceError(0, { message: "The connection ended before all pictures were done." });
    const took = `in ${((Date.now() - started) / 1000).toFixed(1)} s`;
    const best = candidates === null ? "" : `, best of ${candidates}`;
    const untranslated = kept.length ? `Kept as they are, since the translator does not know them: ${kept.join(", ")}.` : "";
    const notes = [untranslated, unknown ? UNKNOWN : ""].filter(Boolean);
    line.finish(`${plural(numDone, "picture")}${best}`, notes.length ? `${took}. ${notes.join(" ")}` : took);
  } catch (error) {
    if (!line.cancelled) gallery.interrupt(tiles);
    if (line.cancelled) {
      gallery.end(tiles);
      line.finish("Cancelled.", numDone ? `${numDone} of ${plural(tiles.length, "picture")} had been done.` : "");
    } else if (error instanceof ServiceError) {
      line.fail(error, tooLong(error, job.fields[error.param] ?? "") ?? error.detail);
      onRefused(error, job);
    } else {
      line.fail({ title: "Something went wrong in this page.", canRetry: true, retryAfter: null }, error.message);
      throw error;
    }
  }
}

function showPreview(tile, { b64_json, output_format, background, codes_done, num_codes, size }, rows) {
  const image = tile.querySelector("img");
  image.style.clipPath = drawnPart(codes_done, num_codes / rows, rows, size);
  image.classList.toggle("transparent", background === "transparent");
  image.src = `data:image/${output_format};base64,${b64_json}`;
  image.hidden = false;
  tile.querySelector("progress").value = codes_done / num_codes;
}

/** A CSS shape of the codes that are done, in reading order, in a square tile: what is to come would be a grey area. */
function drawnPart(numDone, columns, rows, size) {
  const [width, height] = size.split("x").map(Number);
  const longer = Math.max(width, height);
  const x = (share) => `${50 + 100 * (share - 0.5) * (width / longer)}%`;
  const y = (row) => `${50 + 100 * (row / rows - 0.5) * (height / longer)}%`;
  const row = Math.floor(numDone / columns);
  const reach = x((numDone % columns) / columns);
  const corners = [[x(0), y(0)], [x(1), y(0)], [x(1), y(row)], [reach, y(row)], [reach, y(row + 1)], [x(0), y(row + 1)]];
  return `polygon(${corners.map((corner) => corner.join(" ")).join(", ")})`;
}

/** The record of a finished picture: everything needed to show it, to describe it and to draw it again. */
function pictureOf(job, event, started) {
  const { n, seed, first_index, best_of, rerank, ...fields } = job.fields;
  const bytes = Uint8Array.from(atob(event.b64_json), (character) => character.charCodeAt(0));
  return {
    started,
    endpoint: job.endpoint,
    fields,
    seed: event.seed ?? seed,
    index: event.index ?? (first_index ?? 0) + event.image_index,
    ranking: event.rank ? { rank: event.rank, score: event.score, candidates: event.candidates, judge: event.clip ?? event.rerank } : null,
    translation: event.translation ?? null,
    size: event.size,
    background: event.background ?? "opaque",
    seconds: event.timing?.total ?? null,
    source: job.source ?? null,
    sourceImage: job.image ?? null,
    sourceMask: job.mask ?? null,
    blob: new Blob([bytes], { type: `image/${event.output_format}` }),
  };
}

/** Lines of requests that have ended. */
const endedLines = new Set();

function clearEnded() {
  for (const line of endedLines) line.remove();
}

/** The line above the gallery that shows the status of a request. */
class Line {
  #abort = new AbortController();
  #element = fromTemplate("request-template");
  #id = null;
  #estimate = null;
  #ahead = 0;
  #state = "sending";
  #accepted = 0;
  #timer;
  #onGone;

  /** onRetry: sends the request again. onGone: called when the line is removed. */
  constructor(job, { onRetry, onGone }) {
    this.#onGone = onGone;
    const { prompt, n } = job.fields;
    this.#element.setAttribute("aria-label", `Drawing ${plural(n, "picture")}: ${prompt}`);
    this.#button("cancel").addEventListener("click", () => this.#cancel());
    this.#button("retry").addEventListener("click", () => {
      byId("draw").focus();
      onRetry();
    });
    this.#button("dismiss").addEventListener("click", () => {
      this.remove();
      byId("draw").focus();
    });
    this.#say(`Sending: ${plural(n, "picture")}`, "");
    byId("requests").prepend(this.#element);
  }

  /** Whether the user has cancelled it. */
  get cancelled() {
    return this.#state === "cancelled";
  }

  get signal() {
    return this.#abort.signal;
  }

  /** The service took the request. */
  accept({ id, ahead, estimate }) {
    this.#id = id;
    this.#ahead = ahead ?? 0;
    this.#estimate = estimate;
    this.#accepted = Date.now();
    this.#state = "waiting";
    this.#timer = setInterval(() => this.#tick(), 1000);
    this.#tick();
    announce(this.#element.querySelector("p").textContent);
  }

  /** The first picture can be seen. */
  draw() {
    if (this.#state !== "waiting") return;
    this.#state = "drawing";
    this.#tick();
    announce("Drawing");
  }

  finish(title, detail) {
    this.#end();
    this.#say(title, detail);
    announce(`${title} ${detail}`);
  }

  fail({ title, canRetry, retryAfter }, detail) {
    this.#end();
    this.#element.classList.add("failed");
    this.#button("retry").hidden = !canRetry;
    this.#say(title, detail);
    const until = retryAfter === null ? "" : `Try again in ${duration(retryAfter)}.`;
    announce(`${title} ${detail} ${until}`, { urgent: true });
    if (retryAfter) this.#countDown(retryAfter);
  }

  remove() {
    endedLines.delete(this);
    this.#element.remove();
    this.#onGone();
  }

  /** Asks the service to stop, then closes the stream, which stops it too if the first did not get through. */
  async #cancel() {
    this.#state = "cancelled";
    this.#tick();
    const patience = new Promise((resolve) => setTimeout(resolve, CANCEL_PATIENCE_MS));
    if (this.#id) await Promise.race([cancel(this.#id), patience]);
    this.#abort.abort();
  }

  #tick() {
    const time = this.#estimate === null ? "" : this.#timeLeft(this.#estimate - (Date.now() - this.#accepted) / 1000);
    const waiting = this.#ahead > 0 ? `Waiting: ${plural(this.#ahead, "picture")} ahead` : "Starting";
    const titles = { waiting, drawing: "Drawing", cancelled: "Cancelling" };
    this.#say(titles[this.#state], this.#state === "cancelled" ? "" : time);
  }

  #timeLeft(seconds) {
    if (seconds <= 0) return "longer than estimated";
    return seconds > 0.5 || this.#state === "waiting" ? `about ${duration(seconds)} left` : "any moment now";
  }

  #countDown(seconds) {
    const retry = this.#button("retry");
    const until = Date.now() + seconds * 1000;
    const show = () => {
      const left = Math.ceil((until - Date.now()) / 1000);
      retry.disabled = left > 0;
      retry.textContent = left > 0 ? `Try again in ${duration(left)}` : "Try again";
      if (left > 0) return;
      clearInterval(this.#timer);
      announce("You can try again now");
    };
    this.#timer = setInterval(show, 250);
    show();
  }

  #end() {
    clearInterval(this.#timer);
    const [stop, dismiss] = [this.#button("cancel"), this.#button("dismiss")];
    const focused = document.activeElement === stop;
    stop.hidden = true;
    dismiss.hidden = false;
    if (focused) dismiss.focus();
    this.#element.classList.add("ended");
    endedLines.add(this);
  }

  #say(title, detail) {
    this.#element.querySelector("strong").textContent = title;
    this.#element.querySelector(".quiet").textContent = detail;
  }

  #button(action) {
    return this.#element.querySelector(`[data-action=${action}]`);
  }
}
