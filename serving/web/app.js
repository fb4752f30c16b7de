/** The page: puts the form, the gallery, the viewer and the service together. */

import { apiKey, listModels, ServiceError } from "./api.js";
import { announce, byId, toast } from "./dom.js";
import { runJob } from "./drawing.js";
import { Form, randomSeed } from "./form.js";
import { Gallery } from "./gallery.js";
import { Painter } from "./painter.js";
import { fileName, recipe } from "./recipes.js";
import { openStore } from "./store.js";
import { Viewer } from "./viewer.js";
import { Why } from "./why.js";

// Not awaited before everything is wired: who types at once is heard.
const store = openStore(showChanges);
const gallery = new Gallery({ store, onOpen: (picture) => viewer.open(picture) });
const painter = new Painter();
const why = new Why();
const form = new Form({ onDraw: drawForm, onPaint: paint });
const viewer = new Viewer({
  gallery,
  on: { reuse, vary, why: (picture) => why.open(picture), paint: (picture) => paint({ image: picture.blob, name: fileName(picture) }), continueFrom, remove, start: () => ({ rows: form.model?.rows ?? 8, prompt: form.prompt, n: form.num }) },
});

/** Another tab has changed the pictures. */
async function showChanges() {
  await gallery.load();
  viewer.refresh();
}

async function drawForm() {
  if (!(await haveModels())) return;
  if (!form.source) return run({ endpoint: "generations", fields: form.read() });
  const { endpoint, image, name, keepRows, mask } = form.source;
  run({ endpoint, fields: { ...form.read(), ...(!mask && { keep_rows: keepRows }) }, image, mask, source: name });
}

/** Keeps the upper half of a picture, with its own prompt and settings, and draws the rest with a new seed. */
async function vary(picture) {
  if (!(await haveModels())) return;
  const { id: model, rows, transparency } = form.card(picture.fields.model);
  const { background, ...fields } = picture.fields;
  drawFrom("variations", picture, {
    ...fields,
    ...(transparency && background && { background }),
    model,
    keep_rows: Math.max(1, Math.floor(rows / 2)),
    n: 1,
    seed: randomSeed(),
  });
}

/** Keeps rows of a picture from the top, and draws the rest with the form's settings. */
async function continueFrom(picture, keepRows, prompt) {
  if (!(await haveModels())) return;
  drawFrom("edits", picture, { ...form.read(), prompt, keep_rows: keepRows });
}

/** Has a part of a picture painted, which the form then draws anew. */
async function paint({ image, name, mask }) {
  if (!(await haveModels())) return;
  const [width, height] = form.model.size.split("x").map(Number);
  const onDone = (painted) => {
    form.source = { endpoint: "edits", ...painted };
    byId("prompt").focus();
    announce("The form draws the painted part of this picture anew");
  };
  try {
    await painter.open({ image, name, mask, shape: { width, height }, onDone });
  } catch {
    toast(`${name} cannot be read as a picture: take a PNG, JPEG or WebP file.`);
  }
}

function drawFrom(endpoint, picture, fields) {
  run({ endpoint, fields, image: picture.blob, source: fileName(picture) });
}

function run(job) {
  const { rows } = form.card(job.fields.model);
  runJob({ rows, ...job }, { gallery, onRefused: refused });
}

/** Fills the form, so that Draw gives this picture again: with the picture that it continues, if it continues one. */
async function reuse(picture) {
  if (!(await haveModels())) return;
  const { endpoint, source, sourceImage, sourceMask, fields } = picture;
  if (form.card(fields.model).id !== fields.model) {
    toast(`The model ${fields.model} is not served any more: another one would draw another picture.`);
    return;
  }
  const continues = endpoint !== "generations";
  if (continues && !sourceImage) {
    toast(`This picture continues ${source}, which this browser did not keep: its settings alone would draw another one.`);
    return;
  }
  form.fill({ first_index: 0, ...recipe(picture) });
  form.source = continues ? { endpoint, image: sourceImage, name: source, keepRows: fields.keep_rows, mask: sourceMask ?? null } : null;
  announce("The form has the settings of this picture");
}

async function remove(picture) {
  await gallery.remove(picture);
  const undo = async () => {
    await gallery.add(picture);
    gallery.focus(picture);
  };
  toast("Picture deleted", { name: "Undo", act: undo });
}

/** Shows where an error can be mended: the field that it names, or the form for the key. */
function refused(error, job) {
  if (error.status === 401) {
    showKeyForm(true);
    showKeyError(Boolean(apiKey.value));
  } else if (error.status === 400 && job?.endpoint === "generations") form.point(error.param);
}

/** Whether the models are known. Requests them if not, and shows the error if that fails. */
async function haveModels() {
  return Boolean(form.model) || loadModels();
}

async function loadModels() {
  try {
    form.models = await listModels();
    return true;
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    refused(error);
    if (error.status !== 401) toast(`${error.title} ${error.detail}`, { name: "Try again", act: haveModels });
    return false;
  }
}

function showKeyForm(open) {
  byId("key-button").hidden = false;
  byId("key-button").setAttribute("aria-expanded", String(open));
  byId("key-form").hidden = !open;
  byId("key-forget").hidden = !apiKey.value;
  if (open) byId("key").focus();
}

function showKeyError(wrong) {
  byId("key-error").textContent = wrong ? "The service does not accept this key. Is it complete?" : "";
  byId("key").setAttribute("aria-invalid", String(wrong));
}

function wireKey() {
  byId("key-button").hidden = !apiKey.value;
  byId("key-button").addEventListener("click", () => showKeyForm(byId("key-form").hidden));
  byId("key").addEventListener("input", () => showKeyError(false));
  byId("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    apiKey.set(byId("key").value.trim());
    showKeyError(false);
    if (!(await loadModels())) return;
    showKeyForm(false);
    announce("The service accepts this key");
    byId("prompt").focus();
  });
  byId("key-forget").addEventListener("click", () => {
    apiKey.set("");
    byId("key").value = "";
    showKeyError(false);
    showKeyForm(false);
  });
}

function wireClear() {
  const dialog = byId("confirm");
  byId("clear").addEventListener("click", () => dialog.showModal());
  byId("confirm-no").addEventListener("click", () => dialog.close());
  byId("confirm-yes").addEventListener("click", async () => {
    dialog.close();
    await gallery.clear();
    gallery.focus(null);
    announce("All pictures are deleted");
  });
}

function wireShortcut() {
  const isMac = /Mac|iPhone|iPad/.test(navigator.platform);
  if (isMac) byId("draw-keys").textContent = "⌘ ↵";
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.repeat) return;
    const dialog = document.querySelector("dialog[open]");
    if (!dialog) form.element.requestSubmit();
    else if (byId("continue-form").contains(event.target)) byId("continue-form").requestSubmit();
  });
}

wireKey();
wireClear();
wireShortcut();
if (!(await store).lasting) byId("about-store").textContent = "This browser stores nothing: pictures are lost when this page is closed.";
await Promise.all([gallery.load(), haveModels()]);
