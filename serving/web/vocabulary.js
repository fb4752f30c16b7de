/** What the chosen model knows: a line that says what to type, styles and examples as chips, names that complete. */

import { describeModel, ServiceError } from "./api.js";
import { byId, fromTemplate } from "./dom.js";

const NOTHING = { description: "", examples: [], styles: [], concepts: [] };

export class Vocabulary {
  #known = new Map();
  #model = null;
  #shown = NOTHING;
  #on;

  /** on: read(), the prompt; write(words, caret), which sets it, with the caret at the end or at a position. */
  constructor(on) {
    this.#on = on;
  }

  /** Names of things, and the words of styles: {concepts, phrases}. */
  get words() {
    return { concepts: this.#shown.concepts, phrases: this.#shown.styles.map(({ phrase }) => phrase) };
  }

  /** Shows what a model knows, as soon as the service has told it. A model that tells nothing leaves the page as it is. */
  async show(model) {
    this.#model = model;
    this.#known.set(model, this.#known.get(model) ?? describe(model));
    const details = await this.#known.get(model);
    if (!details) this.#known.delete(model); // asked again when the model is chosen again
    if (this.#model === model) this.#show(details ?? NOTHING);
  }

  /** Marks the style that the prompt names. */
  mark() {
    const { phrase } = this.#styleOf(this.#on.read()) ?? {};
    for (const chip of byId("style-chips").children) chip.setAttribute("aria-pressed", String(chip.dataset.phrase === phrase));
  }

  #show(details) {
    this.#shown = details;
    byId("description").textContent = details.description;
    byId("description").hidden = !details.description;
    byId("styles").hidden = !details.styles.length;
    byId("style-chips").replaceChildren(...details.styles.map((style) => this.#chip(style)));
    byId("examples").hidden = !details.examples.length;
    byId("example-chips").replaceChildren(...details.examples.map((example) => this.#example(example)));
    byId("suggestions").hidden = !details.concepts.length;
    this.mark();
  }

  #chip(style) {
    const chip = fromTemplate("style-template");
    chip.dataset.phrase = style.phrase;
    chip.querySelector("span").textContent = style.name;
    if (style.picture) chip.querySelector("img").src = style.picture;
    else chip.querySelector("img").remove();
    chip.addEventListener("click", () => this.#choose(style));
    return chip;
  }

  #example(example) {
    const chip = Object.assign(document.createElement("button"), { type: "button", className: "chip", textContent: example });
    chip.addEventListener("click", () => this.#on.write(example));
    return chip;
  }

  /** Puts a style behind the thing, in the place of another one; chosen again, it is taken away. */
  #choose(style) {
    const prompt = this.#on.read();
    const before = this.#styleOf(prompt);
    const thing = (before ? prompt.slice(0, -before.phrase.length) : prompt).replace(/[\s,]+$/, "");
    if (before?.phrase === style.phrase) this.#on.write(thing);
    else this.#on.write(`${thing}, ${style.phrase}`, thing ? undefined : 0);
  }

  #styleOf(prompt) {
    const ends = ({ phrase }) => prompt.toLowerCase().endsWith(phrase.toLowerCase());
    // The longest: the words of a style may end with those of another one.
    return this.#shown.styles.filter(ends).sort((one, other) => other.phrase.length - one.phrase.length)[0];
  }
}

async function describe(model) {
  try {
    return await describeModel(model);
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    return null;
  }
}
