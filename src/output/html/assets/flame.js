// The flame graph: stacks merged from their roots, drawn on a canvas. Callers stand above what they call.

const ROW = 21;
const LEAST_WIDTH = 0.4;

// What the width of a frame can stand for.
const KINDS = { bytes: "bytes", count: "allocations", rate: "growth" };

function startFlame() {
  const tree = growTree();
  const canvas = byId("flame-canvas");
  const flame = {
    canvas, tree, kind: "bytes", zoom: tree, at: null, query: "", boxes: [], hits: null,
    modules: topModules(tree),
  };
  if (!tree.bytes && !tree.count && !tree.rate) {
    byId("flame-scroll").replaceChildren(node("p", { class: "empty" }, "Nothing is outstanding, so there is nothing to draw."));
    document.querySelector("#flame .tools").hidden = true;
    byId("flame-detail").hidden = true;
    return;
  }
  flameLegend(flame);
  wireFlame(flame);
  // Drawing sets the canvas's height, so it waits for the next frame: an observer must not cause what it observes.
  let drawn = 0;
  new ResizeObserver(() => requestAnimationFrame(() => {
    const width = byId("flame-scroll").clientWidth;
    if (width !== drawn) draw(flame);
    drawn = width;
  })).observe(byId("flame-scroll"));
  document.addEventListener("themechange", () => draw(flame));
  describe(flame, tree);
}

// `labels` are ever shorter ways to write the name.
function newNode(name, module, parent, labels = [name]) {
  return { name, labels, module, parent, bytes: 0, count: 0, rate: 0, children: new Map(), depth: parent ? parent.depth + 1 : 0, sorted: null };
}

function growTree() {
  const root = newNode("all", -1, null);
  for (const stack of report.stacks) {
    if (!stack.bytes && !stack.count && !stack.growing) continue;
    let at = root;
    add(at, stack);
    if (manyProcesses) at = step(at, stack, stack.pid ? processTitle(stack) : "kernel", -1);
    if (stack.calls === null) {
      step(at, stack, "[stack not stored]", -1);
      continue;
    }
    for (let i = stack.calls.length - 1; i >= 0; i -= 1) {
      const call = stack.calls[i];
      const short = shortName(call);
      at = step(at, stack, callName(call), report.calls[call][MODULE], [callName(call), short, lastPart(short)]);
    }
  }
  if (report.other.stacks) {
    add(root, report.other);
    step(root, report.other, `[${plural(report.other.stacks, "smaller stack", "smaller stacks")}]`, -1);
  }
  return root;
}

// `a::b<c::d>::e` ends in `e`.
function lastPart(name) {
  const at = name.lastIndexOf("::");
  return at > 0 && !name.slice(at).includes(">") ? name.slice(at + 2) : name;
}

// Only what grows has a rate: what shrinks elsewhere does not make up for it.
function add(at, { bytes, count, rate, growing, slope }) {
  at.bytes += bytes;
  at.count += count;
  at.rate += rate ?? (growing ? Math.max(slope ?? 0, 0) : 0);
}

function step(at, figures, name, module, labels) {
  const key = `${module} ${name}`;
  let child = at.children.get(key);
  if (!child) {
    child = newNode(name, module, at, labels);
    at.children.set(key, child);
  }
  add(child, figures);
  return child;
}

function sortedChildren(at) {
  at.sorted ??= [...at.children.values()].sort((a, b) => b.bytes - a.bytes || (a.name < b.name ? -1 : 1));
  return at.sorted;
}

function eachNode(at, visit) {
  const rest = [at];
  while (rest.length) {
    const next = rest.pop();
    visit(next);
    rest.push(...next.children.values());
  }
}

// The modules that own most frames get a colour of their own.
function topModules(tree) {
  const frames = new Map();
  eachNode(tree, ({ module, bytes }) => {
    if (module >= 0) frames.set(module, (frames.get(module) ?? 0) + bytes);
  });
  return [...frames].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 8).map(([module]) => module);
}

function colourOf(flame, module) {
  const at = flame.modules.indexOf(module);
  return at < 0 ? "f-other" : `f${at}`;
}

function flameLegend(flame) {
  const entry = (name, label) => node("span", {}, swatch(name), node("bdi", {}, label));
  byId("flame-legend").replaceChildren(
    ...flame.modules.map((module, at) => entry(`f${at}`, moduleName(module))),
    entry("f-other", "other or unknown"));
}

// Places every frame that is wide enough to see, from the zoomed frame down; its callers fill whole rows above.
function layOut(flame, width) {
  const boxes = [];
  const callers = [];
  for (let at = flame.zoom.parent; at; at = at.parent) callers.unshift(at);
  callers.forEach((at, row) => boxes.push({ at, x: 0, row, width, caller: true }));
  const whole = flame.zoom[flame.kind] || 1;
  const rest = [{ at: flame.zoom, x: 0, row: callers.length, width }];
  while (rest.length) {
    const box = rest.pop();
    boxes.push(box);
    let x = box.x;
    let narrow = [];
    const row = box.row + 1;
    for (const child of sortedChildren(box.at)) {
      const childWidth = (child[flame.kind] / whole) * width;
      if (childWidth >= LEAST_WIDTH) {
        sumUp(boxes, narrow, box.at, x, row, width / whole, flame.kind);
        narrow = [];
        rest.push({ at: child, x, row, width: childWidth });
      } else {
        narrow.push(child);
      }
      x += childWidth;
    }
    sumUp(boxes, narrow, box.at, x, row, width / whole, flame.kind);
  }
  return boxes;
}

// One box for neighbours that are too narrow to see, ending at `x`. Zooming into their caller makes them wider.
function sumUp(boxes, narrow, parent, x, row, scale, kind) {
  const all = newNode(`${plural(narrow.length, "smaller frame", "smaller frames")}`, -1, parent);
  for (const child of narrow) add(all, child);
  const width = all[kind] * scale;
  if (width >= LEAST_WIDTH) boxes.push({ at: all, sum: true, x: x - width, row, width });
}

function draw(flame) {
  const width = byId("flame-scroll").clientWidth;
  if (!width) return;
  flame.boxes = layOut(flame, width);
  const rows = 1 + flame.boxes.reduce((most, box) => Math.max(most, box.row), 0);
  const height = rows * ROW;
  // Browsers refuse canvases beyond some 16,000 pixels a side: very deep graphs are drawn less sharp.
  const ratio = Math.min(devicePixelRatio || 1, 16000 / height);
  const { canvas } = flame;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.font = `12px ${getComputedStyle(document.documentElement).getPropertyValue("--mono")}`;
  pen.textBaseline = "middle";
  const ink = { f: colour("ink"), hit: colour("f-hit-ink"), "f-hit": colour("f-hit"), surface: colour("surface"), accent: colour("accent") };
  const fills = new Map();
  const letter = pen.measureText("m").width;
  for (const box of flame.boxes) drawBox(flame, pen, box, ink, fills, letter);
}

function drawBox(flame, pen, box, ink, fills, letter) {
  const hit = flame.hits?.has(box.at);
  const name = colourOf(flame, box.at.module);
  if (!fills.has(name)) fills.set(name, colour(name));
  const y = box.row * ROW;
  const width = Math.max(box.width - (box.width > 3 ? 1 : 0), 0.3);
  pen.globalAlpha = box.caller ? 0.55 : 1;
  pen.fillStyle = hit ? ink["f-hit"] : fills.get(name);
  pen.fillRect(box.x, y, width, ROW - 1);
  pen.globalAlpha = 1;
  if (box.at === flame.at) {
    pen.strokeStyle = ink.accent;
    pen.lineWidth = 2;
    pen.strokeRect(box.x + 1, y + 1, Math.max(width - 2, 1), ROW - 3);
  }
  const fits = Math.floor((width - 10) / letter);
  if (fits < 3) return;
  pen.fillStyle = hit ? ink.hit : ink.f;
  const label = box.at.labels.find((text) => text.length <= fits) ?? box.at.labels.at(-1);
  pen.fillText(label.length > fits ? `${label.slice(0, fits - 1)}…` : label, box.x + 5, y + ROW / 2);
}

function figures(flame, at) {
  const rate = at.rate > 0 ? ` · ${formatRate(at.rate)}` : "";
  const part = (at[flame.kind] / (flame.tree[flame.kind] || 1)) * 100;
  return `${formatBytes(at.bytes)} in ${plural(at.count, "allocation", "allocations")} · ${part.toFixed(1)} % of all ${KINDS[flame.kind]}${rate}`;
}

function describe(flame, at) {
  const module = moduleName(at.module);
  byId("flame-detail").replaceChildren(
    node("bdi", { class: "tip-name" }, at.name), module ? ` [${module}]` : "", ` — ${figures(flame, at)}`);
}

function boxUnder(flame, event) {
  const frame = flame.canvas.getBoundingClientRect();
  const x = event.clientX - frame.left;
  const row = Math.floor((event.clientY - frame.top) / ROW);
  return flame.boxes.find((box) => box.row === row && x >= box.x && x < box.x + box.width);
}

function zoomFlame(flame, at) {
  flame.zoom = at;
  flame.at = at === flame.tree ? null : at;
  byId("flame-reset").disabled = at === flame.tree;
  describe(flame, at);
  draw(flame);
}

function wireFlame(flame) {
  const { canvas } = flame;
  canvas.addEventListener("pointermove", (event) => {
    const box = boxUnder(flame, event);
    canvas.style.cursor = box ? "pointer" : "default";
    if (!box || event.pointerType === "touch") return hideTip();
    const module = moduleName(box.at.module);
    showTip(event.clientX, event.clientY,
      node("bdi", { class: "tip-name" }, box.at.name),
      node("div", { class: "tip-title" }, [module, figures(flame, box.at)].filter(Boolean).join(" · ")));
  });
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("click", (event) => {
    const box = boxUnder(flame, event);
    if (box) zoomFlame(flame, box.sum ? box.at.parent : box.at);
  });
  canvas.addEventListener("keydown", (event) => flameKey(flame, event));
  byId("flame-reset").addEventListener("click", () => zoomFlame(flame, flame.tree));
  byId("flame-rate").hidden = flame.tree.rate === 0;
  for (const kind of Object.keys(KINDS)) {
    byId(`flame-${kind}`).addEventListener("click", () => {
      flame.kind = kind;
      for (const other of Object.keys(KINDS)) byId(`flame-${other}`).setAttribute("aria-pressed", kind === other);
      // a frame that has nothing of a kind has no width to zoom into
      if (!flame.zoom[kind]) zoomFlame(flame, flame.tree);
      search(flame);
      describe(flame, flame.at ?? flame.zoom);
    });
  }
  const field = byId("flame-search");
  field.addEventListener("input", () => {
    flame.query = field.value.trim().toLowerCase();
    search(flame);
  });
}

// Marks the frames whose name holds the query. A hit below another hit is marked, but its bytes count once.
function search(flame) {
  const status = byId("flame-status");
  flame.hits = null;
  status.textContent = "";
  if (flame.query) {
    flame.hits = new Set();
    let matched = 0;
    const rest = [[flame.tree, false]];
    while (rest.length) {
      const [at, inside] = rest.pop();
      const hit = at.parent !== null && at.name.toLowerCase().includes(flame.query);
      if (hit) flame.hits.add(at);
      if (hit && !inside) matched += at[flame.kind];
      for (const child of at.children.values()) rest.push([child, inside || hit]);
    }
    const part = (matched / (flame.tree[flame.kind] || 1)) * 100;
    const amount = { bytes: formatBytes, count: (count) => plural(count, "allocation", "allocations"), rate: formatRate }[flame.kind](matched);
    status.textContent = flame.hits.size
      ? `${plural(flame.hits.size, "frame matches", "frames match")} · ${amount} · ${part.toFixed(1)} %`
      : "No frame matches.";
  }
  draw(flame);
}

function flameKey(flame, event) {
  const from = flame.at ?? flame.zoom;
  const around = from.parent ? sortedChildren(from.parent) : [from];
  const place = around.indexOf(from);
  const moves = {
    ArrowDown: () => sortedChildren(from)[0],
    ArrowUp: () => from.parent,
    ArrowLeft: () => around[place - 1],
    ArrowRight: () => around[place + 1],
  };
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter" || event.key === " ") {
    zoomFlame(flame, from);
  } else if (event.key === "Escape") {
    zoomFlame(flame, flame.tree);
  } else if (moves[event.key]) {
    flame.at = moves[event.key]() ?? from;
    describe(flame, flame.at);
    draw(flame);
    keepInView(flame);
  } else {
    return;
  }
  event.preventDefault();
}

function keepInView(flame) {
  const box = flame.boxes.find(({ at }) => at === flame.at);
  const scroll = byId("flame-scroll");
  if (!box) return;
  const top = box.row * ROW;
  if (top < scroll.scrollTop) scroll.scrollTop = top;
  else if (top + ROW > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = top + ROW - scroll.clientHeight;
}
