/** What every part of the page needs of it: elements, words for screen readers, toasts, the clipboard. */

const TOAST_SECONDS = 10;

export const byId = (id) => document.getElementById(id);

/** The one element in a `<template>`, as a new copy. */
export function fromTemplate(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}

/** Says something to screen readers; `urgent` interrupts. */
export function announce(words, { urgent = false } = {}) {
  const region = byId(urgent ? "alarm" : "announcer");
  region.textContent = "";
  // A region that is given the same words twice is read once, unless it was empty in between.
  setTimeout(() => {
    region.textContent = words;
  }, 50);
}

export function plural(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

/** 7 -> "7 s", 95 -> "1 min 35 s". */
export function duration(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  return `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ""}`;
}

let toastTimer;

/** A line at the bottom, with a button if there is something to do about it: {name, act}. */
export function toast(words, action) {
  const box = byId("toast");
  const button = byId("toast-action");
  clearTimeout(toastTimer);
  byId("toast-words").textContent = words;
  button.hidden = !action;
  button.textContent = action?.name ?? "";
  button.onclick = () => {
    box.hidden = true;
    action.act();
  };
  box.hidden = false;
  announce(words);
  toastTimer = setTimeout(() => {
    if (!box.contains(document.activeElement)) box.hidden = true;
  }, TOAST_SECONDS * 1000);
}

/** Copies text, and says so on the button for two seconds. Rejects never. */
export async function copy(text, button) {
  const done = await write(text, button.parentElement);
  const words = done ? "Copied" : "Copying failed";
  announce(words);
  const before = (button.dataset.words ??= button.textContent);
  button.textContent = words;
  clearTimeout(Number(button.dataset.timer));
  button.dataset.timer = setTimeout(() => {
    button.textContent = before;
  }, 2000);
}

async function write(text, near) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over plain HTTP there is no such clipboard: the old way. It wants the focus, so it must be inside an open dialog.
    const box = document.createElement("textarea");
    const focused = document.activeElement;
    box.value = text;
    box.className = "visually-hidden";
    near.append(box);
    box.select();
    const done = document.execCommand("copy");
    box.remove();
    focused?.focus();
    return done;
  }
}
