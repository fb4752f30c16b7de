"use strict";

/* A page without parts: the data is in it, and nothing is loaded. A "unit" is what a button stands for: a word or a token of
   the prompt, or everything of another role, as the end of the text. */
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const [height, width] = data.grid;
  const num = height * width;
  const stage = byId("stage");
  const pen = stage.getContext("2d");
  const picture = Object.assign(new Image(), { src: data.image });
  const sheet = Object.assign(new Image(), { src: data.sheet });
  const held = { word: null, patch: null };
  let pointed = { word: null, patch: null };
  let tried = null; // an alternative that is shown in its place
  let here = 0; // patch of the keyboard

  const NOTES = {
    among: "How each patch divides its attention among the words alone. Attention to the end of the text, to padding and to earlier patches is left out: it is large everywhere, and would hide the words.",
    above: "Attention among words, over the word's own average: 2 means that a patch attends to the word twice as much as patches do on average. It shows where a word matters most, even one that gets little attention.",
    raw: "Shares of all attention. Much of it goes to the end of the text and to padding (attention sinks), from which the model takes little, and to earlier patches.",
    influence: "No attention: how many times likelier the patch's code is with the word than without it, before guidance and filters. The codes before it stay, so later patches may need the word less.",
  };

  // -- numbers

  const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const text = bytes(data.text.values);
  const patches = bytes(data.patches.values);

  /** Averages maps of `size` numbers, in bytes of square roots, over the chosen layer and head. */
  function averaged({ shape: [layers, heads] }, values, size) {
    const [layer, head] = [Number(byId("layer").value), Number(byId("head").value)];
    const chosen = [];
    for (let l = 0; l < layers; l++) {
      if (layer >= 0 && layers > 1 && l !== layer) continue;
      for (let h = 0; h < heads; h++) if (head < 0 || heads === 1 || h === head) chosen.push((l * heads + h) * size);
    }
    const mean = new Float32Array(size);
    for (const start of chosen) for (let i = 0; i < size; i++) mean[i] += (values[start + i] / 255) ** 2 / chosen.length;
    return mean;
  }

  let units = [];
  let onText, onPatches;
  /** For each view, [patch][unit]. */
  let tables = {};

  function compute() {
    const columns = data.columns.length;
    onText = averaged(data.text, text, num * columns);
    onPatches = averaged(data.patches, patches, (num * (num - 1)) / 2);
    const split = byId("split").checked;
    const words = split
      ? data.columns.flatMap((column, c) => (column.role === "token" ? [{ name: column.text.trim() || "␣", columns: [c], word: column.word }] : []))
      : data.words.map((name, word) => ({ name, word, columns: data.columns.flatMap((column, c) => (column.word === word ? [c] : [])) }));
    const special = (role) => data.columns.flatMap((column, c) => (column.role === role ? [{ name: column.text, columns: [c], word: null }] : []));
    units = [...special("begin"), ...words, ...special("end"), ...special("padding")];
    const each = (make) => Array.from({ length: num }, (_, i) => units.map((unit, u) => make(i, unit, u)));
    const raw = each((i, unit) => unit.columns.reduce((sum, c) => sum + onText[i * columns + c], 0));
    const among = raw.map((row) => {
      const whole = row.reduce((sum, value, u) => sum + (units[u].word === null ? 0 : value), 0) || 1;
      return row.map((value, u) => (units[u].word === null ? 0 : value / whole));
    });
    const mean = units.map((_, u) => among.reduce((sum, row) => sum + row[u], 0) / num || 1);
    const above = among.map((row) => row.map((value, u) => value / mean[u]));
    const influence = data.influence && each((i, unit) => (unit.word === null ? 0 : data.influence[i][unit.word]));
    tables = { raw, among, above, influence };
  }

  const view = () => byId("view").value;
  const shown = (u) => view() === "raw" || units[u].word !== null;
  const percent = (value) => (value > 0 && value < 0.0005 ? "< 0.1 %" : `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %`);
  const times = (value) => `× ${value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en")}`;
  const worded = (value) => ({ raw: percent, among: percent, above: times, influence: (one) => times(Math.exp(one)) })[view()](value);

  /** What a value counts as nothing in a view: the average, or no difference, or none. */
  const nothing = () => (view() === "above" ? 1 : 0);

  /** 0..1: how strongly a value is shown between the least and the most. */
  function strength(value, most, least = nothing()) {
    return most > least ? Math.min(1, Math.max(0, (value - least) / (most - least))) : 0;
  }

  /** The range of a unit's values over patches that its map shows; influence has one scale for all words. */
  function range(u) {
    const rows = tables[view()];
    const values = view() === "influence" ? rows.flat() : rows.map((row) => row[u]);
    const least = view() === "among" || view() === "raw" ? Math.min(...values) : nothing();
    return [least, Math.max(...values)];
  }

  // -- the picture

  function onto(i, image, shift, alpha) {
    const [x, y] = [i % width, Math.floor(i / width)];
    const [dx, dy] = [stage.width / width, stage.height / height];
    const [w, h] = [data.size[0] / width, data.size[1] / height];
    pen.globalAlpha = alpha;
    pen.drawImage(image, shift + x * w, y * h, w, h, x * dx, y * dy, dx, dy);
    pen.globalAlpha = 1;
  }

  function paint() {
    const { word, patch } = current();
    pen.clearRect(0, 0, stage.width, stage.height);
    pen.drawImage(picture, 0, 0, stage.width, stage.height);
    const [dx, dy] = [stage.width / width, stage.height / height];
    let strengths = null;
    if (word !== null) {
      const [least, top] = range(word);
      strengths = tables[view()].map((row) => strength(row[word], top, least));
      const start = { above: "the average or less", influence: "no more likely" }[view()] ?? worded(least);
      byId("legend").textContent = `“${units[word].name}”: dark is ${start}, clear is ${worded(top)}`;
    } else if (patch !== null) {
      const row = earlier(patch);
      const top = Math.max(...row, 0);
      strengths = Array.from({ length: num }, (_, j) => (j < patch && top ? row[j] / top : j === patch ? 1 : 0));
      byId("legend").textContent = patch ? `Earlier patches: clear is ${percent(top)} of this patch's attention` : "The first patch: nothing is before it";
    } else byId("legend").textContent = "";
    strengths?.forEach((value, i) => {
      pen.fillStyle = `rgb(16 18 40 / ${0.84 * (1 - value)})`;
      pen.fillRect((i % width) * dx, Math.floor(i / width) * dy, dx + 0.5, dy + 0.5);
    });
    if (patch !== null) {
      if (tried !== null) {
        pen.fillStyle = "#fff";
        pen.fillRect((patch % width) * dx, Math.floor(patch / width) * dy, dx, dy);
        onto(patch, sheet, tried * data.size[0], 1);
      }
      pen.lineWidth = 3;
      for (const [colour, inset] of [["#fff", 1.5], ["#0f6b63", 4]]) {
        pen.strokeStyle = colour;
        pen.strokeRect((patch % width) * dx + inset, Math.floor(patch / width) * dy + inset, dx - 2 * inset, dy - 2 * inset);
      }
    }
  }

  const earlier = (patch) => onPatches.subarray((patch * (patch - 1)) / 2, (patch * (patch + 1)) / 2);

  // -- words and details

  function current() {
    if (pointed.word !== null || pointed.patch !== null) return pointed;
    return held;
  }

  function makeWords() {
    byId("words").replaceChildren(
      ...units.map((unit, u) => {
        const button = element("button", unit.name, { type: "button", className: unit.word === null ? "special" : "" });
        button.append(element("small", ""));
        button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && point({ word: u, patch: null }));
        button.addEventListener("pointerleave", () => point({ word: null, patch: null }));
        button.addEventListener("focus", () => button.matches(":focus-visible") && point({ word: u, patch: null }));
        button.addEventListener("blur", () => point({ word: null, patch: null }));
        button.addEventListener("click", () => hold(held.word === u ? {} : { word: u }));
        return button;
      }),
    );
  }

  function show() {
    const { word, patch } = current();
    const rows = tables[view()];
    [...byId("words").children].forEach((button, u) => {
      button.hidden = !shown(u);
      button.setAttribute("aria-pressed", String(word === u));
      const value = patch === null ? null : rows[patch][u];
      button.querySelector("small").textContent = value === null ? "" : worded(value);
      button.style.setProperty("--share", value === null ? 0 : strength(value, scale(rows[patch])));
    });
    byId("note").textContent = NOTES[view()];
    byId("layer").disabled = view() === "influence" || data.text.shape[0] === 1;
    byId("head").disabled = view() === "influence" || data.text.shape[1] === 1;
    byId("details").replaceChildren(...(patch !== null ? ofPatch(patch) : word !== null ? ofWord(word) : ofPicture()));
    paint();
  }

  const scale = (row) => Math.max(...row.filter((_, u) => shown(u)));

  function ofPatch(i) {
    const found = [element("h2", `${place(i)}${data.kept.includes(i) ? ", kept from a given picture" : ""}`)];
    const items = data.alternatives.codes[i].map((code, rank) => {
      const probability = data.alternatives.probabilities[i][rank];
      const drawn = code === data.codes[i];
      const button = element("button", "", { type: "button" });
      const canvas = element("canvas", "", { width: 64, height: Math.round((64 * data.size[1] * width) / (data.size[0] * height)) });
      const [w, h] = [data.size[0] / width, data.size[1] / height];
      canvas.getContext("2d").drawImage(sheet, rank * data.size[0] + (i % width) * w, Math.floor(i / width) * h, w, h, 0, 0, canvas.width, canvas.height);
      button.append(canvas, element("span", percent(probability)), element("span", drawn ? "drawn" : `code ${code}`));
      button.setAttribute("aria-label", `Code ${code}, ${percent(probability)}${drawn ? ", drawn" : ""}: show it in the picture`);
      const attempt = (value) => () => { tried = value; paint(); };
      button.addEventListener("pointerenter", attempt(rank));
      button.addEventListener("pointerleave", attempt(null));
      button.addEventListener("focus", attempt(rank));
      button.addEventListener("blur", attempt(null));
      button.addEventListener("click", attempt(rank));
      return probability > 0 ? element("li", "", {}, button) : null;
    });
    const list = element("ul", "", { className: "alternatives" }, ...items.filter(Boolean));
    list.setAttribute("aria-label", "Alternatives");
    const missing = data.alternatives.codes[i].includes(data.codes[i]) ? "" : ` The drawn code, ${data.codes[i]}, had ${percent(data.alternatives.drawn[i])}.`;
    found.push(element("p", `What it could have been, after guidance and filters.${missing}`, { className: "quiet" }), list);
    if (view() === "raw") {
      const row = units.map((unit, u) => [unit.name, tables.raw[i][u]]);
      row.push(["earlier patches", earlier(i).reduce((sum, value) => sum + value, 0)]);
      found.push(bars(row, 1, percent));
    } else {
      const row = units.flatMap((unit, u) => (shown(u) ? [[unit.name, tables[view()][i][u]]] : []));
      found.push(bars(row, Math.max(...row.map(([, value]) => value)), worded));
    }
    const before = [...earlier(i)].map((value, j) => [place(j), value]).sort((one, other) => other[1] - one[1]).slice(0, 3);
    if (before.length) found.push(element("p", `Earlier patches with most attention: ${before.map(([name, value]) => `${name.toLowerCase()} (${percent(value)})`).join("; ")}.`, { className: "quiet" }));
    return found;
  }

  function ofWord(u) {
    const best = tables[view()].map((row, i) => [place(i), row[u]]).sort((one, other) => other[1] - one[1]).slice(0, 5);
    return [element("h2", `Patches of “${units[u].name}”`), bars(best, best[0][1], worded)];
  }

  function ofPicture() {
    const drawn = num - data.kept.length;
    const sentence = `Replayed from its receipt, ${data.agreeing} of the ${drawn} drawn patches come out as they are in the picture.`;
    return [element("p", sentence, { className: "quiet" }), element("p", "Point at a word to see its patches, or at a patch to see its words.", { className: "quiet" })];
  }

  const place = (i) => `Row ${Math.floor(i / width) + 1}, column ${(i % width) + 1}`;

  function bars(rows, most, format) {
    const lines = rows.map(([name, value]) => {
      const bar = element("span", "", { className: "bar" });
      bar.style.width = `${100 * strength(value, most)}%`;
      const head = element("th", name);
      head.scope = "row";
      return element("tr", "", {}, head, element("td", "", {}, bar), element("td", format(value)));
    });
    return element("table", "", {}, element("tbody", "", {}, ...lines));
  }

  function element(tag, words, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), { textContent: words }, properties);
    made.append(...children);
    return made;
  }

  // -- pointing and holding

  function point(what) {
    if (pointed.word === what.word && pointed.patch === what.patch) return;
    pointed = what;
    tried = null;
    show();
  }

  function hold({ word = null, patch = null }) {
    Object.assign(held, { word, patch });
    tried = null;
    show();
  }

  function patchAt({ clientX, clientY }) {
    const box = stage.getBoundingClientRect();
    const [x, y] = [Math.floor(((clientX - box.left) / box.width) * width), Math.floor(((clientY - box.top) / box.height) * height)];
    return Math.min(num - 1, Math.max(0, y * width + Math.min(width - 1, Math.max(0, x))));
  }

  function say() {
    const rows = tables[view()];
    const words = units.flatMap((unit, u) => (shown(u) ? [[unit.name, rows[here][u]]] : [])).sort((one, other) => other[1] - one[1]);
    byId("status").textContent = `${place(here)}. ${words.slice(0, 3).map(([name, value]) => `${name} ${worded(value)}`).join(", ")}`;
  }

  stage.addEventListener("pointermove", (event) => event.pointerType === "mouse" && point({ word: null, patch: patchAt(event) }));
  stage.addEventListener("pointerleave", () => point({ word: null, patch: null }));
  stage.addEventListener("click", (event) => {
    here = patchAt(event);
    hold(held.patch === here ? {} : { patch: here });
  });
  stage.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -width, ArrowDown: width }[event.key];
    if (step) {
      if (here + step >= 0 && here + step < num) here += step;
      pointed = { word: null, patch: null };
      hold({ patch: here });
      say();
    } else if (event.key === "Enter" || event.key === " ") {
      hold(held.patch === here ? {} : { patch: here });
      if (held.patch !== null) say();
    } else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    pointed = { word: null, patch: null };
    hold({});
  });
  byId("view").addEventListener("change", show);
  for (const id of ["layer", "head", "split"]) {
    byId(id).addEventListener("change", () => {
      compute();
      if (id === "split") {
        makeWords();
        hold({});
      } else show();
    });
  }

  // -- the start

  const choices = (id, numbers, count) => {
    const each = count > 1 ? numbers.map((number, at) => new Option(String(number), String(at))) : [];
    byId(id).replaceChildren(new Option(numbers.length > 1 ? "average" : String(numbers[0]), "-1"), ...each);
  };
  choices("layer", data.layers, data.text.shape[0]);
  choices("head", data.heads, data.text.shape[1]);
  if (!data.influence) byId("view").querySelector("[value=influence]").remove();
  byId("split-label").hidden = data.columns.filter(({ role }) => role === "token").length === data.words.length;
  byId("facts").replaceChildren(...data.facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  stage.setAttribute("aria-label", `Patches of the picture: ${data.prompt || "no prompt"}`);
  stage.width = 920;
  stage.height = Math.round((920 * data.size[1]) / data.size[0]);
  compute();
  makeWords();
  show();
  Promise.all([picture.decode(), sheet.decode()]).then(show);
})();
