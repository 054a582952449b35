// Brings the page to life: each part starts on its own, then the parts are tied together.

const table = startTable();
startCharts();
startFlame();

// The alerts are in the markup already; they get their lines and their way into the table.
for (const alert of document.querySelectorAll(".alert[data-stack]")) {
  const index = Number(alert.dataset.stack);
  const stack = report.stacks[index];
  if (!stack) continue;
  const side = alert.querySelector(".alert-side");
  const show = node("button", { type: "button", class: "button" }, "Show stack");
  show.addEventListener("click", () => reveal(table, index));
  side.replaceChildren(sparkline(stack.spark, "spark growing"), show);
}

// A process filters the table.
for (const item of document.querySelectorAll("#processes td[data-process]")) {
  const show = node("button", { type: "button" });
  show.append(...item.childNodes);
  show.setAttribute("aria-pressed", "false");
  show.addEventListener("click", () => {
    const pid = Number(item.dataset.process);
    showProcess(table, table.pid === pid ? null : pid);
    if (table.pid !== null) byId("stacks").scrollIntoView();
  });
  item.replaceChildren(show);
}

// #stack=ID leads to a stack, in this page and from other pages.
function followLink() {
  const id = /^#stack=([0-9a-f]+)$/.exec(location.hash)?.[1];
  const stack = id && report.stacks.find((stack) => stack.id === id);
  if (stack) reveal(table, stack.index);
}
addEventListener("hashchange", followLink);
followLink();

// The stacks within an alert lead to their rows.
for (const item of document.querySelectorAll(".alert-stacks li[data-stack]")) {
  const index = Number(item.dataset.stack);
  if (!report.stacks[index]) continue;
  const show = node("button", { type: "button", class: "link" });
  show.append(...item.childNodes);
  show.addEventListener("click", () => reveal(table, index));
  item.replaceChildren(show);
}

const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
byId("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
  root.dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("memleak-theme", root.dataset.theme);
  } catch {
    // The choice lasts as long as the page.
  }
  announceTheme();
});
system.addEventListener("change", announceTheme);
addEventListener("scroll", hideTip, { passive: true });

// Paper is white: canvases are redrawn in light colours for it.
let beforePrint;
addEventListener("beforeprint", () => {
  beforePrint = root.dataset.theme;
  root.dataset.theme = "light";
  announceTheme();
});
addEventListener("afterprint", () => {
  if (beforePrint) root.dataset.theme = beforePrint;
  else delete root.dataset.theme;
  announceTheme();
});
root.dataset.ready = "true";
