/** The page: puts the form, the gallery, the viewer and the service together. */

import { apiKey, listModels, ServiceError } from "./api.js";
import { announce, byId, toast } from "./dom.js";
import { runJob } from "./drawing.js";
import { Form, randomSeed } from "./form.js";
import { Gallery } from "./gallery.js";
import { fileName, recipe } from "./recipes.js";
import { openStore } from "./store.js";
import { Viewer } from "./viewer.js";

const store = await openStore();
const gallery = new Gallery({ store, onOpen: (picture) => viewer.open(picture) });
const form = new Form({ onDraw: drawForm });
const viewer = new Viewer({
  gallery,
  on: { reuse, vary, continueFrom, remove, start: () => ({ rows: form.model?.rows ?? 8, prompt: form.prompt, n: form.num }) },
});

async function drawForm() {
  if (await haveModels()) run({ endpoint: "generations", fields: form.read() });
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

function drawFrom(endpoint, picture, fields) {
  run({ endpoint, fields, image: picture.blob, source: fileName(picture) });
}

function run(job) {
  const { rows } = form.card(job.fields.model);
  runJob({ rows, ...job }, { gallery, onRefused: refused });
}

function reuse(picture) {
  form.fill({ first_index: 0, ...recipe(picture) });
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
  if (error.status === 401) showKeyForm(true);
  else if (error.status === 400 && job?.endpoint === "generations") form.point(error.param);
}

/** Whether the models are known. Requests them if not, and shows the error if that fails. */
async function haveModels() {
  if (form.model) return true;
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

function wireKey() {
  byId("key-button").hidden = !apiKey.value;
  byId("key-button").addEventListener("click", () => showKeyForm(byId("key-form").hidden));
  byId("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    apiKey.set(byId("key").value.trim());
    showKeyForm(false);
    byId("prompt").focus();
    await haveModels();
  });
  byId("key-forget").addEventListener("click", () => {
    apiKey.set("");
    byId("key").value = "";
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
if (!store.lasting) byId("about-store").textContent = "This browser stores nothing: pictures are lost when this page is closed.";
await Promise.all([gallery.load(), haveModels()]);
