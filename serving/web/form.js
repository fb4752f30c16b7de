/** The form: what to draw and how. Reads it into the service's fields, and fills it from them. */

import { byId, plural } from "./dom.js";
import { Suggestions } from "./suggestions.js";
import { Vocabulary } from "./vocabulary.js";

const SAMPLING = ["guidance_scale", "guidance_schedule", "temperature", "top_k", "top_p", "min_p"];
const ADVANCED = ["negative_prompt", ...SAMPLING, "first_index", "background"];
const PROMPT = "dalle-prompt";

export class Form {
  #models = [];
  #seedUsed = false;
  #source = null;
  #vocabulary;
  /** Whether prompts are to be translated, as somebody has said; null as long as the model and the browser decide. */
  #wantsTranslation = null;
  /** The field `translate` of the picture whose settings are used again, until the switch is touched. */
  #givenTranslate = null;

  /** onDraw: called to draw. onPaint: called with {image, name, mask} of a picture on which a part is to be painted. */
  constructor({ onDraw, onPaint }) {
    this.element = byId("compose");
    this.#wireSeed();
    this.#wireCount();
    this.#wireAdvanced();
    byId("model").addEventListener("change", () => this.#showModel());
    byId("translate").addEventListener("change", (event) => {
      this.#wantsTranslation = event.target.checked;
      this.#givenTranslate = null;
    });
    this.element.addEventListener("input", (event) => event.target.removeAttribute("aria-invalid"));
    this.#vocabulary = new Vocabulary({ read: () => this.prompt, write: (words, caret) => this.setPrompt(words, caret) });
    new Suggestions({ words: () => this.#vocabulary.words, write: (words) => this.setPrompt(words) });
    byId("prompt").addEventListener("input", () => {
      keepPrompt(byId("prompt").value);
      this.#vocabulary.mark();
    });
    byId("prompt").value ||= keptPrompt();
    byId("source-paint").addEventListener("click", () => onPaint(this.source));
    byId("upload").addEventListener("click", () => byId("upload-file").click());
    byId("upload-file").addEventListener("change", (event) => {
      const [file] = event.target.files;
      event.target.value = ""; // the same file can be taken again
      if (file) onPaint({ image: file, name: file.name });
    });
    byId("source-remove").addEventListener("click", () => {
      this.source = null;
      byId("prompt").focus();
    });
    byId("draw").addEventListener("click", (event) => {
      if (event.detail > 1) event.preventDefault(); // a double click is one
    });
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      onDraw();
    });
    this.rollSeed();
  }

  set models(cards) {
    this.#models = cards;
    byId("model").replaceChildren(...cards.map((card) => new Option(card.id, card.id)));
    byId("model-control").hidden = cards.length < 2;
    this.#showModel();
  }

  /** Card of the chosen model; undefined before the service has told its models. */
  get model() {
    return this.#models.find((card) => card.id === byId("model").value) ?? this.#models[0];
  }

  /** Card of the model of this name, or of the chosen one if it is not served any more. */
  card(name) {
    return this.#models.find((card) => card.id === name) ?? this.model;
  }

  get prompt() {
    return byId("prompt").value.trim();
  }

  get num() {
    return byId("n").valueAsNumber || 1;
  }

  /** The picture that is edited or continued, or null: {endpoint, image, name, keepRows, mask}, its file, and how many of its
   * rows are kept or the mask of what is drawn anew. */
  get source() {
    return this.#source;
  }

  set source(source) {
    this.#source = source;
    byId("source").hidden = !source;
    URL.revokeObjectURL(byId("source-image").src);
    byId("source-image").removeAttribute("src");
    if (source) byId("source-image").src = URL.createObjectURL(source.image);
    byId("source-image").alt = source?.name ?? "";
    byId("source-words").textContent = source ? sourceWords(source) : "";
    byId("source-paint").hidden = !source?.mask;
  }

  /** Sets the prompt, with the caret at its end or at a position. */
  setPrompt(words, caret = words.length) {
    const prompt = byId("prompt");
    prompt.value = words;
    keepPrompt(words);
    prompt.removeAttribute("aria-invalid");
    prompt.focus();
    prompt.setSelectionRange(caret, caret);
    this.#vocabulary.mark();
  }

  /** Fields of a request. An unlocked seed is used once: the next request takes a new one. */
  read() {
    if (this.#seedUsed && !this.#locked) this.rollSeed();
    this.#seedUsed = true;
    return {
      ...this.settings(),
      prompt: this.prompt,
      n: this.num,
      seed: byId("seed").valueAsNumber,
      ...(byId("first_index").value && { first_index: byId("first_index").valueAsNumber }),
      ...this.#bestOf(),
      ...this.#translate(),
    };
  }

  /** What the switch says, where it differs from what the service does anyhow. */
  #translate() {
    const { translate, translate_from: languages } = this.model;
    if (this.#givenTranslate === "off") return translate === "off" ? {} : { translate: "off" };
    const wanted = languages.length > 0 && byId("translate").checked;
    if (wanted === translates(translate)) return {};
    return { translate: wanted ? "auto" : "en" };
  }

  /** Candidates, if they are wanted. A model whose prompts CLIP cannot read is its own judge. */
  #bestOf() {
    const number = Number(byId("best_of").value);
    if (!number) return {};
    return { best_of: number, ...(!this.model.rerank.includes("clip") && { rerank: this.model.rerank[0] }) };
  }

  /** The model, and which of its defaults are not wanted. */
  settings() {
    const settings = { model: this.model.id };
    for (const name of ["negative_prompt", ...SAMPLING, "background"]) {
      const field = byId(name);
      if (field.value.trim()) settings[name] = field.type === "number" ? field.valueAsNumber : field.value;
    }
    return settings;
  }

  /** Fills everything from a request's fields; what is not among them goes back to its default. */
  fill(fields) {
    if (this.#models.some((card) => card.id === fields.model)) byId("model").value = fields.model;
    byId("n").value = fields.n;
    byId("best_of").value = fields.best_of ?? "";
    byId("seed").value = fields.seed;
    this.#lock(true);
    this.#givenTranslate = fields.translate ?? null;
    this.#wantsTranslation = translates(fields.translate ?? this.card(fields.model).translate);
    for (const name of ADVANCED) byId(name).value = fields[name] || (fields[name] === 0 && name !== "first_index" ? 0 : "");
    this.#showModel();
    this.#showAdvanced(this.#numChanged > 0);
    this.setPrompt(fields.prompt);
  }

  /** Leads to the field that the service complained about. */
  point(name) {
    const field = name && this.element.elements.namedItem(name);
    if (!(field instanceof HTMLElement)) return;
    if (ADVANCED.includes(name)) this.#showAdvanced(true);
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }

  rollSeed() {
    byId("seed").value = randomSeed();
    this.#seedUsed = false;
  }

  get #locked() {
    return byId("lock").getAttribute("aria-pressed") === "true";
  }

  #lock(locked) {
    byId("lock").setAttribute("aria-pressed", String(locked));
  }

  #wireSeed() {
    byId("dice").addEventListener("click", () => this.rollSeed());
    byId("lock").addEventListener("click", () => this.#lock(!this.#locked));
    byId("seed").addEventListener("input", () => this.#lock(true)); // who types a seed wants that one
  }

  #wireCount() {
    const count = byId("n");
    for (const [id, step] of [
      ["fewer", -1],
      ["more", 1],
    ]) {
      byId(id).addEventListener("click", () => {
        const value = (count.valueAsNumber || 1) + step;
        count.value = Math.min(Number(count.max), Math.max(Number(count.min), value));
      });
    }
  }

  #wireAdvanced() {
    const panel = byId("advanced");
    byId("advanced-button").addEventListener("click", () => this.#showAdvanced(panel.hidden));
    byId("reset").addEventListener("click", () => {
      for (const name of ADVANCED) byId(name).value = "";
      this.#showNumChanged();
      byId("negative_prompt").focus();
    });
    panel.addEventListener("input", () => this.#showNumChanged());
    // The browser cannot point at a field that is hidden.
    panel.addEventListener("invalid", () => this.#showAdvanced(true), { capture: true });
  }

  #showAdvanced(open) {
    byId("advanced").hidden = !open;
    byId("advanced-button").setAttribute("aria-expanded", String(open));
  }

  get #numChanged() {
    return ADVANCED.filter((name) => byId(name).value.trim()).length;
  }

  #showNumChanged() {
    byId("advanced-count").textContent = this.#numChanged || "";
    byId("advanced-button").setAttribute("aria-label", `Advanced${this.#numChanged ? `, ${this.#numChanged} set` : ""}`);
  }

  #showModel() {
    if (!this.model) return;
    const { id, size, num_codes, sampling, transparency, translate, translate_from: languages } = this.model;
    byId("translate-control").hidden = !languages.length;
    byId("translate-control").title = `From ${languages.map(languageName).join(", ")} into English, which is what is drawn`;
    byId("translate").checked = this.#wantsTranslation ?? (translates(translate) || languages.includes(browserLanguage()));
    this.#vocabulary.show(id);
    byId("background-field").hidden = !transparency;
    if (!transparency) byId("background").value = ""; // the service would refuse another
    for (const name of SAMPLING) {
      const field = byId(name);
      if (field instanceof HTMLSelectElement) field.options[0].text = `Default (${sampling[name] ?? "constant"})`;
      else field.placeholder = sampling[name] ?? "";
    }
    byId("about-model").textContent = `Model ${id}: ${size.replace("x", " × ")} pixels from ${num_codes} codes.`;
    this.#showNumChanged();
  }
}

/** ISO 639 code of the language that the browser speaks. */
function browserLanguage() {
  return new Intl.Locale(navigator.language || "en").language;
}

/** Whether this value of the field `translate` translates other languages, and does more than to word English anew. */
function translates(value) {
  return value !== "off" && value !== "en";
}

function languageName(code) {
  return new Intl.DisplayNames("en", { type: "language" }).of(code);
}

/** The prompt outlives a reload of its tab, where storage is not forbidden. */
function keepPrompt(words) {
  try {
    sessionStorage.setItem(PROMPT, words);
  } catch {
    // Then it is lost.
  }
}

function keptPrompt() {
  try {
    return sessionStorage.getItem(PROMPT) ?? "";
  } catch {
    return "";
  }
}

function sourceWords({ mask, keepRows }) {
  return mask ? "Draws the painted part of this picture anew" : `Continues this picture: its upper ${plural(keepRows, "row")} stay`;
}

export function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}
