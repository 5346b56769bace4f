// Charts of a page: draws each of curves.js, with its marks, into #charts by uPlot.
// All text goes in by textContent or onto a canvas, never as HTML.

const place = document.getElementById("charts");
const axisChoice = document.getElementById("axis");
const slider = document.getElementById("smoothing");
const HEIGHT = 250;
const FONT = "12px system-ui, sans-serif";
const longest = Math.max(0, ...runs.map((run) => (run.hours ? run.hours.hours.at(-1) : 0)));
const PER_HOUR = longest < 3 ? 60 : 1; // a short run counts minutes
const AXES = {
  steps: "training steps",
  images: "images seen",
  hours: `${PER_HOUR === 60 ? "minutes" : "hours"} at work, without pauses`,
};
const FEW = 12; // points of a curve that are drawn as dots, too
let whole = [0, 1]; // range of the x axis over all curves
let zoom = null; // the part of it that is shown; null: the whole
const hidden = new Set(); // names of curves, with their charts
let later = 0; // timer of the charts that are not drawn yet
let drawn = []; // {plot, figure, chart, lines} of each chart

const style = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (i) => style(`--curve-${i % 8}`);

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function format(value) {
  const size = Math.abs(value);
  for (const [least, unit, letter] of [[1e9, 1e9, "B"], [1e6, 1e6, "M"], [1e4, 1e3, "k"]]) {
    if (size >= least) return `${Number((value / unit).toPrecision(4))} ${letter}`;
  }
  if (size !== 0 && size < 1e-3) return String(Number(value.toPrecision(3)));
  return value.toLocaleString("en", {maximumSignificantDigits: 5});
}

const exact = (value) => value.toLocaleString("en", {maximumFractionDigits: 3});

function chooseAxes() {
  const lacks = {
    images: runs.some((run) => !run.batch_size),
    hours: runs.some((run) => !run.hours),
  };
  for (const option of axisChoice.options) {
    if (!lacks[option.value]) continue;
    option.disabled = true;
    option.textContent += " (not logged)";
  }
}

function yRange(chart) {
  return (plot, low, high) => {
    if (low === null || high === null) [low, high] = [0, 1];
    for (const {value} of zoom ? [] : chart.levels) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    if (chart.scale === "log") return uPlot.rangeLog(low, high, 10, false);
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
  };
}

function axisOptions(label, size) {
  const grid = {stroke: style("--grid"), width: 1};
  const values = (plot, splits) => splits.map((x) => (x === null ? "" : format(x)));
  return {
    label, values, grid, size, ticks: grid, stroke: style("--faint"),
    font: FONT, labelFont: FONT, labelSize: 20,
  };
}

function widest(plot, values) {
  const longest = Math.max(0, ...(values || []).map((text) => text.length));
  return 22 + 7 * longest;
}

function showValues(entry, x) {
  const {lines, values, at} = entry;
  for (const [i, line] of lines.entries()) {
    if (x === null) { values[i].textContent = ""; continue; }
    const k = nearest(line.x, x);
    const spread = line.high ? ` (${format(line.low[k])} to ${format(line.high[k])})` : "";
    values[i].textContent = format(line.mean[k]) + spread;
  }
  const k = x === null ? 0 : nearest(lines[0].x, x);
  at.textContent = x === null ? "" : `${AXES[axisChoice.value]}: ${exact(lines[0].x[k])}`;
}

function makeChart(chart) {
  const lines = makeLines(chart);
  const {data, series, bands} = columns(chart, lines);
  const figure = element("figure");
  const legend = element("div", "", {class: "legend"});
  const at = element("div", "", {class: "at"});
  const frame = element("div", "", {role: "img", "aria-label": chart.title});
  const hint = element("div", chart.hint, {class: "hint"});
  figure.append(element("h3", chart.title), hint, legend, frame, at);
  place.append(figure);
  const entry = {figure, chart, lines, at, values: []};
  for (const [i, line] of lines.entries()) {
    const key = JSON.stringify([chart.title, line.name]);
    const pressed = String(!hidden.has(key));
    const button = element("button", "", {type: "button", "aria-pressed": pressed});
    const value = element("span", "", {class: "value"});
    button.append(swatch(line.colour), element("span", line.name), value);
    for (const one of series) if (one.line === i) one.show = !hidden.has(key);
    button.addEventListener("click", () => {
      const show = hidden.delete(key) || !hidden.add(key);
      button.setAttribute("aria-pressed", String(show));
      series.forEach((one, k) => one.line === i && entry.plot.setSeries(k, {show}));
    });
    legend.append(button);
    entry.values.push(value);
  }
  legend.append(...chart.levels.map((level, i) => levelKey(chart, level, i)));
  entry.plot = new uPlot({
    width: Math.max(frame.clientWidth, 200), height: HEIGHT, series, bands,
    padding: [ABOVE, null, null, null],
    scales: {
      x: {time: false, range: () => zoom || whole},
      y: {distr: chart.scale === "log" ? 3 : 1, range: yRange(chart)},
    },
    axes: [axisOptions(AXES[axisChoice.value], 34), axisOptions(chart.label, widest)],
    legend: {show: false},
    cursor: {
      y: false,
      // Charts share where the pointer is; zooming is for setZoom alone.
      sync: {
        key: "page", setSeries: false, scales: ["x", null],
        filters: {pub: (type) => type === "mousemove" || type === "mouseleave"},
      },
      drag: {x: true, y: false, setScale: false},
      points: {show: (plot, i) => (series[i].main ? undefined : false)},
    },
    hooks: {
      drawAxes: [(plot) => drawMarks(plot, chart)],  // below the curves
      setCursor: [(plot) => {
        const {left} = plot.cursor;
        showValues(entry, left >= 0 ? plot.posToVal(left, "x") : null);
      }],
      setSelect: [(plot) => {
        const {left, width} = plot.select;
        if (width < 4) return;
        setZoom([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
      }],
    },
  }, data, frame);
  entry.plot.over.addEventListener("dblclick", () => setZoom(null));
  return entry;
}

function setZoom(range) {
  zoom = range;
  for (const {plot} of drawn) {
    plot.setSelect({left: 0, width: 0, top: 0, height: 0}, false);
    plot.setData(plot.data, true);
  }
  noteState();
}

// The state, for whoever reads the page by a program.
function noteState() {
  place.dataset.axis = axisChoice.value;
  place.dataset.smoothing = slider.value;
  place.dataset.missing = charts.length - drawn.length;
  place.dataset.range = JSON.stringify(zoom || whole);
}

function drawAll() {
  for (const {plot} of drawn) plot.destroy();
  place.replaceChildren();
  const ends = charts.flatMap((chart) =>
    makeLines(chart).flatMap(({x}) => [x[0], x[x.length - 1]]));
  ends.push(...runs.flatMap((run, i) => onAxis([run.step], i))); // it may end unlogged
  whole = [Math.min(0, ...ends), Math.max(...ends)];
  if (whole[0] === whole[1]) whole = [whole[0], whole[0] + 1];
  drawn = [];
  document.getElementById("smoothed").textContent = slider.value;
  drawNext();
}

// Draws a few charts at a time, so that those on the screen answer at once.
function drawNext() {
  clearTimeout(later);
  for (const chart of charts.slice(drawn.length, drawn.length + 4)) {
    drawn.push(makeChart(chart));
  }
  if (drawn.length < charts.length) later = setTimeout(drawNext);
  noteState();
}

let waiting = 0;
function drawSoon() {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(drawAll);
}

axisChoice.addEventListener("change", () => { zoom = null; drawAll(); });
slider.addEventListener("input", drawSoon);
document.getElementById("whole").addEventListener("click", () => setZoom(null));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawSoon);
new ResizeObserver(() => {
  for (const {plot, figure} of drawn) {
    const width = Math.max(figure.clientWidth, 200);
    if (width !== plot.width) plot.setSize({width, height: HEIGHT});
  }
}).observe(place);
chooseAxes();
document.getElementById("marks").append(...signKeys());
drawAll();
