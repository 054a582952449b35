// The two trend charts, their shared legend, cursor and zoom. Drawing is uPlot's.

const MAX_SHOWN = 5;

// The lines of both charts: the total, the resident memory where it is known, and the top stacks.
function chartLines() {
  const lines = [{ name: "All stacks", bytes: report.total.bytes, count: report.total.count, colour: "total", fill: "total-fill", show: true }];
  report.series.forEach((series, at) => {
    const stack = report.stacks[series.stack];
    lines.push({ name: stack.title, bytes: series.bytes, count: series.count, colour: `s${at % 10}`, show: at < MAX_SHOWN });
  });
  if (report.rss) {
    const none = report.rss.map(() => null);
    lines.push({ name: "Resident memory (RSS)", plain: true, bytes: report.rss, count: none, colour: "muted", dash: [6, 4], show: true });
  }
  return lines;
}

const SECONDS = [0.001, 0.01, 0.1, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 345600, 604800, 1209600, 2592000, 7776000, 31536000];
const BINARY = Array.from({ length: 54 }, (_, power) => 2 ** power);
const DECIMAL = Array.from({ length: 46 }, (_, at) => [1, 2, 5][at % 3] * 10 ** Math.floor(at / 3));

function timeLabels(splits, found) {
  const span = splits.length > 1 ? splits.at(-1) - splits[0] : 0;
  return splits.map((value, at) => {
    if (value === null) return "";
    const iso = new Date(Math.round(value * 1000)).toISOString();
    const clock = found < 1 ? iso.slice(11, 23) : found < 60 ? iso.slice(11, 19) : iso.slice(11, 16);
    const newDay = at === 0 || splits[at - 1] === null || new Date(splits[at - 1] * 1000).toISOString().slice(0, 10) !== iso.slice(0, 10);
    if (!report.dated) return clock;
    if (found >= 86400) return iso.slice(0, 10);
    return newDay && span > 43200 ? `${clock}\n${iso.slice(5, 10)}` : clock;
  });
}

function countLabel(value) {
  if (value >= 1e9) return `${value / 1e9} G`;
  if (value >= 1e6) return `${value / 1e6} M`;
  if (value >= 1e4) return `${value / 1e3} k`;
  return formatCount(value);
}

function axis(values, incrs, size, space) {
  return {
    stroke: () => colour("muted"),
    font: "12px system-ui, sans-serif",
    grid: { stroke: () => colour("grid"), width: 1 },
    ticks: { show: false },
    values, incrs, size, space,
    gap: 8,
  };
}

function startCharts() {
  if (!report.times.length) {
    byId("charts").replaceChildren(node("p", { class: "empty" }, "No snapshot was taken, so there is nothing to draw."));
    document.querySelector("#trends .tools").hidden = true;
    return;
  }
  const lines = chartLines();
  const times = report.times.map((time) => (report.start + time) / 1000);
  const group = {
    lines, times, charts: [],
    full: times.length > 1 ? [times[0], times.at(-1)] : [times[0] - 1, times[0] + 1],
    shown: null, readAt: null,
  };
  group.marks = report.marks.map((mark) => (report.start + mark) / 1000);
  group.charts.push(makeChart(group, "chart-bytes", "bytes", "Outstanding bytes", (u, splits) => splits.map(formatTick), BINARY));
  group.charts.push(makeChart(group, "chart-count", "count", "Outstanding allocations", (u, splits) => splits.map(countLabel), DECIMAL));
  makeLegend(group);
  wireZoom(group);
  watchCharts(group);
  showRange(group);
  const notes = [];
  if (report.marks.length) notes.push("Dashed upright lines: a baseline was marked.");
  if (report.perPoint > 1) {
    notes.push(
      `${formatCount(report.snapshots)} snapshots are drawn thinned out: each pair of points is the lowest and the highest of up to ${report.perPoint} snapshots, so no peak is lost.`);
  }
  byId("trend-note").textContent = notes.join(" ");
}

const formatTick = (value) => (value === null ? "" : formatBytes(value).replace(/\.0+ /, " ").replace(/(\.\d)0 /, "$1 "));

function makeChart(group, id, kind, label, values, incrs) {
  const host = byId(id);
  const options = {
    width: Math.max(200, host.clientWidth),
    height: host.clientHeight,
    legend: { show: false },
    padding: [8, 28, 0, 0],
    focus: { alpha: 0.25 },
    cursor: {
      sync: { key: "memleak", setSeries: false, scales: ["x", null] },
      focus: { prox: 24 },
      drag: { x: true, y: false, setScale: false },
      points: { size: 7 },
      y: false,
    },
    scales: {
      x: { time: false, range: (u, low, high) => (group.shown ?? group.full) },
      y: { range: (u, low, high) => [0, (high > 0 ? high : 1) * 1.06] },
    },
    axes: [
      axis((u, splits, index, space, found) => timeLabels(splits, found), SECONDS, group.full[1] - group.full[0] > 43200 ? 42 : 28, 90),
      axis(values, incrs, 78, 34),
    ],
    series: [{}, ...group.lines.map(chartSeries)],
    hooks: {
      drawAxes: [(u) => drawMarks(group, u)],
      setSelect: [(u) => selected(group, u)],
      setCursor: [(u) => pointed(group, u, kind)],
    },
  };
  const data = [group.times, ...group.lines.map((line) => line[kind])];
  const plot = new uPlot(options, data, host);
  const last = group.lines[0][kind].at(-1);
  host.setAttribute("aria-label", `${label} over time; at the end ${kind === "bytes" ? formatBytes(last) : formatCount(last)}. Arrow keys read values, plus and minus zoom, 0 shows everything.`);
  plot.over.addEventListener("dblclick", () => zoomTo(group, null));
  plot.over.addEventListener("mouseleave", () => leave(group));
  plot.over.addEventListener("touchmove", (event) => touch(plot, event), { passive: true });
  plot.over.addEventListener("touchend", () => leave(group), { passive: true });
  host.addEventListener("keydown", (event) => chartKey(group, plot, event));
  host.addEventListener("blur", () => leave(group));
  return { plot, host, kind };
}

function chartSeries(line) {
  return {
    label: line.name,
    show: line.show,
    stroke: () => colour(line.colour),
    fill: line.fill ? () => colour(line.fill) : undefined,
    width: line.fill ? 1.5 : 2,
    dash: line.dash,
    points: { show: report.times.length < 40, size: 5 },
  };
}

// Upright lines where a baseline was marked.
function drawMarks(group, plot) {
  const { left, top, width, height } = plot.bbox;
  plot.ctx.save();
  plot.ctx.strokeStyle = colour("line-strong");
  plot.ctx.lineWidth = devicePixelRatio || 1;
  plot.ctx.setLineDash([4, 4]);
  for (const mark of group.marks) {
    const x = plot.valToPos(mark, "x", true);
    if (x < left || x > left + width) continue;
    plot.ctx.beginPath();
    plot.ctx.moveTo(x, top);
    plot.ctx.lineTo(x, top + height);
    plot.ctx.stroke();
  }
  plot.ctx.restore();
}

function selected(group, plot) {
  const { left, width } = plot.select;
  if (width < 4) return;
  zoomTo(group, [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
  plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
}

// `range` in seconds, or null for everything. Both charts always show the same span.
function zoomTo(group, range) {
  const [first, last] = group.full;
  const least = Math.min(last - first, Math.max(0.002, (last - first) / 5000));
  if (range) {
    const width = Math.max(least, range[1] - range[0]);
    const low = Math.min(Math.max(first, range[0]), last - Math.min(width, last - first));
    range = width >= last - first ? null : [low, low + width];
  }
  group.shown = range;
  const [min, max] = range ?? group.full;
  group.charts.forEach(({ plot }) => plot.setScale("x", { min, max }));
  byId("zoom-reset").disabled = range === null;
  showRange(group);
}

function zoomBy(group, factor) {
  const [low, high] = group.shown ?? group.full;
  const at = group.readAt === null ? (low + high) / 2 : group.times[group.readAt];
  const middle = Math.min(high, Math.max(low, at));
  const span = (high - low) * factor;
  const part = high > low ? (middle - low) / (high - low) : 0.5;
  zoomTo(group, [middle - span * part, middle + span * (1 - part)]);
}

function showRange(group) {
  const [low, high] = group.shown ?? group.full;
  const dates = report.dated && high - low > 43200;
  byId("trend-range").textContent = `${formatClock(low, dates)} – ${formatClock(high, dates)}`;
}

function wireZoom(group) {
  byId("zoom-in").addEventListener("click", () => zoomBy(group, 0.5));
  byId("zoom-out").addEventListener("click", () => zoomBy(group, 2));
  byId("zoom-reset").addEventListener("click", () => zoomTo(group, null));
}

function chartKey(group, plot, event) {
  const keys = { "+": 0.5, "=": 0.5, "-": 2 };
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    const [low, high] = group.shown ?? group.full;
    const step = event.key === "ArrowLeft" ? -1 : 1;
    const from = plot.cursor.idx ?? group.times.length - (step > 0 ? 2 : 0);
    let to = Math.min(group.times.length - 1, Math.max(0, from + step));
    if (group.times[to] < low || group.times[to] > high) to = plot.valToIdx(step > 0 ? low : high);
    plot.setCursor({ left: plot.valToPos(group.times[to], "x"), top: 10 });
    byId("trend-readout").textContent = readout(group, plot.cursor.idx);
  } else if (keys[event.key]) {
    zoomBy(group, keys[event.key]);
  } else if (event.key === "0" || event.key === "Escape") {
    zoomTo(group, null);
    leave(group);
  } else {
    return;
  }
  event.preventDefault();
}

function readout(group, at) {
  if (at === null || at === undefined) return "";
  const shown = group.lines.filter((line) => line.show && line.bytes[at] !== null);
  return [formatClock(group.times[at], report.dated), ...shown.map((line) => `${line.name} ${formatBytes(line.bytes[at])}`)].join(", ");
}

function touch(plot, event) {
  const box = plot.over.getBoundingClientRect();
  const finger = event.touches[0];
  plot.setCursor({ left: finger.clientX - box.left, top: finger.clientY - box.top });
}

function leave(group) {
  group.readAt = null;
  hideTip();
  group.charts.forEach(({ plot }) => plot.setCursor({ left: -10, top: -10 }));
  legendValues(group, group.times.length - 1);
}

// The box beside the cursor: the lines that are shown, largest first, in the unit of the chart under the pointer.
function pointed(group, plot, kind) {
  const at = plot.cursor.idx;
  if (plot.cursor.left < 0 || at === null || at === undefined) return;
  const driven = plot.cursor.event !== null && plot.cursor.event !== undefined ? plot.over.matches(":hover") : plot.root.parentElement.matches(":focus, :hover");
  if (!driven) return;
  group.readAt = at;
  legendValues(group, at);
  const format = kind === "bytes" ? formatBytes : formatCount;
  const shown = group.lines.filter((line) => line.show && line[kind][at] !== null).sort((a, b) => b[kind][at] - a[kind][at]);
  const since = formatDuration(report.times[at] + report.before);
  const rows = shown.slice(0, 12).map((line) =>
    node("div", { class: "tip-row" }, swatch(line.colour), node("span", { class: "name" }, line.name), node("span", { class: "value" }, format(line[kind][at]))));
  const box = plot.over.getBoundingClientRect();
  showTip(box.left + plot.cursor.left, box.top + plot.cursor.top, node("div", { class: "tip-title" }, `${formatClock(group.times[at], report.dated)} · ${since} after the start`), ...rows);
}

function makeLegend(group) {
  group.chips = group.lines.map((line, at) => {
    const value = node("span", { class: "value" });
    const chip = node("button", { type: "button", class: "chip", "aria-pressed": line.show, title: line.name }, swatch(line.colour), node("span", { class: "name" }, line.name), value);
    chip.addEventListener("click", () => {
      line.show = !line.show;
      chip.setAttribute("aria-pressed", line.show);
      group.charts.forEach(({ plot }) => plot.setSeries(at + 1, { show: line.show }));
    });
    const focus = (on) => group.charts.forEach(({ plot }) => plot.setSeries(on && line.show ? at + 1 : null, { focus: on && line.show }));
    chip.addEventListener("mouseenter", () => focus(true));
    chip.addEventListener("mouseleave", () => focus(false));
    return { chip, value };
  });
  byId("legend").replaceChildren(...group.chips.map(({ chip }) => chip));
  legendValues(group, group.times.length - 1);
}

function legendValues(group, at) {
  group.chips?.forEach(({ value }, line) => {
    value.textContent = formatBytes(group.lines[line].bytes[at]);
  });
}

function watchCharts(group) {
  const resize = () => group.charts.forEach(({ plot, host }) => {
    if (host.clientWidth && (host.clientWidth !== plot.width || host.clientHeight !== plot.height)) {
      plot.setSize({ width: host.clientWidth, height: host.clientHeight });
    }
  });
  new ResizeObserver(resize).observe(byId("charts"));
  document.addEventListener("themechange", () => group.charts.forEach(({ plot }) => plot.redraw(false, true)));
}
