/* Light or dark. A classic script in the head, so that the choice holds before the first paint.

   The system decides until the button is pressed; pressing it back to what the system says leaves the system in charge. */
"use strict";

(() => {
  const NAME = "dalle-theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;

  function stored() {
    try {
      const theme = localStorage.getItem(NAME);
      return theme === "light" || theme === "dark" ? theme : null;
    } catch {
      return null; // storage may be forbidden
    }
  }

  function store(theme) {
    try {
      if (theme) localStorage.setItem(NAME, theme);
      else localStorage.removeItem(NAME);
    } catch {
      // Then it holds for this page only.
    }
  }

  function show(theme) {
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    const dark = isDark();
    root.classList.toggle("dark", dark);
    document.getElementById("theme-button")?.setAttribute("aria-pressed", String(dark));
  }

  function isDark() {
    return (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  }

  show(stored());
  system.addEventListener("change", () => show(stored()));
  window.addEventListener("storage", () => show(stored())); // another tab has chosen
  document.addEventListener("DOMContentLoaded", () => {
    show(stored());
    document.getElementById("theme-button").addEventListener("click", () => {
      const wanted = isDark() ? "light" : "dark";
      const theme = (wanted === "dark") === system.matches ? null : wanted;
      store(theme);
      show(theme);
    });
  });
})();
