// The data of the report and how its parts are named. The shape is written by payload.rs.

const report = JSON.parse(byId("data").textContent);

const VERDICTS = ["growing", "plateau", "sawtooth", "shrinking", "too short"];

// Fields of a call, as payload.rs orders them.
const [NAME, MODULE, FILE, LINE, ADDRESS, OFFSET, INLINED, SHORT] = [0, 1, 2, 3, 4, 5, 6, 7];

const text = (id) => (id < 0 ? "" : report.strings[id]);
const moduleName = (id) => (id < 0 ? "" : report.modules[id][0]);

function callName(id) {
  return text(report.calls[id][NAME]) || "[unknown]";
}

function callPlace(id) {
  const call = report.calls[id];
  if (call[FILE] < 0) return "";
  return call[LINE] ? `${text(call[FILE])}:${call[LINE]}` : text(call[FILE]);
}

// The name without parameters and long template arguments.
function shortName(id) {
  const call = report.calls[id];
  if (call[NAME] < 0) return "[unknown]";
  return text(call[SHORT] < 0 ? call[NAME] : call[SHORT]);
}

// An unnamed function is told apart by where it lies.
function callTitle(id) {
  const call = report.calls[id];
  if (call[NAME] >= 0) return shortName(id);
  if (call[MODULE] < 0) return `[unknown] ${call[ADDRESS]}`;
  return `[unknown] ${moduleName(call[MODULE])}${call[OFFSET] === null ? "" : `+0x${call[OFFSET].toString(16)}`}`;
}

// Every stack gets the figures that the table sorts by, and its names.
report.stacks.forEach((stack, index) => {
  stack.index = index;
  stack.average = stack.count ? stack.bytes / stack.count : 0;
  stack.growing = stack.growth !== null && stack.growth.growing;
  stack.slope = stack.growth === null || stack.growth.rate === null ? null : stack.growth.rate[0];
  if (stack.calls === null) {
    stack.title = "[stack not stored]";
    stack.path = "the tracer had no room for it";
    stack.module = "";
    return;
  }
  stack.title = stack.calls.length ? callTitle(stack.calls[stack.blame]) : "[empty stack]";
  stack.path = stack.calls.slice(stack.blame + 1, stack.blame + 5).map(callTitle).join(" ← ");
  stack.module = stack.calls.length ? moduleName(report.calls[stack.calls[stack.blame]][MODULE]) : "";
});

const manyProcesses = new Set(report.stacks.map((stack) => stack.pid)).size > 1;

// "pid 4711 (nginx)"; the name only where several processes were traced.
function processTitle(stack) {
  const name = report.processes?.[stack.pid];
  return name === undefined ? `pid ${stack.pid}` : `pid ${stack.pid} (${name})`;
}

// Everything that the filter looks at, made when it is first needed.
function haystack(stack) {
  if (stack.haystack === undefined) {
    const words = new Set([processTitle(stack), stack.class, stack.allocator ?? "", stack.title]);
    for (const id of stack.calls ?? []) {
      const call = report.calls[id];
      words.add(text(call[NAME]));
      words.add(call[MODULE] < 0 ? "" : report.modules[call[MODULE]][1]);
      words.add(callPlace(id));
    }
    stack.haystack = [...words].join("\n").toLowerCase();
  }
  return stack.haystack;
}

// One line per call, in the form of the text report.
function stackText(stack) {
  const lines = (stack.calls ?? []).map((id) => {
    const call = report.calls[id];
    const offset = call[INLINED] ? " (inlined)" : `+0x${call[OFFSET].toString(16)}`;
    const module = moduleName(call[MODULE]) ? ` [${moduleName(call[MODULE])}]` : "";
    const place = callPlace(id) ? ` ${callPlace(id)}` : "";
    return `\t\t${call[ADDRESS]}\t${callName(id)}${call[NAME] < 0 ? "" : offset}${module}${place}`;
  });
  return [`\t${stack.bytes} bytes in ${stack.count} allocations from stack`, ...lines, ""].join("\n");
}
