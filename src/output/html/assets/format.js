// Numbers as people read them: bytes, counts, durations, rates, times of day. Nothing here touches the page.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const grouped = new Intl.NumberFormat("en-US");

// 1536 → "1.50 KiB": three significant digits, so that columns of figures compare at a glance.
function formatBytes(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  let value = Math.abs(bytes);
  let unit = 0;
  while (value >= 1023.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return `${bytes < 0 ? "−" : ""}${value.toFixed(digits)} ${UNITS[unit]}`;
}

function formatCount(count) {
  return count === null || count === undefined ? "–" : grouped.format(count);
}

function plural(count, one, many) {
  return `${grouped.format(count)} ${count === 1 ? one : many}`;
}

function unitOfRate(bytesPerSecond) {
  const size = Math.abs(bytesPerSecond);
  return size >= 1024 ? [1, "s"] : size * 60 >= 1024 ? [60, "min"] : [3600, "h"];
}

// Two rates and the unit that they share.
function formatRates(low, high) {
  const [factor, unit] = unitOfRate(high);
  return `${formatBytes(low * factor)} to ${formatBytes(high * factor)}/${unit}`;
}

// Bytes per second in the unit of time that gives the most readable figure.
function formatRate(bytesPerSecond) {
  const [factor, unit] = unitOfRate(bytesPerSecond);
  const sign = bytesPerSecond > 0 ? "+" : "";
  return `${sign}${formatBytes(bytesPerSecond * factor)}/${unit}`;
}

function formatDuration(milliseconds) {
  if (milliseconds === null || milliseconds === undefined) return "–";
  const seconds = milliseconds / 1000;
  if (seconds < 1) return `${Math.round(milliseconds)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const parts = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = parts.findIndex(([, size]) => seconds >= size);
  const [unit, size] = parts[first];
  const [nextUnit, nextSize] = parts[first + 1];
  const rest = Math.floor((seconds % size) / nextSize);
  return `${Math.floor(seconds / size)} ${unit}${rest ? ` ${rest} ${nextUnit}` : ""}`;
}

// Times arrive as seconds already shifted to the zone of the recording, so UTC getters read local figures.
function formatClock(seconds, withDate) {
  const iso = new Date(Math.round(seconds * 1000)).toISOString();
  return withDate ? `${iso.slice(0, 10)} ${iso.slice(11, 19)}` : iso.slice(11, 19);
}
