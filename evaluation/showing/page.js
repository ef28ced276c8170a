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

const percent = (share) => (share > 0 && share < 0.01 ? "under 1 %" : `${(100 * share).toFixed(0)} %`);
const chance = (p) => (p < 0.001 ? "p < 0.001" : `p ${Number(p.toPrecision(2))}`);

const GOALS = { one: () => 1, zero: () => 0, teacher: (row, metric) => valueOf(rows[row.teacher], metric) };

// The larger, the better.
function merit(row, metric) {
  const value = valueOf(row, metric);
  if (value === null) return null;
  if (metric.better in GOALS) return -Math.abs(value - GOALS[metric.better](row, metric));
  return metric.better === "low" ? -value : value;
}

// Words --------------------------------------------------------------------------------------------

const count = (n, word) => `${n} ${word}${Number(n) === 1 ? "" : "s"}`;
const named = (row) => row.at.map((place, n) => axes[n].spoken[place]).join(" · ");
const drawn = (row) => `${row.how[0]}, ${count(row.how[1], "step")}${row.how[2] > 1 ? `, guidance ${row.how[2]}` : ""}`;
const margin = (row) => (row.of ? `${row.role}, ${row.of}` : row.role);
const title = (row) => (row.at ? named(row) || "The cell" : `${margin(row)}: ${drawn(row)}`);

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
  return `${word} the baseline: ${gap}, ${chance(p)} (Holm)`;
}

const unsure = (row, metric) => metric.key in row.against && !(row.against[metric.key][3] <= data.sure);

function details(row, metric) {
  const control = rows[row.control];
  if (row.status !== "ok") return [`no figures: ${row.status}, ${row.failed} of ${row.failed + row.pictures} pictures are not there`];
  return [
    measured(row, metric),
    row.best ? `may be the best one${row.chance === null ? "" : ` (${percent(row.chance)})`}` : "",
    against(row, metric),
    control ? `control of as many passes: ${short(control.values[metric.key][0])}` : "",
    `${count(row.pictures, "picture")} of ${count(row.prompts, "prompt")}, ${row.nfe} UNet ${row.nfe === 1 ? "pass" : "passes"} each`,
    row.faults ? `defective: ${row.faults}` : "",
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
  open: cells.reduce((best, row) => ((row.chance ?? -1) > (best.chance ?? -1) ? row : best), cells[0]),
};
shown.picks = [...shown.open.at];
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
const MANY = 6; // columns
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
  const [value, low, high] = row.values[one.key].map(number);
  const half = defined(low) && defined(high) ? `± ${short((high - low) / 2, 2)}` : "";
  const marks = { best: row.best, baseline: row.baseline, unsure: unsure(row, one), faulty: row.faults > 0, absent: row.status !== "ok" };
  const element = make("td", {
    role: "gridcell", tabindex: -1, "data-row": row.index, "aria-selected": row === shown.open,
    "aria-label": [named(row), ...details(row, one)].join("; "),
    class: Object.keys(marks).filter((name) => marks[name]).join(" "),
    onclick: () => show(row, true),
    onpointerenter: () => tip(row, element), onpointerleave: hideTip,
    onfocus: () => tip(row, element), onblur: hideTip,
  }, row.status === "ok" ? short(value) : row.status, make("small", {}, half));
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
    return make("tr", { role: "row" }, make("th", { scope: "row", role: "rowheader" }, make("bdi", { title: value }, value)), ...line);
  });
  const corner = `${shown.down === NONE ? "" : `${axes[shown.down].name} ↓`}${shown.across === NONE ? "" : ` ${axes[shown.across].name} →`}`;
  const head = make("tr", { role: "row" }, make("th", { class: "corner" }, corner),
    ...across.map((value) => make("th", { scope: "col", role: "columnheader" }, make("bdi", { title: value }, value))));
  const controls = [...new Set(members.map((row) => row.control))].map((n) => rows[n]).filter(Boolean);
  const name = shown.panels === NONE ? "" : axes[shown.panels].spoken[at];
  return make("figure", { class: across.length > MANY ? "many" : undefined },
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

// Beside the panel, so that it hides no other cell; where there is no room, above or below.
function tip(row, element) {
  const box = $("tip");
  box.replaceChildren(make("strong", {}, title(row)), ...details(row, metric()).map((line) => make("span", {}, line)));
  box.hidden = false;
  const at = element.getBoundingClientRect();
  const panel = (element.closest("figure") ?? element).getBoundingClientRect();
  const { width, height } = box.getBoundingClientRect();
  const [wide, high] = [document.documentElement.clientWidth, document.documentElement.clientHeight];
  const inside = (value, size, room) => Math.max(8, Math.min(value, room - size - 8));
  const beside = [panel.right + 12, panel.left - width - 12].find((left) => left >= 8 && left + width + 8 <= wide);
  const above = at.top - height - 12;
  box.style.left = `${beside ?? inside(at.left + at.width / 2 - width / 2, width, wide)}px`;
  box.style.top = `${beside !== undefined ? inside(at.top - 8, height, high) : above > 8 ? above : at.bottom + 12}px`;
}

function hideTip() { $("tip").hidden = true; }
addEventListener("scroll", hideTip, { passive: true });
