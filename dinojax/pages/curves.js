// Curves of a page, from the JSON of #curves, as columns of numbers: on the chosen x axis,
// smoothed, for uPlot. charts.js, of whose function this is a part, draws them.

const {runs, charts} = JSON.parse(document.getElementById("curves").textContent);

// Index of the value in a rising list that is nearest to x.
function nearest(list, x) {
  let low = 0, high = list.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && x - list[low - 1] < list[low] - x ? low - 1 : low;
}

// y at x of a curve through (xs, ys), level beyond its ends.
function interpolate(xs, ys, x) {
  if (x <= xs[0]) return ys[0];
  const last = xs.length - 1;
  if (x >= xs[last]) return ys[last];
  let i = nearest(xs, x);
  if (xs[i] > x) i -= 1;
  return ys[i] + (ys[i + 1] - ys[i]) * (x - xs[i]) / (xs[i + 1] - xs[i]);
}

function onAxis(steps, run) {
  const {batch_size: batch, hours} = runs[run];
  if (axisChoice.value === "images") return steps.map((step) => step * batch);
  if (axisChoice.value === "hours") {
    return steps.map((step) => PER_HOUR * interpolate(hours.steps, hours.hours, step));
  }
  return steps;
}

// Exponential moving average that starts without a bias towards 0.
function smooth(values, share) {
  if (!share) return values;
  let sum = 0, weight = 0;
  return values.map((value) => {
    sum = share * sum + (1 - share) * value;
    weight = share * weight + 1 - share;
    return sum / weight;
  });
}

// Curves of a chart on the chosen axis: {name, colour, x, mean, low, high, shown, dots}.
function makeLines(chart) {
  const share = Number(slider.value);
  return chart.lines.map((line, i) => {
    const few = line.mean.length < 10;
    return {
      name: line.name,
      colour: colour(runs.length > 1 ? line.run : i),
      x: onAxis(line.steps, line.run),
      raw: line.mean,
      mean: few ? line.mean : smooth(line.mean, share),
      low: line.low,
      high: line.high,
      smoothed: !few && share > 0,
      dots: line.mean.length <= FEW,
    };
  });
}

// What uPlot takes: columns that share their x, and how each is drawn.
function columns(chart, lines) {
  const positive = (list) =>
    chart.scale === "log" ? list.map((y) => (y > 0 ? y : null)) : list;
  const tables = [], series = [{}], bands = [];
  for (const [i, line] of lines.entries()) {
    const own = [line.x];
    const add = (values, options) => {
      own.push(positive(values));
      series.push({spanGaps: true, points: {show: false}, line: i, ...options});
    };
    if (line.high) {
      add(line.high, {stroke: "transparent"});
      add(line.low, {stroke: "transparent"});
      const [high, low] = [series.length - 2, series.length - 1];
      bands.push({series: [high, low], fill: `${line.colour}33`});
    } else if (line.smoothed) {
      add(line.raw, {stroke: `${line.colour}55`, width: 1});
    }
    const points = {show: line.dots, size: 5, fill: line.colour};
    add(line.mean, {stroke: line.colour, width: 1.6, points, main: true});
    tables.push(own);
  }
  const data = tables.length > 1 ? uPlot.join(tables) : tables[0];
  return {data, series, bands};
}
