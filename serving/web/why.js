/** The explanation of a picture, in a dialog: a page that the service makes of its receipt, in a frame without rights. */

import { explain, ServiceError } from "./api.js";
import { announce, byId } from "./dom.js";

export class Why {
  #dialog = byId("why");
  #frame = byId("why-frame");
  #words = byId("why-words");
  #asked = null;

  constructor() {
    byId("why-close").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close(); // beside the box
    });
    this.#dialog.addEventListener("close", () => {
      this.#asked?.abort();
      this.#frame.srcdoc = "";
    });
  }

  async open(picture) {
    const asked = (this.#asked = new AbortController());
    byId("why-prompt").textContent = picture.fields.prompt || "No prompt";
    this.#show("The picture is being replayed.");
    this.#dialog.showModal();
    try {
      const page = await explain(picture.blob, asked.signal);
      if (asked.signal.aborted) return;
      const theme = document.documentElement.classList.contains("dark") ? "dark" : "light";
      this.#frame.srcdoc = page.replace("<html ", `<html data-theme="${theme}" `);
      this.#show("");
      announce("The explanation is ready");
    } catch (error) {
      if (asked.signal.aborted) return;
      if (!(error instanceof ServiceError)) throw error;
      this.#show(`${error.title} ${error.detail}`.replace("The service cannot draw this. ", ""));
      announce(this.#words.textContent, { urgent: true });
    }
  }

  /** Words in place of the frame; the frame if there are none. */
  #show(words) {
    this.#words.textContent = words;
    this.#words.hidden = !words;
    this.#frame.hidden = Boolean(words);
  }
}
