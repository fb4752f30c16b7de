/** One request, from pressing Draw to its last picture: its status line, its tiles, cancelling and retrying. */

import { cancel, draw, ServiceError } from "./api.js";
import { announce, byId, duration, fromTemplate, plural } from "./dom.js";

/** Most previews of each picture: decoding one takes the service as long as drawing two codes. */
const MAX_PREVIEWS = 4;
/** How long cancelling waits for the service's response before it closes the stream. */
const CANCEL_PATIENCE_MS = 1000;

/**
 * Draws a job and resolves when it is over, however it ends.
 *
 * job: {endpoint, fields, rows, image, source}: the service's fields with n and seed; rows of codes of the model,
 * which has as many previews at most; for edits and variations the picture that is sent, and its file name.
 * gallery: where the pictures go. onRefused: called with a `ServiceError` when the service refuses, and with the job.
 */
export async function runJob(job, { gallery, onRefused }) {
  clearEnded();
  const line = new Line(job, () => runJob(job, { gallery, onRefused }));
  const tiles = gallery.begin(job.fields.n, job.rows);
  const started = Date.now();
  let numDone = 0;
  tiles.forEach((tile, i) => {
    const name = `Picture ${i + 1} of ${tiles.length}`;
    tile.querySelector("progress").setAttribute("aria-label", name);
    tile.querySelector("img").alt = `${name}, while it is drawn`;
  });
  tiles[0].scrollIntoView({ block: "nearest" });
  try {
    const fields = { ...job.fields, stream: true, partial_images: Math.min(MAX_PREVIEWS, job.rows) };
    const { endpoint, image } = job;
    for await (const event of draw(endpoint, { fields, image, signal: line.signal, onStart: (start) => line.accept(start) })) {
      const tile = tiles[event.image_index];
      if (event.type.endsWith(".partial_image")) {
        line.draw();
        showPreview(tile, event);
      } else if (event.type.endsWith(".completed")) {
        numDone++;
        await gallery.add(pictureOf(job, event, started), tile);
        if (numDone < tiles.length) announce(`Picture ${event.image_index + 1} of ${tiles.length} is done`);
      }
    }
    if (line.cancelled || numDone < tiles.length) throw new ServiceError(0, { message: "The connection ended before all pictures were done." });
    line.finish(plural(numDone, "picture"), `in ${((Date.now() - started) / 1000).toFixed(1)} s`);
  } catch (error) {
    if (line.cancelled) {
      line.finish("Cancelled.", numDone ? `${numDone} of ${plural(tiles.length, "picture")} had been done.` : "");
    } else if (error instanceof ServiceError) {
      line.fail(error);
      onRefused(error, job);
    } else {
      line.fail({ title: "Something went wrong in this page.", detail: error.message, retryAfter: null });
      throw error;
    }
  } finally {
    gallery.end(tiles);
  }
}

function showPreview(tile, { b64_json, output_format, background, codes_done, num_codes }) {
  const image = tile.querySelector("img");
  image.classList.toggle("transparent", background === "transparent");
  image.src = `data:image/${output_format};base64,${b64_json}`;
  image.hidden = false;
  tile.querySelector("progress").value = codes_done / num_codes;
}

/** The record of a finished picture: everything needed to show it, to describe it and to draw it again. */
function pictureOf(job, event, started) {
  const { n, seed, first_index, ...fields } = job.fields;
  const bytes = Uint8Array.from(atob(event.b64_json), (character) => character.charCodeAt(0));
  return {
    started,
    endpoint: job.endpoint,
    fields,
    seed: event.seed ?? seed,
    index: event.index ?? (first_index ?? 0) + event.image_index,
    size: event.size,
    background: event.background ?? "opaque",
    seconds: event.timing?.total ?? null,
    source: job.source ?? null,
    blob: new Blob([bytes], { type: `image/${event.output_format}` }),
  };
}

/** Removes the lines of requests that have ended. */
function clearEnded() {
  for (const ended of byId("requests").querySelectorAll(".ended")) ended.remove();
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

  constructor(job, retry) {
    const { prompt, n } = job.fields;
    this.#element.setAttribute("aria-label", `Drawing ${plural(n, "picture")}: ${prompt}`);
    this.#button("cancel").addEventListener("click", () => this.#cancel());
    this.#button("retry").addEventListener("click", () => {
      byId("draw").focus();
      retry();
    });
    this.#button("dismiss").addEventListener("click", () => {
      this.#element.remove();
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

  fail({ status, title, detail, retryAfter }) {
    this.#end();
    this.#element.classList.add("failed");
    this.#button("retry").hidden = status === 400;
    this.#say(title, detail);
    const until = retryAfter === null ? "" : `Try again in ${duration(retryAfter)}.`;
    announce(`${title} ${detail} ${until}`, { urgent: true });
    if (retryAfter) this.#countDown(retryAfter);
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
    const left = this.#estimate === null ? null : this.#estimate - (Date.now() - this.#accepted) / 1000;
    const time = left === null ? "" : left > 0.5 ? `about ${duration(left)} left` : "any moment now";
    const waiting = this.#ahead > 0 ? `Waiting: ${plural(this.#ahead, "picture")} ahead` : "Starting";
    const titles = { waiting, drawing: "Drawing", cancelled: "Cancelling" };
    this.#say(titles[this.#state], this.#state === "cancelled" ? "" : time);
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
  }

  #say(title, detail) {
    this.#element.querySelector("strong").textContent = title;
    this.#element.querySelector(".quiet").textContent = detail;
  }

  #button(action) {
    return this.#element.querySelector(`[data-action=${action}]`);
  }
}
