/** Completes the prompt as it is typed: names of things that the model knows and, behind a comma, the words of styles.
 *
 * The field is a combobox with a strip of options below it, which covers nothing. Down and Up choose one, and so do
 * Right and Left once one is chosen; Enter or Tab takes it, Escape puts the strip away. */

import { announce, byId, plural } from "./dom.js";

const MAX_OPTIONS = 8;
const MIN_LETTERS = 2;

export class Suggestions {
  #field = byId("prompt");
  #list = byId("suggestions");
  #start = 0;
  #active = -1;
  #words;
  #write;

  /** words(): {concepts, phrases} of the model. write(text): puts a completed prompt into the field. */
  constructor({ words, write }) {
    this.#words = words;
    this.#write = write;
    this.#field.addEventListener("input", () => this.#suggest());
    this.#field.addEventListener("keydown", (event) => this.#onKey(event));
    this.#field.addEventListener("blur", () => this.close());
    this.#list.addEventListener("pointerdown", (event) => event.preventDefault()); // the field keeps the focus
    this.#list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.#take(option);
    });
  }

  close() {
    this.#list.replaceChildren();
    this.#field.setAttribute("aria-expanded", "false");
    this.#activate(-1);
  }

  #suggest() {
    const { value, selectionEnd } = this.#field;
    const found = value.slice(selectionEnd).trim() ? [] : this.#matches(value.slice(0, selectionEnd));
    this.close();
    if (!found.length) return;
    this.#list.replaceChildren(...found.map(option));
    this.#list.scrollLeft = 0;
    this.#field.setAttribute("aria-expanded", "true");
    announce(plural(found.length, "suggestion"));
  }

  /** The names that fit what is typed, those that begin with it first; `#start` is where it begins. */
  #matches(typed) {
    const { concepts, phrases } = this.#words();
    const comma = typed.lastIndexOf(",");
    const [, lead] = comma < 0 ? /^(\s*(?:(?:an?|the)\s+)?)/i.exec(typed) : /^(.*,\s*)/s.exec(typed);
    const query = typed.slice(lead.length).toLowerCase();
    this.#start = lead.length;
    if (query.length < (comma < 0 ? MIN_LETTERS : 1)) return [];
    const [first, later] = [[], []];
    for (const name of comma < 0 ? concepts : phrases) {
      const place = ` ${name.toLowerCase()}`.indexOf(` ${query}`);
      if (place >= 0 && name.toLowerCase() !== query) (place ? later : first).push(name);
    }
    return [...first.sort((one, other) => one.length - other.length), ...later].slice(0, MAX_OPTIONS);
  }

  #onKey(event) {
    const { length } = this.#list.children;
    if (!length || event.isComposing || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const chosen = this.#active >= 0;
    const by = { ArrowDown: 1, ArrowUp: -1, ...(chosen && { ArrowRight: 1, ArrowLeft: -1 }) }[event.key];
    // One place more than options: none is chosen, and the caret is moved again.
    if (by) this.#activate(((this.#active + 1 + by + length + 1) % (length + 1)) - 1);
    else if (chosen && (event.key === "Enter" || event.key === "Tab")) this.#take(this.#list.children[this.#active]);
    else if (event.key === "Escape") this.close();
    else return;
    event.preventDefault();
  }

  #activate(place) {
    this.#active = place;
    [...this.#list.children].forEach((one, i) => one.setAttribute("aria-selected", String(i === place)));
    const option = this.#list.children[place];
    option?.scrollIntoView({ block: "nearest", inline: "nearest" });
    if (option) this.#field.setAttribute("aria-activedescendant", option.id);
    else this.#field.removeAttribute("aria-activedescendant");
  }

  #take(option) {
    this.#write(this.#field.value.slice(0, this.#start) + option.textContent);
    this.close();
  }
}

function option(name, i) {
  const made = Object.assign(document.createElement("li"), { id: `suggestion-${i}`, textContent: name });
  made.setAttribute("role", "option");
  made.setAttribute("aria-selected", "false");
  return made;
}
