// Small helpers to build the page. Text from outside goes through textContent alone, never through markup.

const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

// node("p", { class: "hint", hidden: true }, "text", child): attributes by name, children as nodes or text.
function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    // States such as aria-pressed are words; attributes such as hidden are there or not.
    if (typeof value !== "boolean" || name.startsWith("aria-")) made.setAttribute(name, String(value));
    else made.toggleAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function swatch(name) {
  const made = node("i", { class: "swatch" });
  made.style.setProperty("--swatch", `var(--${name})`);
  return made;
}

// Canvases need colours as values: a hidden element resolves var() and light-dark() for them.
const probe = node("span", { hidden: true });
document.body.append(probe);
function colour(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

function announceTheme() {
  document.dispatchEvent(new Event("themechange"));
}

// A line over the whole run, from values between 0 and 100.
function sparkline(values, className) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", className);
  svg.setAttribute("viewBox", "0 0 100 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const points = values.length === 1 ? [values[0], values[0]] : values;
  const step = 100 / Math.max(1, points.length - 1);
  let line = "";
  let started = false;
  points.forEach((value, at) => {
    if (value === null) {
      started = false;
      return;
    }
    line += `${started ? "L" : "M"}${(at * step).toFixed(2)} ${(97 - value * 0.94).toFixed(2)}`;
    started = true;
  });
  const whole = !points.includes(null);
  if (whole && line) svg.append(path(`${line}L100 100L0 100Z`, "area"));
  svg.append(path(line, "line"));
  return svg;
}

function path(d, className) {
  const made = document.createElementNS(SVG, "path");
  made.setAttribute("d", d);
  made.setAttribute("class", className);
  return made;
}

// The floating box beside the pointer, shared by the charts and the flame graph.
const tip = byId("tip");
function showTip(x, y, ...children) {
  tip.replaceChildren(...children);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 16 + width > innerWidth - 8 ? x - 16 - width : x + 16;
  const top = Math.min(y + 12, innerHeight - height - 8);
  tip.style.transform = `translate(${Math.max(8, left)}px, ${Math.max(8, top)}px)`;
}
function hideTip() {
  tip.hidden = true;
}
