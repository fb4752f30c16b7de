/** A dialog to paint on a picture what is to be drawn anew: a brush, an eraser, and the mask that OpenAI's edits take. */

import { announce, byId } from "./dom.js";

/** Longest side of a picture that is sent as it is; a larger one is made smaller first, to this side. */
const MAX_SIDE = 512;
const COLOUR = "#0f6b63";
/** How far an arrow key moves the brush, as a share of the picture's width. */
const STEP = 1 / 32;
/** Least width of a line in pixels: it covers at least one of them by more than half, wherever it is. */
const MIN_WIDTH = 2;
/** Alpha from which a pixel is painted: the edge of a line covers some by less. */
const PAINTED = 128;

export class Painter {
  #dialog = byId("painter");
  #stage = byId("painter-stage");
  #canvas = byId("painter-canvas");
  #ink = byId("painter-canvas").getContext("2d", { willReadFrequently: true });
  #size = byId("brush-size");
  #place = { x: 0.5, y: 0.5 };
  #last = null;
  #picture = null;
  #onDone = null;

  constructor() {
    byId("painter-cancel").addEventListener("click", () => this.#dialog.close());
    byId("painter-close").addEventListener("click", () => this.#dialog.close());
    byId("painter-clear").addEventListener("click", () => {
      this.#ink.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
      this.#showUse();
      announce("Nothing is painted");
    });
    byId("painter-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#finish();
    });
    this.#dialog.addEventListener("close", () => URL.revokeObjectURL(byId("painter-image").src));
    this.#size.addEventListener("input", () => this.#showBrush());
    this.#canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    this.#canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) this.#canvas.addEventListener(end, () => this.#end());
    this.#canvas.addEventListener("keydown", (event) => this.#onKey(event));
  }

  /**
   * Opens on a picture. Rejects with an Error if it cannot be read.
   *
   * image: a Blob. name: of its file. mask: one that was painted before, or null. shape: {width, height} of the
   * model's pictures; the middle of another shape is taken. onDone: called with {image, name, mask}.
   */
  async open({ image, name, mask = null, shape, onDone }) {
    const { blob, width, height } = await fitted(image, shape);
    this.#picture = { image: blob, name };
    this.#onDone = onDone;
    Object.assign(this.#canvas, { width, height });
    this.#stage.style.setProperty("aspect-ratio", `${width} / ${height}`);
    byId("painter-image").src = URL.createObjectURL(blob);
    byId("painter-image").alt = name;
    if (mask) await this.#load(mask);
    this.#place = { x: 0.5, y: 0.5 };
    byId("brush-paint").checked = true;
    this.#dialog.showModal();
    this.#showBrush();
    this.#showUse();
  }

  async #load(mask) {
    this.#ink.globalCompositeOperation = "source-over";
    this.#ink.fillStyle = COLOUR;
    this.#ink.fillRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#ink.globalCompositeOperation = "destination-out";
    this.#ink.drawImage(await createImageBitmap(mask), 0, 0);
  }

  #begin(event) {
    if (event.button > 0) return;
    event.preventDefault();
    this.#canvas.setPointerCapture(event.pointerId);
    this.#canvas.focus();
    this.#point(event);
    this.#last = null;
    this.#stroke();
  }

  #move(event) {
    const painting = this.#canvas.hasPointerCapture(event.pointerId);
    // A fast hand moves far between two events; the browser keeps the points in between.
    for (const one of painting ? (event.getCoalescedEvents?.() ?? []) : []) {
      this.#point(one);
      this.#stroke();
    }
    this.#point(event);
    if (painting) this.#stroke();
  }

  #end() {
    this.#last = null;
    this.#showUse();
  }

  #point({ clientX, clientY }) {
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    this.#moveTo((clientX - left) / width, (clientY - top) / height);
  }

  #moveTo(x, y) {
    const within = (share) => Math.min(1, Math.max(0, share));
    this.#place = { x: within(x), y: within(y) };
    this.#showBrush();
  }

  /** Paints, or erases, from the last place of the brush to the present one. */
  #stroke() {
    const { width, height } = this.#canvas;
    const [x, y] = [this.#place.x * width, this.#place.y * height];
    const from = this.#last ?? { x, y };
    const ink = this.#ink;
    ink.globalCompositeOperation = byId("brush-erase").checked ? "destination-out" : "source-over";
    ink.strokeStyle = ink.fillStyle = COLOUR;
    ink.lineWidth = Math.max(MIN_WIDTH, this.#share * width);
    // A disc at each place, and a line between two of them: a line without length has no round ends in all browsers.
    ink.beginPath();
    ink.arc(x, y, ink.lineWidth / 2, 0, 2 * Math.PI);
    ink.fill();
    ink.beginPath();
    ink.moveTo(from.x, from.y);
    ink.lineTo(x, y);
    ink.stroke();
    this.#last = { x, y };
  }

  #onKey(event) {
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
    if (x !== undefined) {
      this.#moveTo(this.#place.x + x * STEP, this.#place.y + y * STEP);
      this.#last = null;
      if (event.shiftKey) this.#stroke();
    } else if (event.key === " ") {
      this.#last = null;
      this.#stroke();
      announce(`${byId("brush-erase").checked ? "Erased" : "Painted"} at ${this.#words}`);
    } else return;
    event.preventDefault();
    this.#showUse();
  }

  /** Diameter of the brush, as a share of the picture's width. */
  get #share() {
    return this.#size.valueAsNumber / 100;
  }

  get #words() {
    const percent = (share) => `${Math.round(100 * share)} %`;
    return `${percent(this.#place.x)} from the left, ${percent(this.#place.y)} from the top`;
  }

  #showBrush() {
    const brush = byId("brush");
    brush.style.setProperty("--x", `${100 * this.#place.x}%`);
    brush.style.setProperty("--y", `${100 * this.#place.y}%`);
    brush.style.setProperty("--size", `${100 * this.#share}%`);
    this.#size.setAttribute("aria-valuetext", `${this.#size.value} % of the picture's width`);
  }

  get #isPainted() {
    const { data } = this.#ink.getImageData(0, 0, this.#canvas.width, this.#canvas.height);
    return data.some((value, i) => i % 4 === 3 && value >= PAINTED);
  }

  #showUse() {
    byId("painter-use").disabled = !this.#isPainted;
  }

  /** The mask: opaque, and transparent where it is painted. */
  async #finish() {
    const { width, height } = this.#canvas;
    const pixels = this.#ink.getImageData(0, 0, width, height);
    for (let i = 3; i < pixels.data.length; i += 4) pixels.data[i] = pixels.data[i] < PAINTED ? 255 : 0;
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    const mask = await canvas.convertToBlob({ type: "image/png" });
    this.#dialog.close();
    this.#onDone({ ...this.#picture, mask });
  }
}

/** A picture as a file that the service takes as it is, upright, and its size: the middle in the model's shape, no
 * larger than needed. */
async function fitted(image, shape) {
  const bitmap = await createImageBitmap(image);
  const scale = Math.min(bitmap.width / shape.width, bitmap.height / shape.height);
  const [width, height] = [Math.round(scale * shape.width), Math.round(scale * shape.height)];
  const smaller = Math.min(1, MAX_SIDE / Math.max(width, height));
  const isSent = ["image/png", "image/jpeg", "image/webp"].includes(image.type);
  if (isSent && smaller === 1 && width === bitmap.width && height === bitmap.height) return { blob: image, width, height };
  const canvas = new OffscreenCanvas(Math.round(smaller * width), Math.round(smaller * height));
  const [left, top] = [(bitmap.width - width) / 2, (bitmap.height - height) / 2];
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, left, top, width, height, 0, 0, canvas.width, canvas.height);
  return { blob: await canvas.convertToBlob({ type: "image/png" }), width: canvas.width, height: canvas.height };
}
