"use strict";
// Texts of the grid reach the document through textContent and setAttribute only.

const data = JSON.parse(document.getElementById("data").textContent);
const { rows, axes, metrics } = data;
const cells = rows.filter((row) => row.at);
rows.forEach((row, index) => { row.index = index; });

const $ = (id) => document.getElementById(id);

function make(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== ""));
  return element;
}

// Numbers ------------------------------------------------------------------------------------------

const number = (value) => (typeof value === "string" ? Number(value.replace("inf", "Infinity")) : value);
const valueOf = (row, metric) => number(row.values[metric.key][0]);
const defined = (value) => value !== null && Number.isFinite(value);

function short(value, digits = 3) {
  value = number(value);
  if (value === null) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  const text = size >= 10 ** digits ? value.toFixed(0)
    : size !== 0 && size < 1e-4 ? value.toExponential(1) : value.toPrecision(digits);
  return text.replace("-", "−");
}

const GOALS = { one: () => 1, zero: () => 0, teacher: (row, metric) => valueOf(rows[row.teacher], metric) };

// The larger, the better.
function merit(row, metric) {
  const value = valueOf(row, metric);
  if (value === null) return null;
  if (metric.better in GOALS) return -Math.abs(value - GOALS[metric.better](row, metric));
  return metric.better === "low" ? -value : value;
}

// Words --------------------------------------------------------------------------------------------

const named = (row) => row.at.map((place, n) => `${axes[n].name} ${axes[n].values[place]}`).join(" · ");
const drawn = (row) => `${row.how[0]}, ${row.how[1]} steps${row.how[2] > 1 ? `, guidance ${row.how[2]}` : ""}`;
const title = (row) => (row.at ? named(row) || "The cell" : `${row.role}: ${drawn(row)}`);

function measured(row, metric) {
  const [value, low, high] = row.values[metric.key];
  const ends = low === null ? "" : ` [${short(low)}, ${short(high)}]`;
  return `${metric.key} ${short(value)}${ends}`;
}

function against(row, metric) {
  if (row.baseline) return "the baseline";
  const found = row.against[metric.key];
  if (!found || found[3] === null) return "";
  const [diff, low, high, p, better] = found;
  const gap = `${diff > 0 ? "+" : ""}${short(diff)}${low === null ? "" : ` [${short(low)}, ${short(high)}]`}`;
  const word = p > data.sure ? "not told apart from" : better === null ? "different from" : better > 0.5 ? "better than" : "worse than";
  return `${word} the baseline: ${gap}, p ${short(p, 2)} (Holm)`;
}

const unsure = (row, metric) => metric.key in row.against && !(row.against[metric.key][3] <= data.sure);

function details(row, metric) {
  const control = rows[row.control];
  return [
    measured(row, metric),
    row.best ? `may be the best one${row.chance === null ? "" : `, probability ${short(row.chance, 2)}`}` : "",
    against(row, metric),
    control ? `control of as many passes: ${short(control.values[metric.key][0])}` : "",
    `${row.pictures} pictures of ${row.prompts} prompts, ${row.nfe} UNet passes each`,
    row.faults ? `${row.faults} of them defective` : "",
  ].filter(Boolean);
}

// Colours: worst to best over the whole grid -------------------------------------------------------

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const stops = data.palette.map(channels);

function colour(level) {
  const at = Math.min(Math.max(level, 0), 1) * (stops.length - 1);
  const below = Math.min(Math.floor(at), stops.length - 2);
  return stops[below].map((channel, n) => Math.round(channel + (stops[below + 1][n] - channel) * (at - below)));
}

function scale(metric) {
  const known = cells.filter((row) => defined(merit(row, metric)));
  const merits = known.map((row) => merit(row, metric));
  const [low, high] = [Math.min(...merits), Math.max(...merits)];
  return {
    worst: known[merits.indexOf(low)],
    best: known[merits.indexOf(high)],
    level: (row) => (high > low ? (merit(row, metric) - low) / (high - low) : 1),
  };
}

function paint(element, level) {
  const [red, green, blue] = colour(level);
  element.style.backgroundColor = `rgb(${red} ${green} ${blue})`;
  element.style.color = 0.3 * red + 0.59 * green + 0.11 * blue < 128 ? "#fff" : "#10131a";
}

// What is shown, and the controls of it ------------------------------------------------------------

const NONE = -1;
const shown = {
  metric: Math.max(0, metrics.findIndex((metric) => metric.key === data.metric)),
  down: axes.length > 0 ? 0 : NONE,
  across: axes.length > 1 ? 1 : NONE,
  panels: axes.length > 2 ? 2 : NONE,
  picks: axes.map(() => 0),
  open: cells.reduce((best, row) => ((row.chance ?? -1) > (best.chance ?? -1) ? row : best), cells[0]),
};
const metric = () => metrics[shown.metric];
const placed = () => [shown.down, shown.across, shown.panels];

function choice(label, options, value, change) {
  const list = make("select", { onchange: (event) => { change(Number(event.target.value)); draw(); $("controls").querySelector(`[data-name="${CSS.escape(label)}"]`)?.focus(); }, "data-name": label },
    ...options.map(([key, text]) => make("option", { value: key, selected: key === value }, text)));
  return make("label", {}, label, list);
}

function place(slot, axis) {
  const before = shown[slot];
  for (const other of ["down", "across", "panels"]) {
    if (other !== slot && axis !== NONE && shown[other] === axis) shown[other] = before;
  }
  shown[slot] = axis;
}

function controls() {
  const names = axes.map((axis, n) => [n, axis.name]);
  const slots = axes.length > 1 ? [["Down", "down"], ["Across", "across"], ["Panels", "panels"]] : [];
  $("controls").replaceChildren(
    choice("Metric", metrics.map((one, n) => [n, `${one.key} (${one.goal})`]), shown.metric, (n) => { shown.metric = n; }),
    ...slots.map(([label, slot]) => choice(label, [...(slot === "down" ? [] : [[NONE, "none"]]), ...names], shown[slot], (n) => place(slot, n))),
    ...axes.flatMap((axis, n) => (placed().includes(n) ? [] : [
      choice(axis.name, axis.values.map((value, m) => [m, value]), shown.picks[n], (m) => { shown.picks[n] = m; }),
    ])),
  );
  $("meaning").textContent = `${metric().key}: ${metric().meaning}.`;
}

// Heat map -----------------------------------------------------------------------------------------

const byPlace = new Map(cells.map((row) => [row.at.join(), row]));
const along = (axis) => (axis === NONE ? [""] : axes[axis].values);
let squares = []; // [down][panel · across] of elements, or undefined

function rowAt(down, across, panel) {
  const at = [...shown.picks];
  for (const [axis, value] of [[shown.down, down], [shown.across, across], [shown.panels, panel]]) {
    if (axis !== NONE) at[axis] = value;
  }
  return byPlace.get(at.join());
}

function square(row, colours) {
  if (!row) return make("td", { class: "absent", "aria-label": "not drawn" }, "·");
  const one = metric();
  const [value, low, high] = row.values[one.key];
  const half = defined(low) && defined(high) ? `± ${short((high - low) / 2, 2)}` : "";
  const marks = { best: row.best, baseline: row.baseline, unsure: unsure(row, one), faulty: row.faults > 0 };
  const element = make("td", {
    role: "gridcell", tabindex: -1, "data-row": row.index, "aria-selected": row === shown.open,
    "aria-label": [named(row), ...details(row, one)].join("; "),
    class: Object.keys(marks).filter((name) => marks[name]).join(" "),
    onclick: () => show(row, true),
    onpointerenter: () => tip(row, element), onpointerleave: hideTip,
    onfocus: () => tip(row, element), onblur: hideTip,
  }, short(value), make("small", {}, half));
  if (defined(merit(row, one))) paint(element, colours.level(row));
  return element;
}

function panel(at, colours, lines) {
  const across = along(shown.across);
  const members = [];
  const body = along(shown.down).map((value, down) => {
    const line = across.map((_, n) => {
      const row = rowAt(down, n, at);
      if (row) members.push(row);
      const element = square(row, colours);
      lines[down].push(row && element);
      return element;
    });
    return make("tr", { role: "row" }, make("th", { scope: "row", role: "rowheader" }, make("bdi", {}, value)), ...line);
  });
  const corner = `${shown.down === NONE ? "" : `${axes[shown.down].name} ↓`}${shown.across === NONE ? "" : ` ${axes[shown.across].name} →`}`;
  const head = make("tr", { role: "row" }, make("th", { class: "corner" }, corner),
    ...across.map((value) => make("th", { scope: "col", role: "columnheader" }, make("bdi", {}, value))));
  const controls = [...new Set(members.map((row) => row.control))].map((n) => rows[n]).filter(Boolean);
  const name = shown.panels === NONE ? "" : `${axes[shown.panels].name} ${axes[shown.panels].values[at]}`;
  return make("figure", {},
    make("figcaption", {}, name, make("small", {}, controls.length === 1 ? `control ${short(controls[0].values[metric().key][0])}` : "")),
    make("table", { role: "grid", "aria-label": `${metric().key} ${name}` }, make("thead", {}, head), make("tbody", {}, ...body)));
}

function heat() {
  const colours = scale(metric());
  squares = along(shown.down).map(() => []);
  $("map").replaceChildren(...along(shown.panels).map((_, at) => panel(at, colours, squares)));
  const all = squares.flat().filter(Boolean);
  const first = all.find((element) => Number(element.dataset.row) === shown.open.index) ?? all[0];
  if (first) first.tabIndex = 0;
  legend(colours);
}

function legend(colours) {
  const key = (mark, text) => make("span", {}, make("i", { class: mark }), text);
  const one = metric();
  const ramp = make("i", { class: "ramp" });
  ramp.style.background = `linear-gradient(90deg, ${data.palette.join()})`;
  const margins = ["teacher", "base"].flatMap((role) => {
    const of = rows.filter((row) => row.role === role);
    return of.length === 1 ? [`${role} ${short(of[0].values[one.key][0])}`] : [];
  });
  $("legend").replaceChildren(...[
    colours.best && make("span", {}, short(valueOf(colours.worst, one)), ramp, `${short(valueOf(colours.best, one))}, bright is better`),
    cells.some((row) => row.best) && key("best", `may be the best by ${data.metric}`),
    cells.some((row) => unsure(row, one)) && key("unsure", "not told apart from the baseline"),
    cells.some((row) => row.baseline) && key("baseline", "baseline"),
    cells.some((row) => row.values[one.key][1] !== null) && make("span", {}, "± half of the 95 % interval"),
    margins.length > 0 && make("span", {}, margins.join(" · ")),
  ].filter(Boolean));
}

const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function focusOn(element, others) {
  for (const other of others) other.tabIndex = -1;
  element.tabIndex = 0;
  element.focus();
}

$("map").addEventListener("keydown", (event) => {
  const here = event.target;
  let y = squares.findIndex((line) => line.includes(here));
  if (y < 0) return;
  let x = squares[y].indexOf(here);
  const all = squares.flat().filter(Boolean);
  if (event.key in MOVES) {
    const [down, right] = MOVES[event.key];
    do { y += down; x += right; } while (squares[y] && x >= 0 && x < squares[y].length && !squares[y][x]);
    if (squares[y]?.[x]) focusOn(squares[y][x], all);
  } else if (event.key === "Home" || event.key === "End") {
    const line = squares[y].filter(Boolean);
    focusOn(line[event.key === "Home" ? 0 : line.length - 1], all);
  } else if (event.key === "Enter" || event.key === " ") {
    show(rows[here.dataset.row], true);
  } else if (event.key === "Escape") {
    hideTip();
    return;
  } else return;
  event.preventDefault();
});

// Tip ----------------------------------------------------------------------------------------------

function tip(row, element) {
  const box = $("tip");
  box.replaceChildren(make("strong", {}, title(row)), ...details(row, metric()).map((line) => make("span", {}, line)));
  box.hidden = false;
  const at = element.getBoundingClientRect();
  const { width, height } = box.getBoundingClientRect();
  const above = at.top - height - 12;
  box.style.left = `${Math.max(8, Math.min(at.left + at.width / 2 - width / 2, document.documentElement.clientWidth - width - 8))}px`;
  box.style.top = `${above > 8 ? above : at.bottom + 12}px`;
}

function hideTip() { $("tip").hidden = true; }
addEventListener("scroll", hideTip, { passive: true });

// Pictures -----------------------------------------------------------------------------------------

let cameFrom = null;

function picture(row, item, label, own) {
  const found = data.pictures[row.index][item];
  if (!found) return make("span", {}, make("b", {}, "none"), label);
  const [thumb, path, fault] = found;
  const inside = thumb >= 0
    ? make("img", { src: `data:image/webp;base64,${data.thumbs[thumb]}`, alt: `${title(row)}: ${data.items[item][0]}, seed ${data.items[item][1]}`, decoding: "async" })
    : make("b", {}, "open");
  const href = path.split("/").map(encodeURIComponent).join("/");
  return make("a", { href, target: "_blank", rel: "noopener", class: own ? "own" : undefined }, inside, fault ? `${label}: ${fault}` : label);
}

function show(row, move) {
  shown.open = row;
  for (const element of document.querySelectorAll("[aria-selected]")) {
    element.setAttribute("aria-selected", Number(element.dataset.row) === row.index);
  }
  const baseline = rows.find((other) => other.baseline && other !== row && other.teacher === row.teacher);
  const strip = [[row, row.at ? "this cell" : row.role], [rows[row.teacher], "teacher"], [rows[row.control], "control"], [baseline, "baseline"]]
    .filter(([one], n) => one && (n === 0 || one !== row));
  $("album-title").textContent = `Pictures: ${title(row)}`;
  $("album-facts").textContent = details(row, metric()).join("; ");
  $("album").replaceChildren(...data.items.map(([prompt, seed], item) => make("figure", {},
    make("figcaption", {}, make("bdi", { title: prompt }, prompt), make("small", {}, `seed ${seed}`)),
    make("div", { class: "strip" }, ...strip.map(([one, label], n) => picture(one, item, label, n === 0))))));
  const links = data.items.length - data.shown;
  $("album-more").textContent = [
    `${data.shown} of ${data.drawn} pictures of each row are in this page`,
    links ? `${links} more are links into the folder beside it` : "",
    data.items.length < data.drawn ? `images.csv lists all` : "",
  ].filter(Boolean).join(", ") + ". Each one leads to the whole picture.";
  if (move) {
    cameFrom = document.activeElement;
    hideTip();
    $("album-title").focus();
    $("album-title").scrollIntoView({ block: "start" });
  }
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !cameFrom?.isConnected || !$("album-title").parentElement.contains(event.target)) return;
  cameFrom.focus();
  cameFrom.scrollIntoView({ block: "center" });
});

// Quality against cost -----------------------------------------------------------------------------

const SHAPES = {
  cell: "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z",
  control: "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
  teacher: "M-4.5 -4.5H4.5V4.5H-4.5Z",
};

function draws(tag, props, ...children) {
  const element = document.createElementNS($("pareto").namespaceURI, tag);
  for (const [name, value] of Object.entries(props)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Cells of one base and style that no other one beats in both; equal ones together.
function front(group, one) {
  return group.filter((row) => !group.some((other) =>
    (other.nfe < row.nfe && merit(other, one) >= merit(row, one)) || (other.nfe === row.nfe && merit(other, one) > merit(row, one))));
}

function ticks(low, high) {
  const rough = (high - low) / 5 || 1;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((n) => n * size >= rough) * size;
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high; n += 1) found.push(Number((n * step).toPrecision(6)));
  return found;
}

function ends(row, one) {
  const [value, low, high] = row.values[one.key].map(number);
  return [low ?? value, high ?? value].filter(defined);
}

function pareto() {
  const svg = $("pareto");
  const one = metric();
  const points = rows.filter((row) => row.role in SHAPES && defined(valueOf(row, one)));
  const [width, height] = [svg.clientWidth || 720, svg.clientHeight || 384];
  const [left, top, foot] = [56, 12, 44];
  const passes = [...new Set(points.map((row) => row.nfe))].sort((a, b) => a - b);
  const spread = points.flatMap((row) => ends(row, one));
  const [low, high] = [Math.min(...spread), Math.max(...spread)];
  const room = (high - low) * 0.05 || 0.5;
  const octaves = Math.log2(passes.at(-1) / passes[0]) || 1;
  const pitch = (width - left) / (octaves + 1.2);
  const x = (nfe) => left + pitch * (Math.log2(nfe / passes[0]) + 0.6);
  const y = (value) => top + (height - top - foot) * (1 - (value - low + room) / (high - low + 2 * room));
  const marks = passes.flatMap((nfe) => beside(points.filter((row) => row.nfe === nfe), x(nfe), pitch, y, one));
  const groups = Map.groupBy ? [...Map.groupBy(cells, (row) => row.group).values()] : [cells];
  svg.replaceChildren(
    ...ticks(low - room, high + room).flatMap((value) => [
      draws("line", { class: "grid", x1: left, x2: width, y1: y(value), y2: y(value) }),
      draws("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, short(value)),
    ]),
    ...passes.map((nfe) => draws("text", { x: x(nfe), y: height - foot + 20, "text-anchor": "middle" }, nfe)),
    draws("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, "UNet passes a picture (NFE)"),
    ...points.filter((row) => row.role === "teacher").map((row) =>
      draws("line", { class: "level", x1: left, x2: width, y1: y(valueOf(row, one)), y2: y(valueOf(row, one)) })),
    ...groups.map((group) => draws("path", { class: "front", d: staircase(front(group.filter((row) => points.includes(row)), one), x, y, one) })),
    ...marks,
  );
  if (marks.length) marks[0].setAttribute("tabindex", 0);
  $("pareto-goal").textContent = `${one.key}, ${one.goal}, with 95 % intervals. The line joins the cells that no other one beats in both.`;
}

function beside(points, at, pitch, y, one) {
  const sorted = [...points].sort((a, b) => valueOf(a, one) - valueOf(b, one));
  const gap = Math.min(11, (pitch * 0.7) / sorted.length);
  return sorted.map((row, n) => {
    const value = y(valueOf(row, one));
    const [low, high] = ends(row, one);
    const mark = draws("g", {
      class: `mark ${row.role}${row.best ? " best" : ""}`, role: "img", tabindex: -1, "aria-label": [title(row), ...details(row, one)].join("; "),
      transform: `translate(${at + (n - (sorted.length - 1) / 2) * gap} ${value})`,
    }, draws("line", { y1: y(low) - value, y2: y(high) - value }), draws("path", { d: SHAPES[row.role] }));
    mark.dataset.row = row.index;
    mark.addEventListener("click", () => show(row, true));
    for (const event of ["pointerenter", "focus"]) mark.addEventListener(event, () => tip(row, mark));
    for (const event of ["pointerleave", "blur"]) mark.addEventListener(event, hideTip);
    return mark;
  });
}

function staircase(points, x, y, one) {
  const sorted = [...points].sort((a, b) => a.nfe - b.nfe);
  return sorted.map((row, n) => (n ? `H${x(row.nfe)}V${y(valueOf(row, one))}` : `M${x(row.nfe)} ${y(valueOf(row, one))}`)).join("");
}

$("pareto").addEventListener("keydown", (event) => {
  const marks = [...$("pareto").querySelectorAll(".mark")];
  const at = marks.indexOf(event.target);
  if (at < 0) return;
  const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: marks.length - 1 }[event.key];
  if (marks[next]) focusOn(marks[next], marks);
  else if (event.key === "Enter" || event.key === " ") show(rows[event.target.dataset.row], true);
  else return;
  event.preventDefault();
});

// Table --------------------------------------------------------------------------------------------

const order = { column: null, up: true };
const COLUMNS = [
  { name: "row", word: true, sort: (row) => row.index, cell: (row) => make("button", { type: "button", onclick: () => show(row, true) }, row.role) },
  ...axes.map((axis, n) => ({ name: axis.name, sort: (row) => (row.at ? row.at[n] : null), cell: (row) => (row.at ? make("bdi", {}, axis.values[row.at[n]]) : "") })),
  { name: "NFE", sort: (row) => row.nfe, cell: (row) => String(row.nfe) },
  { name: "P(best)", sort: (row) => row.chance, cell: (row) => (row.at ? short(row.chance, 2) : "") },
  ...metrics.map((one, n) => ({ name: one.key, metric: n, sort: (row) => valueOf(row, one), cell: (row) => value(row, one) })),
  { name: "defects", sort: (row) => row.faults, cell: (row) => String(row.faults) },
];

function value(row, one) {
  const [mean, low, high] = row.values[one.key];
  const ends = low !== null && one === metric() ? make("small", {}, ` [${short(low)}, ${short(high)}]`) : "";
  return make("span", { title: mean ?? "" }, short(mean, 4), ends);
}

function table() {
  const sorted = [...rows];
  if (order.column) {
    const key = order.column.sort;
    const missing = (one) => one === null || Number.isNaN(one);
    sorted.sort((a, b) => missing(key(a)) - missing(key(b)) || (key(a) - key(b)) * (order.up ? 1 : -1) || a.index - b.index);
  }
  const look = (column) => [column.word ? "word" : "", column.metric === shown.metric ? "chosen" : ""].join(" ").trim() || undefined;
  const head = COLUMNS.map((column, n) => make("th", { scope: "col", class: look(column), "aria-sort": column === order.column ? (order.up ? "ascending" : "descending") : "none" },
    make("button", { type: "button", onclick: () => sortBy(column, n) }, column.name)));
  $("table").replaceChildren(make("thead", {}, make("tr", {}, ...head)), make("tbody", {},
    ...sorted.map((row) => make("tr", { class: row.best ? "best" : undefined, "data-row": row.index },
      ...COLUMNS.map((column) => make("td", { class: look(column) }, column.cell(row)))))));
}

function sortBy(column, n) {
  order.up = order.column === column ? !order.up : true;
  order.column = column;
  table();
  $("table").querySelectorAll("thead button")[n].focus();
}

// Start --------------------------------------------------------------------------------------------

function draw() {
  controls();
  heat();
  pareto();
  table();
  show(shown.open, false);
}

$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

$("facts").textContent = [`${cells.length} cells`, `${data.drawn} pictures each`, ...data.fixed.map(([name, fixed]) => `${name} ${fixed}`)].join(" · ");
$("words").replaceChildren(...metrics.flatMap((one) => [make("dt", {}, one.key, " ", make("small", {}, one.goal)), make("dd", {}, `${one.meaning}.`)]));
draw();
new ResizeObserver(pareto).observe($("pareto"));
