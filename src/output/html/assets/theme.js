// Runs before the page is drawn: says that scripts run, and restores the reader's choice of light or dark.
// Storage can be refused (private windows, some viewers of files): then the system's choice stands.
(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");
  try {
    const chosen = localStorage.getItem("memleak-theme");
    if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  } catch {
    // The system's choice stands.
  }
})();
