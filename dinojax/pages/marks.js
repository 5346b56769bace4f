// Marks on charts: levels, checkpoints, restarts, alarms, errors. A part of the
// function of charts.js, which draws them.
// Words are in the legends, so that no curve crosses them.

const DASHES = [[7, 4], [11, 3, 2, 3], [3, 3], [15, 4]]; // of levels, in turn
// Signs around the point that they mark: x to the right, y down, in CSS pixels.
const SIGNS = {
  checkpoints: {name: "checkpoint on disk", path: "M-5 0H5L0-8Z"},
  restarts: {name: "restart", path: "M0 0V-14", dash: [2, 3]},
  alarms: {name: "alarm", path: "M0-11L5-6L0-1L-5-6Z", above: true},
  errors: {name: "error that ended the run", path: "M-4-10L4-2M4-10L-4-2", above: true, width: 2},
};
const present = Object.keys(SIGNS).filter((kind) => runs.some((run) => run[kind].length));
const ABOVE = present.some((kind) => SIGNS[kind].above) ? 16 : null; // pixels over a plot

// An SVG for a legend, of the text's colour unless filled.
function svg(width, name, attributes) {
  const space = "http://www.w3.org/2000/svg";
  const [made, shape] = ["svg", name].map((x) => document.createElementNS(space, x));
  for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value);
  for (const [key, value] of Object.entries({width, height: 10, viewBox: `0 0 ${width} 10`})) {
    made.setAttribute(key, value);
  }
  made.setAttribute("aria-hidden", "true");
  made.append(shape);
  return made;
}

const swatch = (fill) => svg(14, "rect", {y: 3, width: 14, height: 4, fill});
const lined = (width, dash) =>
  ({fill: "none", stroke: "currentColor", "stroke-width": width, "stroke-dasharray": dash});

// A level in the legend of its chart: its dashes, name and value.
function levelKey(chart, {name, value}, i) {
  const unit = chart.label.endsWith("(%)") ? "%" : "";
  const key = element("span", "", {class: "level"});
  const line = {d: "M0 5H36", ...lined(1.2, DASHES[i % DASHES.length].join(" "))};
  key.append(svg(36, "path", line), `${name}: ${format(Number(value.toPrecision(3)))}${unit}`);
  return key;
}

// The signs that some run has, with their names.
function signKeys() {
  return present.map((kind) => {
    const {name, path, dash, width} = SIGNS[kind];
    const key = element("span", "", {class: runs.length > 1 ? "sign" : `sign ${kind}`});
    const look = dash || width ? lined(width || 1.2, (dash || []).join(" ")) : {fill: "currentColor"};
    key.append(svg(14, "path", {d: path, transform: "translate(7 11)", ...look}), name);
    return key;
  });
}

function drawMarks(plot, chart) {
  const {ctx: pen, bbox: box} = plot, ratio = devicePixelRatio;
  const bottom = box.top + box.height, above = ABOVE * ratio;
  pen.save();
  pen.beginPath();
  pen.rect(box.left - 6 * ratio, box.top - above, box.width + 12 * ratio, box.height + above);
  pen.clip();
  pen.strokeStyle = style("--faint");
  pen.lineWidth = 1.2 * ratio;
  for (const [i, {value}] of chart.levels.entries()) {
    const y = plot.valToPos(value, "y", true);
    if (!(y >= box.top && y <= bottom)) continue;
    pen.setLineDash(DASHES[i % DASHES.length].map((x) => x * ratio));
    pen.stroke(new Path2D(`M${box.left} ${y}h${box.width}`));
  }
  for (const [i, run] of runs.entries()) {
    for (const kind of present) {
      const {path, dash, above: over, width} = SIGNS[kind];
      pen.strokeStyle = pen.fillStyle =
        runs.length > 1 ? colour(i) : style(over ? "--bad" : "--faint");
      pen.lineWidth = width || 1;
      pen.setLineDash(dash || []);
      const shape = new Path2D(kind === "restarts" ? `M0 0V${-box.height / ratio}` : path);
      for (const value of onAxis(run[kind], i)) {
        const x = Math.round(plot.valToPos(value, "x", true));
        pen.setTransform(ratio, 0, 0, ratio, x, over ? box.top - 2 * ratio : bottom);
        pen.stroke(shape);
        if (!dash && !width) pen.fill(shape);
      }
    }
  }
  pen.restore();
}
