/** The grid: pictures that are kept, newest first, and in front of them those that are being drawn. */

import { byId, fromTemplate, plural, toast } from "./dom.js";

const PAGE = 60;

export class Gallery {
  /** Newest request first, in it by index, or the best of candidates first. */
  pictures = [];
  #store;
  #onOpen;
  #cards = new Map();
  #urls = new Map();
  #numShown = PAGE;
  #numChanges = 0;

  constructor({ store, onOpen }) {
    this.grid = byId("grid");
    this.#store = store;
    this.#onOpen = onOpen;
    byId("show-more").addEventListener("click", () => {
      const first = this.pictures[this.#numShown];
      this.#numShown += PAGE;
      this.#show();
      this.focus(first);
    });
  }

  /** Shows what the store has, at the start and when another tab has changed it. Pictures that are shown stay as they are. */
  async load() {
    let before, stored;
    do {
      before = this.#numChanges;
      stored = await (await this.#store).all();
    } while (before !== this.#numChanges); // what was read is old
    const shown = new Map(this.pictures.map((picture) => [picture.key, picture]));
    const unkept = this.pictures.filter(({ key }) => key === undefined);
    const pictures = [...stored.map((picture) => shown.get(picture.key) ?? picture), ...unkept].sort(order);
    for (const picture of this.pictures) if (!pictures.includes(picture)) this.#forget(picture);
    if (this.pictures.length) this.#numShown += Math.max(0, pictures.length - this.pictures.length);
    this.pictures = pictures;
    this.#show();
  }

  /** Shows a finished picture, in place of the tile that it was drawn in if there is one, and keeps it. */
  async add(picture, tile) {
    try {
      await (await this.#store).add(picture);
    } catch {
      toast("The browser has no room to keep this picture: download it, or delete others.");
    }
    this.#numChanges++;
    this.pictures = [...this.pictures, picture].sort(order);
    this.#numShown++;
    const card = this.#card(picture);
    // Decoded before it is shown, or the tile would blink.
    await card.querySelector("img").decode().catch(() => {});
    if (tile) tile.replaceWith(card);
    this.#show();
  }

  async remove(picture) {
    await (await this.#store).remove(picture);
    this.#numChanges++;
    this.pictures = this.pictures.filter((other) => other !== picture);
    this.#forget(picture);
    this.#show();
  }

  async clear() {
    await (await this.#store).clear();
    this.#numChanges++;
    for (const picture of this.pictures) this.#forget(picture);
    this.pictures = [];
    this.#show();
  }

  /** A tile for each picture of a request, in front of everything. rows: of codes, which the tiles show as dots. */
  begin(num, rows) {
    const tiles = Array.from({ length: num }, () => fromTemplate("pending-template"));
    for (const tile of tiles) tile.style.setProperty("--cell", `${100 / rows}%`);
    this.grid.prepend(...tiles);
    this.#showCount();
    return tiles;
  }

  /** Takes away tiles whose pictures did not come. */
  end(tiles) {
    for (const tile of tiles) tile.remove();
    this.#showCount();
  }

  /** Keeps the tiles that show a part of a picture, and takes away the empty ones. */
  interrupt(tiles) {
    const [begun, empty] = [[], []];
    for (const tile of tiles) (tile.querySelector("img").hidden ? empty : begun).push(tile);
    for (const tile of begun) {
      tile.removeAttribute("aria-busy");
      const image = tile.querySelector("img");
      image.alt = image.alt.replace("while it is drawn", "unfinished");
      const caption = Object.assign(document.createElement("span"), { className: "caption", textContent: "Unfinished" });
      tile.querySelector("progress")?.replaceWith(caption);
    }
    this.end(empty);
  }

  url(picture) {
    if (!this.#urls.has(picture)) this.#urls.set(picture, URL.createObjectURL(picture.blob));
    return this.#urls.get(picture);
  }

  /** Brings the focus to a picture, or to the gallery if there is none. */
  focus(picture) {
    (this.#cards.get(picture)?.querySelector("button") ?? byId("gallery")).focus();
  }

  #forget(picture) {
    this.#cards.get(picture)?.remove();
    this.#cards.delete(picture);
    if (this.#urls.has(picture)) URL.revokeObjectURL(this.#urls.get(picture));
    this.#urls.delete(picture);
  }

  /** Puts in what is missing, each card behind the one before it. Tiles and cards that are there stay where they are. */
  #show() {
    let before = null;
    for (const picture of this.pictures.slice(0, this.#numShown)) {
      const card = this.#card(picture);
      const behind = before ?? [...this.grid.querySelectorAll(".pending")].at(-1);
      if (!card.isConnected) behind ? behind.after(card) : this.grid.prepend(card);
      before = card;
    }
    byId("show-more").hidden = this.pictures.length <= this.#numShown;
    this.#showCount();
  }

  #showCount() {
    const count = this.pictures.length;
    byId("gallery-count").textContent = count ? count.toLocaleString("en") : "";
    byId("gallery-empty").hidden = this.grid.childElementCount > 0;
    byId("clear").hidden = !count;
    byId("confirm-words").textContent = `${plural(count, "picture")} will be deleted for good.`;
  }

  #card(picture) {
    if (!this.#cards.has(picture)) {
      const card = fromTemplate("card-template");
      const [caption, drawn, place] = card.querySelectorAll(".caption, .visually-hidden");
      card.querySelector("img").src = this.url(picture);
      card.querySelector("img").classList.toggle("transparent", picture.background === "transparent");
      caption.textContent = picture.fields.prompt || "No prompt";
      drawn.textContent = picture.translation?.drawn_prompt ?? "";
      drawn.hidden = !drawn.textContent;
      place.textContent = `, seed ${picture.seed}, picture ${picture.index}`;
      if (picture.ranking) {
        const score = card.querySelector(".score");
        score.textContent = picture.ranking.score.toFixed(3);
        score.hidden = false;
        place.textContent += `, score ${score.textContent}`;
      }
      card.querySelector("button").addEventListener("click", () => this.#onOpen(picture));
      this.#cards.set(picture, card);
    }
    return this.#cards.get(picture);
  }
}

function order(one, other) {
  const place = ({ ranking, index }) => ranking?.rank ?? index;
  return other.started - one.started || place(one) - place(other);
}
