// The table of stacks: sorting, filtering, rows that open. Rows are made a page at a time, when they are asked for: rows
// that came by scrolling would keep whoever scrolls from what is below the table.

const PAGE = 60;

const COLUMNS = [
  { key: "title", label: "Allocated in", class: "col-name" },
  { key: "bytes", label: "Bytes", class: "col-bytes num", number: true },
  { key: "count", label: "Count", class: "col-count num", number: true },
  { key: "average", label: "Average", class: "col-average num", number: true },
  { key: "slope", label: "Growth", class: "col-growth num", number: true },
  { key: "age", label: "Oldest", class: "col-age num", number: true },
  { key: "module", label: "Module", class: "col-module" },
];

function startTable() {
  const table = {
    sort: "index", down: false, words: [], growing: false, pid: null, made: 0, page: PAGE,
    all: report.stacks.filter((stack) => stack.bytes > 0 || stack.count > 0 || stack.growing),
    rows: [], open: new Set(),
  };
  table.most = table.all.reduce((most, stack) => Math.max(most, stack.bytes), 1);
  if (!table.all.length) {
    emptyTable();
    return table;
  }
  makeHead(table);
  const filter = byId("filter");
  filter.addEventListener("input", () => {
    table.words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    fill(table);
  });
  const growing = byId("only-growing");
  growing.hidden = !table.all.some((stack) => stack.growing);
  growing.addEventListener("click", () => {
    table.growing = !table.growing;
    growing.setAttribute("aria-pressed", table.growing);
    fill(table);
  });
  byId("more").addEventListener("click", () => {
    table.page *= 2;
    addRows(table);
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, select, textarea");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      filter.focus();
    }
  });
  byId("stack-table").tBodies[0].addEventListener("click", (event) => {
    const row = event.target.closest("tr.row");
    if (row && !getSelection().toString()) toggle(table, row);
  });
  noteOthers();
  fill(table);
  return table;
}

function emptyTable() {
  byId("stack-table").hidden = true;
  document.querySelector("#stacks .tools").hidden = true;
  const empty = byId("stack-empty");
  empty.hidden = false;
  empty.textContent = "Nothing is outstanding: everything that was allocated while memleak watched has been freed.";
}

function noteOthers() {
  const { stacks, bytes, count } = report.other;
  if (!stacks) return;
  const note = byId("stack-note");
  note.hidden = false;
  note.textContent = `To keep this file small, ${plural(stacks, "smaller stack", "smaller stacks")} holding ${formatBytes(bytes)} in ${plural(count, "allocation", "allocations")} are left out of the table.`;
}

function makeHead(table) {
  const select = byId("sort");
  select.append(node("option", { value: "index" }, table.all.some((stack) => stack.growing) ? "Growing, then bytes" : "Bytes"));
  const heads = COLUMNS.map((column) => {
    const button = node("button", { type: "button" }, column.label);
    const head = node("th", { scope: "col", class: column.class }, button);
    button.addEventListener("click", () => {
      sortBy(table, column.key, table.sort === column.key ? !table.down : Boolean(column.number));
    });
    head.dataset.key = column.key;
    select.append(node("option", { value: column.key }, column.label));
    return head;
  });
  select.value = table.sort;
  select.addEventListener("change", () => {
    sortBy(table, select.value, Boolean(COLUMNS.find((column) => column.key === select.value)?.number));
  });
  byId("stack-table").tHead.rows[0].replaceChildren(...heads);
}

function sortBy(table, key, down) {
  table.sort = key;
  table.down = down;
  byId("sort").value = key;
  fill(table);
}

// Unknown values go last whichever way the column is sorted; ties keep the largest first.
function compare(table) {
  const { sort, down } = table;
  return (a, b) => {
    const [left, right] = [a[sort], b[sort]];
    const missing = (left === null || left === "") - (right === null || right === "");
    if (missing) return missing;
    const order = left < right ? -1 : left > right ? 1 : 0;
    return (down ? -order : order) || b.bytes - a.bytes || a.index - b.index;
  };
}

function fill(table) {
  for (const head of byId("stack-table").tHead.rows[0].cells) {
    if (head.dataset.key === table.sort) head.setAttribute("aria-sort", table.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  table.rows = table.all
    .filter((stack) => (!table.growing || stack.growing) && (table.pid === null || stack.pid === table.pid) && table.words.every((word) => haystack(stack).includes(word)))
    .sort(compare(table));
  table.made = 0;
  table.page = PAGE;
  byId("stack-table").tBodies[0].replaceChildren();
  addRows(table);
  tellStatus(table);
}

// Shows the stacks of one process only, or of all.
function showProcess(table, pid) {
  table.pid = pid;
  markProcess(table);
  fill(table);
}

function markProcess(table) {
  for (const item of document.querySelectorAll("#processes td[data-process]")) {
    item.firstElementChild?.setAttribute("aria-pressed", Number(item.dataset.process) === table.pid);
  }
}

function tellStatus(table) {
  const bytes = table.rows.reduce((sum, stack) => sum + stack.bytes, 0);
  const filtered = table.rows.length < table.all.length;
  const what = filtered
    ? `${formatCount(table.rows.length)} of ${plural(table.all.length, "stack", "stacks")}`
    : plural(table.all.length, "stack", "stacks");
  const process = table.pid === null ? "" : ` · ${processTitle({ pid: table.pid })}`;
  byId("stack-status").textContent = `${what} · ${formatBytes(bytes)}${process}`;
  const empty = byId("stack-empty");
  empty.hidden = table.rows.length > 0;
  empty.textContent = "No stack matches this filter.";
}

function addRows(table) {
  const next = table.rows.slice(table.made, table.made + table.page);
  table.made += next.length;
  const made = next.flatMap((stack) => (table.open.has(stack.index) ? [makeRow(table, stack), makeDetail(stack)] : [makeRow(table, stack)]));
  byId("stack-table").tBodies[0].append(...made);
  const more = byId("more");
  const left = table.rows.length - table.made;
  more.hidden = left === 0;
  more.textContent = `Show ${formatCount(Math.min(2 * table.page, left))} more of ${formatCount(left)}`;
}

function cell(column, className, ...children) {
  return node("td", { class: className, "data-label": column.label }, ...children);
}

function makeRow(table, stack) {
  const open = table.open.has(stack.index);
  const share = node("span", { class: "share", "aria-hidden": "true" });
  share.style.setProperty("--part", `${((stack.bytes / table.most) * 100).toFixed(1)}%`);
  const name = node("button", { type: "button", class: "row-name", "aria-expanded": open, title: stack.title },
    node("span", { class: "row-text" },
      node("bdi", { class: "row-title" }, stack.title),
      node("bdi", { class: "row-path" }, rowPath(stack))));
  const row = node("tr", { class: open ? "row open" : "row" },
    cell(COLUMNS[0], "cell-name", name),
    cell(COLUMNS[1], "num", formatBytes(stack.bytes), share),
    cell(COLUMNS[2], "num", formatCount(stack.count)),
    cell(COLUMNS[3], "num", formatBytes(stack.average)),
    cell(COLUMNS[4], "num cell-growth-wrap", growthCell(stack)),
    cell(COLUMNS[5], "num", formatDuration(stack.age)),
    cell(COLUMNS[6], "cell-module ellipsis", stack.module || "–"));
  row.dataset.stack = stack.index;
  return row;
}

function rowPath(stack) {
  const process = manyProcesses ? `${processTitle(stack)} · ` : "";
  return `${process}${stack.path ? `${stack.calls === null ? "" : "← "}${stack.path}` : ""}`;
}

function growthCell(stack) {
  const kind = stack.growth === null ? "too short" : VERDICTS[stack.growth.verdict];
  const label = stack.growing ? "growing" : kind;
  const badge = node("span", { class: `badge ${label.replace(" ", "-")}` }, label);
  const rate = stack.growing && stack.slope !== null ? node("span", { class: "rate" }, formatRate(stack.slope)) : null;
  return node("div", { class: "cell-growth" },
    sparkline(stack.spark, stack.growing ? "spark growing" : "spark"),
    node("div", { class: "growth-text" }, badge, rate));
}

function toggle(table, row) {
  const stack = report.stacks[Number(row.dataset.stack)];
  const open = !table.open.has(stack.index);
  row.querySelector(".row-name").setAttribute("aria-expanded", open);
  row.classList.toggle("open", open);
  if (open) {
    table.open.add(stack.index);
    row.after(makeDetail(stack));
  } else {
    table.open.delete(stack.index);
    row.nextElementSibling.remove();
  }
}

// Opens the row of a stack, from the alerts: drops a filter that hides it and makes rows until it is there.
function reveal(table, index) {
  const stack = report.stacks[index];
  if (!table.all.includes(stack)) return;
  table.open.add(index);
  if (!table.rows.includes(stack)) {
    byId("filter").value = "";
    table.words = [];
    table.pid = null;
    markProcess(table);
  }
  fill(table);
  while (table.made <= table.rows.indexOf(stack)) addRows(table);
  const row = document.querySelector(`tr.row[data-stack="${index}"]`);
  row.scrollIntoView({ block: "start" });
  row.querySelector(".row-name").focus({ preventScroll: true });
}

function makeDetail(stack) {
  const copy = node("button", { type: "button", class: "button" }, "Copy stack");
  copy.addEventListener("click", () => copyStack(copy, stack));
  const link = node("a", { class: "button", href: `#stack=${stack.id}` }, "Link");
  const find = node("button", { type: "button", class: "button" }, "Find in flame graph");
  find.hidden = stack.calls === null || !stack.calls.length;
  find.addEventListener("click", () => {
    const search = byId("flame-search");
    search.value = callName(stack.calls[stack.blame]);
    search.dispatchEvent(new Event("input"));
    byId("flame").scrollIntoView();
  });
  return node("tr", { class: "detail" },
    node("td", { colspan: COLUMNS.length },
      node("div", { class: "detail-grid" },
        node("div", {}, frameList(stack)),
        node("div", { class: "detail-side" },
          sparkline(stack.spark, stack.growing ? "spark growing" : "spark"),
          factList(stack),
          node("div", { class: "detail-actions" }, copy, find, link)))));
}

function frameList(stack) {
  if (stack.calls === null) {
    return node("p", { class: "empty" }, "The map of stacks was full when this memory was allocated: bytes and count are right, the stack is lost.");
  }
  const list = node("ol", { class: "frames", "aria-label": "Stack, innermost call first" });
  if (stack.blame > 1) {
    // the culprit comes first: what allocates on its behalf is folded
    list.classList.add("folded");
    const unfold = node("button", { type: "button", class: "unfold" }, `Show ${plural(stack.blame, "call", "calls")} of allocators and runtimes`);
    unfold.addEventListener("click", () => {
      list.classList.remove("folded");
      unfold.parentNode.remove();
    });
    list.append(node("li", { class: "fold" }, unfold));
  }
  stack.calls.forEach((id, at) => {
    const call = report.calls[id];
    const offset = call[NAME] >= 0 && !call[INLINED] ? `+0x${call[OFFSET].toString(16)}` : "";
    const place = [callPlace(id), moduleName(call[MODULE]), call[INLINED] ? "inlined" : call[ADDRESS]].filter(Boolean).join(" · ");
    const classes = [call[INLINED] ? "inlined" : "", at === stack.blame ? "blamed" : "", at < stack.blame ? "passed-over" : ""].join(" ").trim();
    list.append(node("li", { class: classes || null },
      node("bdi", { class: "frame-name" }, callName(id) + offset),
      node("bdi", { class: "frame-place" }, place)));
  });
  return list;
}

function factList(stack) {
  const facts = [
    ["Outstanding", `${formatCount(stack.bytes)} bytes in ${plural(stack.count, "allocation", "allocations")}`],
    ["Most at once", formatBytes(stack.peak)],
  ];
  if (stack.allocator) facts.push(["Allocator", stack.allocator]);
  const growth = stack.growth;
  if (growth !== null) {
    facts.push(["Verdict", `${VERDICTS[growth.verdict]}${growth.continuous ? ", rose in every snapshot" : ""}`]);
    if (growth.rate) facts.push(["Trend", formatRate(growth.rate[0])], ["95 % interval", formatRates(growth.rate[1], growth.rate[2])]);
    facts.push(["Judged over", plural(growth.points, "snapshot", "snapshots")]);
  }
  facts.push(["Kind", stack.class === "mmap" ? "anonymous mapping" : "heap"]);
  if (stack.pid) facts.push(["Process", processTitle(stack).slice("pid ".length)]);
  return node("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [node("dt", {}, name), node("dd", {}, value)]));
}

async function copyStack(button, stack) {
  const say = (words) => {
    button.textContent = words;
    setTimeout(() => { button.textContent = "Copy stack"; }, 1600);
  };
  try {
    await navigator.clipboard.writeText(stackText(stack));
    say("Copied");
  } catch {
    say("Copying was refused");
  }
}
