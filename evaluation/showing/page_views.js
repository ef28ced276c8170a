// Pictures -----------------------------------------------------------------------------------------

const FEW = 12;
let cameFrom = null;

function picture(row, item, label, own) {
  const found = data.pictures[row.index][item];
  if (!found) return make("span", {}, make("b", {}, "none"), label);
  const [thumb, path, fault] = found;
  if (!path) return make("span", {}, make("b", {}, fault), label);
  const inside = thumb >= 0
    ? make("img", { src: `data:image/webp;base64,${data.thumbs[thumb]}`, alt: `${title(row)}: ${data.items[item][0]}, seed ${data.items[item][1]}`, decoding: "async" })
    : make("b", {}, "open");
  const href = `./${path.split("/").map(encodeURIComponent).join("/")}`;
  return make("a", { href, target: "_blank", rel: "noopener", class: own ? "own" : undefined }, inside, fault ? `${label}: ${fault}` : label);
}

function strip(row) {
  const baseline = rows.find((other) => other.baseline && other.group === row.group);
  const others = [[rows[row.teacher], "teacher"], [rows[row.control], "control"], [baseline, "baseline"]];
  return [[row, row.at ? "this cell" : row.role], ...others.filter(([other]) => other && other !== row)];
}

function cards(row, items) {
  const together = strip(row);
  return items.map(([prompt, seed], item) => make("figure", {},
    make("figcaption", {}, make("bdi", { title: prompt }, prompt), make("small", {}, `seed ${seed}`)),
    make("div", { class: "strip" }, ...together.map(([one, label], n) => picture(one, item, label, n === 0)))));
}

function show(row, move) {
  shown.open = row;
  for (const element of document.querySelectorAll("[aria-selected]")) {
    element.setAttribute("aria-selected", Number(element.dataset.row) === row.index);
  }
  const items = shown.every ? data.items : data.items.slice(0, FEW);
  $("album-title").textContent = `Pictures: ${title(row)}`;
  $("album-facts").textContent = details(row, metric()).join("; ");
  $("album").replaceChildren(...cards(row, items));
  $("album-all").hidden = items.length === data.items.length;
  $("album-all").textContent = `Show all ${data.items.length}`;
  if (!move) return;
  cameFrom = document.activeElement;
  hideTip();
  $("album-title").focus();
  $("album-title").scrollIntoView({ block: "start" });
}

function amount() {
  const said = [`${data.inside} of ${data.drawn} pictures are in this page`];
  if (data.linked > data.inside) said.push(`${data.linked - data.inside} more are links into the folder beside it`);
  if (data.drawn > data.linked) said.push("images.csv lists all");
  return `${said.join(", ")}. A picture leads to its file.`;
}

function back() {
  const home = cameFrom?.isConnected ? cameFrom : document.querySelector("#map td[tabindex='0']");
  home?.focus();
  home?.scrollIntoView({ block: "center" });
}

$("album-back").addEventListener("click", back);
$("album-all").addEventListener("click", () => { shown.every = true; show(shown.open, false); $("album-title").focus(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && $("album-title").parentElement.contains(event.target)) back();
});

// Quality against cost -----------------------------------------------------------------------------

const SHAPES = {
  cell: "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z",
  control: "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
  teacher: "",
};

function draws(tag, props, ...children) {
  const element = document.createElementNS($("pareto").namespaceURI, tag);
  for (const [name, value] of Object.entries(props)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Cells of one base and style that no other one beats in both; equal ones together.
function front(group, one) {
  const known = group.filter((row) => defined(merit(row, one))).sort((a, b) => a.nfe - b.nfe || merit(b, one) - merit(a, one));
  const found = [];
  let best = -Infinity;
  for (const row of known) {
    const last = found.at(-1);
    const equal = last && last.nfe === row.nfe && merit(last, one) === merit(row, one);
    if (equal || merit(row, one) > best) found.push(row);
    best = Math.max(best, merit(row, one));
  }
  return found;
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
  const known = rows.filter((row) => row.role in SHAPES && defined(valueOf(row, one)));
  const points = known.filter((row) => row.role !== "teacher");
  const [width, height] = [svg.clientWidth || 720, svg.clientHeight || 384];
  const [left, top, foot] = [56, 12, 44];
  const passes = [...new Set(points.map((row) => row.nfe))].sort((a, b) => a - b);
  const spread = [...points.flatMap((row) => ends(row, one)), ...known.map((row) => valueOf(row, one))];
  const [low, high] = [Math.min(...spread), Math.max(...spread)];
  const room = (high - low) * 0.05 || 0.5;
  const pitch = (width - left) / (Math.log2(passes.at(-1) / passes[0]) + 1);
  const x = (nfe) => left + pitch * (Math.log2(nfe / passes[0]) + 0.5);
  const y = (value) => top + (height - top - foot) * (1 - (value - low + room) / (high - low + 2 * room));
  const narrowest = Math.min(pitch, ...passes.slice(1).map((nfe, n) => x(nfe) - x(passes[n])));
  const marks = passes.flatMap((nfe) => beside(points.filter((row) => row.nfe === nfe), x(nfe), narrowest, y, one));
  svg.replaceChildren(
    ...ticks(low - room, high + room).flatMap((value) => [
      draws("line", { class: "grid", x1: left, x2: width, y1: y(value), y2: y(value) }),
      draws("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, String(value).replace("-", "−")),
    ]),
    ...passes.map((nfe) => draws("text", { x: x(nfe), y: height - foot + 20, "text-anchor": "middle" }, nfe)),
    draws("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, "UNet passes a picture (NFE)"),
    ...known.filter((row) => row.role === "teacher").flatMap((row, n) => level(row, left, width, y(valueOf(row, one)), n)),
    ...fronts(marks, width),
    ...marks.map((mark) => mark.element),
  );
  if (marks.length) marks[0].element.setAttribute("tabindex", 0);
  $("pareto-goal").textContent = `${one.key}, ${one.goal}, with 95 % intervals. The line joins the cells that no other one beats in both.`;
}

// Names of several teachers stand at both ends in turn: their lines may lie close together.
function level(row, left, width, y, n) {
  return [
    draws("line", { class: "level", x1: left, x2: width, y1: y, y2: y }),
    draws("text", { x: n % 2 ? left + 4 : width, y: y - 6, "text-anchor": n % 2 ? "start" : "end" }, `${margin(row)}, ${row.nfe} passes`),
  ];
}

// Marks of one number of passes side by side, the best first.
function beside(points, at, pitch, y, one) {
  const sorted = [...points].sort((a, b) => merit(b, one) - merit(a, one));
  const gap = Math.min(14, (pitch * 0.8) / sorted.length);
  return sorted.map((row, n) => {
    const [x, value] = [at + (n - (sorted.length - 1) / 2) * gap, y(valueOf(row, one))];
    const [low, high] = ends(row, one);
    const element = draws("g", {
      class: `mark ${row.role}${row.best ? " best" : ""}`, role: "img", tabindex: -1, "data-row": row.index,
      "aria-label": [title(row), ...details(row, one)].join("; "), transform: `translate(${x} ${value})`,
    }, draws("line", { y1: y(low) - value, y2: y(high) - value }), draws("path", { d: SHAPES[row.role] }));
    element.addEventListener("click", () => show(row, true));
    for (const event of ["pointerenter", "focus"]) element.addEventListener(event, () => tip(row, element));
    for (const event of ["pointerleave", "blur"]) element.addEventListener(event, hideTip);
    return { row, x, y: value, element };
  });
}

// A staircase for each base and style.
function fronts(marks, width) {
  const of = marks.filter((mark) => mark.row.at);
  return [...new Set(of.map((mark) => mark.row.group))].map((group) => {
    const on = front(of.filter((mark) => mark.row.group === group).map((mark) => mark.row), metric());
    const steps = of.filter((mark) => on.includes(mark.row)).map((mark, n) => (n ? `H${mark.x}V${mark.y}` : `M${mark.x} ${mark.y}`));
    return draws("path", { class: "front", d: `${steps.join("")}${steps.length ? `H${width}` : ""}` });
  });
}

function key(role, text, best) {
  const icon = draws("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" },
    draws("g", { class: `mark ${role}${best ? " best" : ""}` }, draws("path", { d: SHAPES[role] })));
  return make("span", {}, icon, text);
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
  { name: "row", word: true, sort: (row) => row.index, cell: (row) => make("button", { type: "button", onclick: () => show(row, true) }, row.at ? "cell" : title(row)) },
  ...axes.map((axis, n) => ({ name: axis.name, sort: (row) => (row.at ? row.at[n] : null), cell: (row) => (row.at ? make("bdi", { title: axis.values[row.at[n]] }, axis.values[row.at[n]]) : "") })),
  { name: "NFE", sort: (row) => row.nfe, cell: (row) => String(row.nfe) },
  { name: "P(best)", sort: (row) => row.chance, cell: (row) => (row.at && row.chance !== null ? percent(row.chance) : "") },
  ...metrics.map((one, n) => ({ name: one.key, metric: n, sort: (row) => valueOf(row, one), cell: (row) => value(row, one) })),
  { name: "defects", sort: (row) => row.faults, cell: (row) => String(row.faults ?? "–") },
  { name: "status", word: true, sort: (row) => row.failed, cell: (row) => row.status },
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

$("facts").textContent = [count(cells.length, "cell"), count(data.drawn, "picture"), ...data.fixed].join(" · ");
$("pareto-legend").replaceChildren(
  key("cell", "cell"), key("cell", `may be the best by ${data.metric}`, true), key("control", "best control of as many passes"));
$("words").replaceChildren(...metrics.flatMap((one) => [make("dt", {}, one.key, " ", make("small", {}, one.goal)), make("dd", {}, `${one.meaning}.`)]));
$("album-more").textContent = amount();
draw();
new ResizeObserver(pareto).observe($("pareto"));
